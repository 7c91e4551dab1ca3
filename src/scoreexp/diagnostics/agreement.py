r"""Do two models of disjoint halves of a data set agree? Then what they learnt is the distribution, not their images.

.. math:: a(r) = \frac{E |D_1(u) - D_2(u)|^2}{\frac12 E \left( |D_1(u) - x_0|^2 + |D_2(u) - x_0|^2 \right)},
       \quad u = x_0 + r z,

is 0 for models that agree, and of the order of 1 for two that memorised different images.

Reference: Z. Kadkhodaie, F. Guth, E. Simoncelli, S. Mallat, "Generalization in diffusion models arises from
geometry-adaptive harmonic representations", 2024, https://arxiv.org/abs/2310.02557, section 2.
A single model shows the same by its error on training samples over that on held-out ones,

.. math:: g(r) = \frac{E_{\text{train}} |D(u) - x_0|^2}{E_{\text{held out}} |D(u) - x_0|^2},

which is 1 for a model that generalises, and goes to 0 with ``r`` for one that memorised.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, mean_of, ratio_of, require_samples
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


@checked
@torch.no_grad()
def training_over_held_out(
    model: DenoiserBase,
    train: Tensor,
    held_out: Tensor,
    level: FinitePositiveFloat,
    *,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> Estimate:
    """The squared error of a denoiser on training samples over that on held-out ones, at one noise level.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import EmpiricalImages
    >>> from scoreexp.schedules import VP
    >>> train = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> memorised = OracleDenoiser(EmpiricalImages(train), VP())
    >>> training_over_held_out(memorised, train, torch.tensor([[0.5, 1.0], [-1.0, 0.0]]), 0.1).value < 1e-6
    True

    Args:
        model: the denoiser.
        train: samples that it was trained on ``[B, *]``, at least 2.
        held_out: others of the same data ``[C, *]``, at least 2.
        level: ``r``, in the units of the data.
        seed: names the noise.
        batch: samples at once.

    Raises:
        ValueError: there are fewer than 2 samples of one of them, or the level is outside the schedule's range.
    """
    errors = []
    for k, (x, what) in enumerate(((train, "the training error"), (held_out, "the held-out error"))):
        require_samples(x, 2, what)
        u = noisy(x, level, seed + k)  # two independent means
        d = torch.cat([denoised(model, part, level) for part in u.split(batch)])
        errors.append(mean_of(sum_per_sample((d - x).square())))
    above, below = errors
    if not below.value > 0:
        return Estimate(math.nan, math.nan, min(above.n, below.n))
    value = above.value / below.value
    return Estimate(value, math.hypot(above.error, value * below.error) / below.value, min(above.n, below.n))
