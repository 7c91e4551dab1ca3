r"""Do two models of disjoint halves of a data set agree? Then what they learnt is the distribution, not their images.

.. math:: a(r) = \frac{E |D_1(u) - D_2(u)|^2}{\frac12 E \left( |D_1(u) - x_0|^2 + |D_2(u) - x_0|^2 \right)},
       \quad u = x_0 + r z,

is 0 for models that agree, and of the order of 1 for two that memorised different images.

Reference: Z. Kadkhodaie, F. Guth, E. Simoncelli, S. Mallat, "Generalization in diffusion models arises from
geometry-adaptive harmonic representations", 2024, https://arxiv.org/abs/2310.02557, section 2.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import FinitePositiveFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, ratio_of, require_samples
from scoreexp.diagnostics.fields import denoised, noisy


@checked
@torch.no_grad()
def split_half_disagreement(
    first: DenoiserBase, second: DenoiserBase, x: Tensor, level: FinitePositiveFloat, *, seed: int = 0
) -> Estimate:
    """How far two denoisers are apart at one noise level, relative to their own error.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import EmpiricalImages
    >>> from scoreexp.schedules import VP
    >>> low, high = (OracleDenoiser(EmpiricalImages(torch.full((1, 2), v)), VP()) for v in (-1.0, 1.0))
    >>> x = torch.zeros(3, 2)  # each gives its own image back, twice as far from the other's as from x
    >>> split_half_disagreement(low, high, x, 0.5).value, split_half_disagreement(low, low, x, 0.5).value
    (4.0, 0.0)

    Args:
        first: a denoiser.
        second: another, of data of the same shape; its schedule may differ.
        x: clean data ``[B, *]`` that neither was trained on, at least 2.
        level: ``r``, in the units of the data.
        seed: names the noise.

    Raises:
        ValueError: there are fewer than 2 samples, or the level is outside the range of a schedule.
    """
    require_samples(x, 2, "the agreement of two models")
    u = noisy(x, level, seed)
    one, other = denoised(first, u, level), denoised(second, u, level)
    error = (sum_per_sample((one - x).square()) + sum_per_sample((other - x).square())) / 2
    return ratio_of(sum_per_sample((one - other).square()), error)
