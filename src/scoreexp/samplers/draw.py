"""Drawing samples: a seed names a sample, whatever the batch it is drawn in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.samplers.base import Callback, Sampler, SampleResult
from scoreexp.samplers.starts import start_from_prior


def draw(
    model: DenoiserBase,
    sampler: Sampler,
    seeds: Sequence[int],
    *,
    cond: Tensor | None = None,
    device: torch.device | str | None = None,
    keep: int = 0,
    callback: Callback | None = None,
) -> SampleResult:
    """One sample per seed, from the prior at ``t_max``.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> draw(model, DDIM(UniformGrid(10)), seeds=[0, 1, 2]).x.shape
    torch.Size([3, 2])

    Args:
        model: the denoiser; put a network into evaluation mode first.
        sampler: how.
        seeds: one per sample.
        cond: class labels ``[B]``, see ``labels_for``, or images ``[B, C', H, W]`` that the model is conditioned on.
        device: where to draw; that of the model by default.
        keep: how many states on the way to return.
        callback: as of ``Sampler``.

    Raises:
        UserError: the model does not say of what shape its samples are.
        ValueError: ``cond`` does not have one label or image per seed.
    """
    if model.event_shape is None:
        raise UserError("the model does not say of what shape its samples are: load it from a checkpoint")
    if cond is not None and len(cond) != len(seeds):
        raise ValueError(f"{len(cond)} labels for {len(seeds)} seeds: give one label per seed")
    streams = ImageStreams(seeds)
    start = start_from_prior(model, model.event_shape, streams, device=device or model.device)
    return sampler(model, start, streams=streams, cond=cond, keep=keep, callback=callback)
