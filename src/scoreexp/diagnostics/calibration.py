r"""Is a denoiser as uncertain as it is wrong, and does it keep as much of the data's variance as it should?

Tweedie's second-order formula gives the variance of the posterior that a denoiser states,
:math:`\operatorname{tr} \operatorname{Cov}[x_0 | u] = r^2 \operatorname{tr} J` for :math:`u = x_0 + r z`. It can be held
against two things that data show:

.. math:: E|x_0 - D|^2 = r^2 E \operatorname{tr} J, \qquad
          E|D - E D|^2 = E|x_0 - E x_0|^2 - r^2 E \operatorname{tr} J ,

the error of the denoiser, and the law of total variance for what it returns. Both hold for the exact posterior mean, which
always varies less than the data, by the variance that it states.

Reference: C. Meng, Y. Song, W. Li, S. Ermon, "Estimating High Order Gradients of the Data Distribution by Denoising", 2021,
https://arxiv.org/abs/2111.04726.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, ratio_of, require_samples
from scoreexp.diagnostics.fields import denoised, noisy, probes, products


class Calibration(NamedTuple):
    """Ratios, of which all but ``dispersion`` are 1 for the exact posterior mean.

    Attributes:
        error: squared error over the stated variance; above 1 the model is surer than it should be.
        spread: variance of what is returned over that which Tweedie's formula leaves; below 1 it is under-dispersed.
        dispersion: variance of what is returned over that of the data; below 1 for the exact posterior mean too.
        total: the same with the stated variance added to what is returned, by the law of total variance.
    """

    error: Estimate
    spread: Estimate
    dispersion: Estimate
    total: Estimate


@checked
def calibration(
    model: DenoiserBase,
    x: Tensor,
    level: FinitePositiveFloat,
    *,
    draws: PositiveInt = 1,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> Calibration:
    """The calibration of a denoiser at one noise level, with the trace by random probes.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    >>> exact = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> found = calibration(exact, x, 1.0)
    >>> abs(found.error.value - 1) < 3 * found.error.error, abs(found.spread.value - 1) < 3 * found.spread.error
    (True, True)

    Args:
        model: the denoiser, differentiable twice.
        x: clean data ``[B, *]`` that the model has not been trained on, at least 2.
        level: ``r``, in the units of the data.
        draws: of probes, for each sample.
        seed: names the noise and the probes.
        batch: samples at once.

    Raises:
        ValueError: there are fewer than 2 samples, or the level is outside the schedule's.
    """
    require_samples(x, 2, "the calibration of the posterior mean")
    signs = [probes(x, seed, f"calibration {level:g} {draw}") for draw in range(draws)]
    returned, traces = [], []
    for part, *parts in zip(
        noisy(x, level, seed).split(batch), *(e.split(batch) for e in signs), strict=True
    ):
        pair = products(lambda u: denoised(model, u, level), part)
        returned.append(pair.value)
        traces.append(torch.stack([sum_per_sample(e * pair.transposed(e)) for e in parts]).mean(0))
    d, trace = torch.cat(returned), torch.cat(traces)
    stated = level**2 * trace
    unbiased = len(x) / (len(x) - 1)
    kept = unbiased * sum_per_sample((d - d.mean(0)).square())
    whole = unbiased * sum_per_sample((x - x.mean(0)).square())
    return Calibration(
        error=ratio_of(sum_per_sample((x - d).square()), stated),
        spread=ratio_of(kept, whole - stated),
        dispersion=ratio_of(kept, whole),
        total=ratio_of(kept + stated, whole),
    )
