"""Draw samples in memory."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoreexp.api.models import as_model, usual_sampler
from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_unit
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.runs.solvers import not_taken, solver_beside
from scoreexp.samplers import Auto, Sampler, draw, fit_solver, labels_for
from scoreexp.samplers.labels import Label

_log = logging.getLogger(__name__)


@checked
def sample(
    model: DenoiserBase | str | Path,
    n: PositiveInt | None = None,
    *,
    seeds: Sequence[int] | None = None,
    sampler: Sampler | None = None,
    label: Label = None,
    batch_size: PositiveInt = 64,
) -> Tensor:
    """New samples ``[n, *]`` on the CPU: images in [0, 1], channels first; points as they are.

    >>> import torch, scoreexp as se
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.eye(2)), se.schedules.VP())
    >>> se.sample(model, 5).shape
    torch.Size([5, 2])

    A guided model is a model: ``se.sample(se.guidance.ClassifierFree(se.load(path), weight=2.0), label=3)``.

    Args:
        model: a denoiser, or the path of a checkpoint.
        n: how many; 16, or as many as there are seeds.
        seeds: one per sample, ``0 .. n - 1`` by default; a seed names a sample whatever the others are.
        sampler: how; by default the sampler of the model's run, or DDIM with 50 steps. ``Auto(steps)`` is fitted to the
            model, which takes seconds for a small network, and kept beside its checkpoint where ``model`` is a path.
        label: class to draw, for a model with classes; by default ``seed mod classes``.
        batch_size: samples drawn at once; does not change them.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: ``n`` and ``seeds`` disagree, or are not positive.
    """
    denoiser = as_model(model)
    chosen = list(range(16 if n is None else n)) if seeds is None else [int(seed) for seed in seeds]
    if not chosen or (n is not None and n != len(chosen)):
        raise ValueError(
            f"n={n} samples with {len(chosen)} seeds: give one seed per sample, or only one of the two"
        )
    how = sampler or usual_sampler(denoiser)
    if isinstance(how, Auto):
        how = _fitted(how, model, denoiser, label)
    drawn = []
    for start in range(0, len(chosen), batch_size):
        batch = chosen[start : start + batch_size]
        cond = labels_for(batch, denoiser.record, label, device=denoiser.device)
        drawn.append(draw(denoiser, how, batch, cond=cond).x.cpu())
    samples = torch.cat(drawn)
    return to_unit(samples).clamp(0, 1) if isinstance(kind_of(denoiser.event_shape), Images) else samples


def _fitted(auto: Auto, model: DenoiserBase | str | Path, denoiser: DenoiserBase, label: Label) -> Sampler:
    if isinstance(model, (str, Path)):
        settings = {"weights": "averaged", "guidance": None}
        stored = solver_beside(model, denoiser, auto, label=label, settings=settings)
        if stored.sampler is auto:
            _log.warning("%s: %s", stored.path, stored.said)
        return stored.sampler
    fitted = fit_solver(denoiser, auto.steps, denoise_last=auto.denoise_last, label=label)
    if fitted.better is not fitted.sampler:
        _log.warning("the fitted solver was %s", not_taken(fitted.error, fitted.base_error))
    return fitted.better
