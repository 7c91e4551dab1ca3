"""Restore what was observed, in memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from scoreexp.api.models import as_model
from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import NonNegativeInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import FromDeepinv, LinearOperator, Observation, require_adjoint
from scoreexp.restorers import Restoration, Restorer
from scoreexp.restorers.images import restore_observed
from scoreexp.restorers.usual import usual_restorer_of
from scoreexp.samplers import knows_null_label, labels_for
from scoreexp.samplers.labels import Label


@checked
def restore(
    observation: Observation,
    model: DenoiserBase | str | Path | None,
    restorer: Restorer | None = None,
    *,
    seeds: Sequence[int] | None = None,
    label: Label = None,
    keep: NonNegativeInt = 0,
) -> Restoration:
    """The estimate of what was observed, through any operator; ``se.denoise`` is for a noisy image of any size and type.

    >>> import torch, scoreexp as se
    >>> prior = se.oracles.Gaussian(torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    >>> model = se.denoisers.OracleDenoiser(prior, se.schedules.VP())
    >>> sinogram = torch.ones(2, 1, 5, 8)
    >>> observation = se.Observation(sinogram, se.observations.Radon(8, angles=5), se.observations.GaussianNoise(0.1))
    >>> restored = se.restore(observation, model, se.restorers.DDS(se.samplers.UniformGrid(10)))
    >>> restored.x.shape, restored.nfe
    (torch.Size([2, 1, 8, 8]), 10)

    Args:
        observation: data ``[B, *]``, operator and noise, in the units of the model ([-1, 1] for images). Images may have
            another size than those of a convolutional model; one that its sides must be divisible by is seen to.
        model: the prior, a denoiser or the path of a checkpoint; None for a restorer that needs none.
        restorer: how; None is the one that serves the observation, such as DDRM where the operator's decomposition is known.
        seeds: one per sample, ``0 .. B - 1`` by default; a seed names the noise of a restorer that draws any.
        label: class of all samples, for a model with classes; by default the null label, or ``seed mod classes`` for a
            model that does not know it.
        keep: estimates on the way to return.

    Returns:
        The estimate ``[B, *]`` in the units of the model and on its device, evaluations of the network for each sample,
        seconds, and the estimates kept.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the restorer cannot serve this observation or needs a model, there is not one seed per sample, or the
            adjoint of an operator of the caller's own is not that (the message has both inner products).
        UserError: the model has no such class, its null label was not trained, or there is no model to take a label.
    """
    chosen = range(len(observation.y)) if seeds is None else [int(seed) for seed in seeds]
    prior = None if model is None else as_model(model)
    record = {} if prior is None else prior.record
    y = observation.y if prior is None else observation.y.to(prior.device)
    _require_own_adjoint(observation)
    null = label is None and knows_null_label(record)
    cond = labels_for(chosen, record, "none" if null else label, device=y.device)
    return restore_observed(
        usual_restorer_of(observation) if restorer is None else restorer,
        prior,
        replace(observation, y=y),
        streams_of=lambda row, column: ImageStreams(chosen),
        cond=cond,
        keep=keep,
    )


def _require_own_adjoint(observation: Observation) -> None:
    """Test the adjoint of an operator that is not the package's, whose tests have seen it."""
    operator, y = observation.operator, observation.y[:1]
    own = type(operator).__module__.partition(".")[0] != "scoreexp" or isinstance(operator, FromDeepinv)
    if not own or not isinstance(operator, LinearOperator):
        return
    with torch.no_grad():
        shape = operator.adjoint(y).shape[1:]
        require_adjoint(operator, shape, tolerance=1e3 * torch.finfo(y.dtype).eps, like=y)
