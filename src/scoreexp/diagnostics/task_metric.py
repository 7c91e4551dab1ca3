r"""What denoising is worth to a task, beside what it is worth in decibels.

.. math:: \Delta = \operatorname{acc} f(D(y)) - \operatorname{acc} f(y), \qquad y = x_0 + r z,

with a classifier ``f`` of clean data. A denoiser may gain decibels and lose what a class is told by.

Reference: I. Marathe et al., "RestoreX-AI: A Contrastive Approach towards Guiding Image Restoration via Explainable AI
Systems", 2022, https://arxiv.org/abs/2204.01719.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import mean_per_sample
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, mean_of
from scoreexp.diagnostics.fields import denoised, noisy

PEAK = 2.0  # of data in [-1, 1]


class TaskGain(NamedTuple):
    """At one noise level.

    Attributes:
        noisy: accuracy on noisy data.
        denoised: accuracy on denoised data.
        gain: their difference, whose standard error is that of the pairs.
        psnr_gain: difference of the PSNR in dB.
    """

    noisy: Estimate
    denoised: Estimate
    gain: Estimate
    psnr_gain: Estimate


@checked
@torch.no_grad()
def task_gain(
    model: DenoiserBase,
    classify: Callable[[Tensor], Tensor],
    x: Tensor,
    labels: Tensor,
    level: FinitePositiveFloat,
    *,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> TaskGain:
    """Accuracy and PSNR before and after denoising, on the same noise.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())  # shrinks towards 0: no class changes
    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> found = task_gain(model, lambda x: (x[:, 0] > 0).long(), x, torch.tensor([1, 0]), 1.0)
    >>> found.gain.value, found.psnr_gain.value > 0
    (0.0, True)

    Args:
        model: the denoiser.
        classify: ``[B, *]`` -> classes ``[B]`` (long).
        x: clean data ``[B, *]`` in [-1, 1].
        labels: their classes ``[B]``.
        level: ``r``, in the units of the data.
        seed: names the noise.
        batch: samples at once.

    Raises:
        ValueError: there are not as many labels as samples, or the level is outside the schedule's.
    """
    if len(labels) != len(x):
        raise ValueError(f"{len(x)} samples with {len(labels)} labels: give one label for each sample")
    y = noisy(x, level, seed)
    restored = torch.cat([denoised(model, part, level) for part in y.split(batch)])
    before, after = ((classify(v).cpu() == labels.cpu()).double() for v in (y, restored))
    decibels = [10 * (PEAK**2 / mean_per_sample((v - x).double().square())).log10() for v in (y, restored)]
    return TaskGain(
        mean_of(before), mean_of(after), mean_of(after - before), mean_of(decibels[1] - decibels[0])
    )
