"""What a reader of a foreign format returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from torch import Tensor


def is_shape(stated: Any, dimensions: int | None = None) -> TypeGuard[list[int]]:
    """Whether a list from a file can be a shape: of ``dimensions`` if given, sides of 1 to 16384.

    >>> is_shape([3, 32, 32]), is_shape([32, 32], dimensions=2), is_shape([]), is_shape([0, 1]), is_shape("32")
    (True, True, False, False, False)
    """
    return (
        isinstance(stated, list)
        and (bool(stated) if dimensions is None else len(stated) == dimensions)
        and all(isinstance(side, int) and 0 < side <= 2**14 for side in stated)
    )


@dataclass(frozen=True)
class ForeignModel:
    """A model of another library in our terms: plain configuration and the weights of the network that it describes.

    >>> edm = {"_target_": "scoreexp.denoisers.EDMPrediction"}
    >>> mlp = {"_target_": "scoreexp.networks.MLP"}
    >>> model = ForeignModel("edm", mlp, edm, {"_target_": "scoreexp.schedules.EDM"}, (2,), None, {})
    >>> sorted(model.config())
    ['network', 'precond', 'sampler', 'schedule', 'source']

    Args:
        source: the format.
        network: configuration of the network, with a ``_target_``.
        precond: of the preconditioning.
        schedule: of the schedule.
        event_shape: of one sample.
        num_classes: of a model with labels, or None.
        weights: by the names of our network.
        sampler: configuration of the sampler that the model's own library uses; by default DDIM with 50 steps.
        details: what else there is to say of the origin: plain data, kept with a converted checkpoint.
    """

    source: str
    network: Mapping[str, Any]
    precond: Mapping[str, Any]
    schedule: Mapping[str, Any]
    event_shape: tuple[int, ...]
    num_classes: int | None
    weights: Mapping[str, Tensor]
    sampler: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        """What stands where a run's configuration stands."""
        usual = {
            "_target_": "scoreexp.samplers.DDIM",
            "grid": {"_target_": "scoreexp.samplers.LogSNRGrid", "steps": 50},
        }
        return {
            "network": dict(self.network),
            "precond": dict(self.precond),
            "schedule": dict(self.schedule),
            "sampler": dict(self.sampler or usual),
            "source": {"format": self.source, **self.details},
        }
