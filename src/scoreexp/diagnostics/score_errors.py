r"""The error of a model's score by noise level, with its standard error.

.. math:: e(r) = \frac{E |s_\theta(u, r) - \nabla \log p_r(u)|^2}{E |\nabla \log p_r(u)|^2}, \quad u = x_0 + r z .

0 is exact and 1 no better than predicting 0. Against the exact density of the data this is the error of the model;
against the empirical distribution of a finite training set it is the distance to the model that has memorised the set.
"""

from collections.abc import Sequence

import torch

from scoreexp.core.checked import checked
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import AtLeastTwo, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import ByLevel, ratio_of
from scoreexp.metrics.score_error import exact_scores, score_at
from scoreexp.numerics.oracles import Oracle


@checked
def score_error_by_level(
    model: DenoiserBase,
    oracle: Oracle,
    levels: Sequence[float],
    *,
    n: AtLeastTwo = 256,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> ByLevel:
    """The relative squared error of the score at each noise level, of ``metrics.score_error``'s points.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> narrow, wide = (Gaussian(torch.zeros(2), torch.full((2,), c)) for c in (1.0, 3.0))
    >>> found = score_error_by_level(OracleDenoiser(wide, VP()), narrow, [1.0])  # ((1 + 1) / (3 + 1) - 1)^2
    >>> round(found[1.0].value, 4)
    0.25

    Args:
        model: the denoiser.
        oracle: the exact distribution, or ``EmpiricalImages`` of a training set.
        levels: ``r``, in the units of the data.
        n: noisy samples at each level.
        seed: names them.
        batch: samples at once.

    Raises:
        ValueError: there are fewer than 2 samples, or a level is outside the schedule's.
    """
    found = {}
    for level, (u, exact) in exact_scores(oracle, levels, n, seed).items():
        learned = torch.cat([score_at(model, part, level, model.device) for part in u.split(batch)])
        found[level] = ratio_of(sum_per_sample((learned - exact).square()), sum_per_sample(exact.square()))
    return found
