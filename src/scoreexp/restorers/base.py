"""What every restorer is: from an observation to an estimate of what was observed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation

Callback = Callable[[int, int, Tensor, Tensor | None], None]


class Restoration(NamedTuple):
    """What a restorer returns.

    Attributes:
        x: the estimate ``[B, *]``, in the units of the model.
        nfe: evaluations of the network for each sample; 0 for a restorer without one.
        seconds: wall time.
        trajectory: estimates ``[B, *]`` on the way, first to last, at most as many as were asked for; the last is ``x``.
    """

    x: Tensor
    nfe: int
    seconds: float
    trajectory: list[Tensor]


class Restorer(ABC):
    """Estimates ``x`` from an ``Observation`` of it. What it needs beyond that are constructor arguments.

    Attributes:
        needs_model: whether it takes a denoiser as its prior. A restorer that fits the one observation takes none.
    """

    needs_model: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self,
        observation: Observation,
        model: DenoiserBase | None = None,
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
        keep: int = 0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore.

        Args:
            observation: what is known.
            model: the prior; put a network into evaluation mode first.
            streams: one random stream per sample.
            cond: class labels ``[B]``, or None.
            keep: how many estimates on the way to return, at most as many as there are.
            callback: called after each step as ``callback(i, n, x, x0_hat)``.

        Raises:
            ValueError: the restorer cannot serve this observation or needs a model; the message says which it can.
            FloatingPointError: the estimate is not finite; names the step.
        """
