"""Findings about a model in memory."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoreexp.api.models import as_model, usual_sampler
from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, NonNegativeInt, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.diagnostics.diagnosis import Diagnosis, diagnosis
from scoreexp.metrics.score_error import LEVELS
from scoreexp.numerics.oracles import Oracle
from scoreexp.samplers import Sampler, draw, labels_for


@checked
def diagnose(
    model: DenoiserBase | str | Path,
    data: Tensor | None = None,
    *,
    held_out: Tensor | None = None,
    oracle: Oracle | None = None,
    other: DenoiserBase | str | Path | None = None,
    labels: Tensor | None = None,
    held_out_labels: Tensor | None = None,
    history: Sequence[Mapping[str, float]] = (),
    diti_steps: NonNegativeInt = 0,
    sampler: Sampler | None = None,
    samples: AtLeastTwo = 64,
    n: AtLeastTwo = 128,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    batch_size: PositiveInt = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> Diagnosis:
    """What a score model knows, see ``scoreexp.diagnostics``: each value with its standard error.

    >>> import torch, scoreexp as se
    >>> gaussian = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(gaussian, se.schedules.VP())
    >>> found = se.diagnose(model, oracle=gaussian, samples=4, n=4, levels=[1.0])
    >>> print(found.text().splitlines()[0])
    error of the score

    Args:
        model: a denoiser, or the path of a checkpoint.
        data: what it was trained on, ``[N, *]`` in the units of the model (images in [-1, 1]); None says what can be said
            without.
        held_out: samples of the same data that it was not trained on.
        oracle: the exact distribution of the data, where it is known.
        other: a model that was trained on another, disjoint half of the data.
        labels: classes of ``data`` ``[N]`` (long), for what a classifier makes of the denoised and the certified radius.
        held_out_labels: those of ``held_out``.
        history: rows of the run's table, such as ``{"step": 100, "val/ssim": 0.8, "val/population_bits": 3.1}``.
        diti_steps: of training DiTi's encoder on the frozen model, for what each band of noise takes away; 0 leaves it out.
        sampler: how samples are drawn; by default as in ``scoreexp.sample``.
        samples: how many are drawn.
        n: samples for each value; fewer where there are not as many.
        levels: noise levels ``sigma / alpha``, in the units of the data; those outside the schedule are left out.
        seed: names all that is drawn.
        batch_size: samples at once.
        progress: told before each finding how many are done, how many there are, and its title.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the data have another shape than the model's, or an argument is outside its range.
    """
    denoiser, second = as_model(model), None if other is None else as_model(other)
    how = sampler or usual_sampler(denoiser)
    drawn = []
    for seeds in torch.arange(seed, seed + samples).split(batch_size):
        batch = seeds.tolist()
        cond = labels_for(batch, denoiser.record, device=denoiser.device)
        drawn.append(draw(denoiser, how, batch, cond=cond).x.cpu())
    return diagnosis(
        denoiser,
        samples=torch.cat(drawn),
        train=data,
        held_out=held_out,
        oracle=oracle,
        other=second,
        labels=labels,
        held_out_labels=held_out_labels,
        history=history,
        diti_steps=diti_steps,
        levels=levels,
        n=n,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
