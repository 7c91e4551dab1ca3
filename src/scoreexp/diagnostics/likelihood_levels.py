r"""The likelihood of data under a model, split by noise level: how many bits each level of detail costs.

With ``u = x_0 + r z``, the density of ``u`` at the smallest level ``a`` and the prior ``N(0, b^2)`` at the largest,

.. math:: -\log p_a(u) \le \underbrace{\tfrac D2 \log(2 \pi e\, a^2)}_{\text{noise at } a}
          + \int_a^b \frac{E |x_0 - D(u, r)|^2}{r^2}\, d\log r
          + \underbrace{\frac{E |x_0|^2}{2 b^2}}_{\text{left at } b} \quad \text{(on average)},

the variational bound of continuous time. It is exact for the posterior mean, up to what the prior does not know of the data,
and for a model that is the exact denoiser of another density it is that density's cross entropy. Its excess over the
entropy of the data is half the squared error of the score, integrated over ``r^2``: the error on the population.

References:
    D. P. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630;
    X. Kong, R. Brekelmans, G. Ver Steeg, "Information-Theoretic Diffusion", 2023, https://arxiv.org/abs/2302.03792.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, sum_per_sample
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, mean_of, require_samples
from scoreexp.diagnostics.fields import denoised
from scoreexp.metrics.likelihood_metrics import level_spacing

LARGEST = 100.0  # level that stands for an infinite one
SMALLEST_PRIOR = 1.0  # below it a Gaussian is no description of noisy data in [-1, 1]


class LevelLikelihood(NamedTuple):
    """Bits per dimension; the parts add up to ``total``.

    Attributes:
        bands: of each band of noise levels, by its lower end.
        edges: of the bands, ascending.
        prior: what is left of the data at the largest level.
        constant: of the noise at the smallest level, in 8-bit values for images.
        total: of the data with noise of the smallest level; the standard error is over samples.
    """

    bands: dict[float, Estimate]
    edges: list[float]
    prior: Estimate
    constant: float
    total: Estimate


@checked
@torch.no_grad()
def likelihood_by_level(
    model: DenoiserBase,
    x: Tensor,
    levels: Sequence[float] = (),
    *,
    draws: PositiveInt = 1,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> LevelLikelihood:
    """The bound on the negative log-likelihood, by bands of noise levels; each sample has a level of its own in each band.

    Levels are stratified within a band; the standard errors are those of successive strata.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> law = Gaussian(torch.zeros(2), torch.ones(2))
    >>> x = law.sample(2000, torch.Generator().manual_seed(0))
    >>> found = likelihood_by_level(OracleDenoiser(law, VP()), x, [0.1, 1.0])
    >>> abs(found.total.value - 0.5 * math.log2(2 * math.pi * math.e)) < 3 * found.total.error
    True

    Args:
        model: the denoiser.
        x: clean data ``[B, *]``, best not those of its training; at least 2.
        levels: where bands end, in the units of the data; the ends of the schedule are added (100 for an infinite one).
        draws: of noise, for each sample and band.
        seed: names the levels and the noise.
        batch: samples at once.

    Raises:
        ValueError: there are fewer than 2 samples, or the schedule ends at a level below 1, the scale of the data.
    """
    require_samples(x, 2, "the likelihood by level")
    low, high = model.schedule.sigma_range
    high = min(high, LARGEST) if math.isinf(high) else high
    if high < SMALLEST_PRIOR:
        raise ValueError(
            f"the {type(model.schedule).__name__} schedule ends at the noise level {high:.3g}, where its state is not "
            "Gaussian: a likelihood needs 1 or more, give a model of another schedule (vp, ve, ddpm)"
        )
    edges = [low, *sorted({r for r in levels if low < r < high}), high]
    unit = x[0].numel() * math.log(2)
    variance = float((x - x.mean(0)).double().square().mean())
    stream = generator(seed, "likelihood by level")
    place = torch.randperm(len(x), generator=stream) + torch.rand(len(x), generator=stream)
    order = place.argsort()
    bands, whole = {}, torch.zeros(len(x), dtype=torch.float64)
    for a, b in pairwise(edges):
        costs = torch.zeros(len(x), dtype=torch.float64)
        for draw in range(draws):
            stream = generator(seed, "likelihood by level", f"{a:g}", draw)
            r = a * (b / a) ** (place.double() / len(x))
            z = torch.randn(x.shape, generator=stream, dtype=torch.float64).to(x)
            for rows in torch.arange(len(x)).split(batch):
                clean = x[rows]
                u = clean + expand_to(r[rows], clean) * z[rows]
                error = sum_per_sample((clean - denoised(model, u, r[rows])).double().square()).cpu()
                # a control variate: what |z|^2 differs from its mean, times the squared gain of Wiener's filter
                excess = sum_per_sample(z[rows].double().square()).cpu() - x[0].numel()
                cost = error / r[rows] ** 2 - (variance / (variance + r[rows] ** 2)) ** 2 * excess
                costs[rows] += math.log(b / a) * cost / (unit * draws)
        bands[a] = _stratified(costs[order])
        whole += costs
    left = sum_per_sample(x.double().square()).cpu() / (2 * edges[-1] ** 2 * unit)
    constant = 0.5 * math.log2(2 * math.pi * math.e * edges[0] ** 2)
    if isinstance(kind_of(x.shape[1:]), Images):
        constant -= math.log2(level_spacing(256))
    return LevelLikelihood(
        bands, edges, mean_of(left), constant, _stratified((whole + left + constant)[order])
    )


def _stratified(values: Tensor) -> Estimate:
    """The mean of values ``[N]`` in the order of their strata, with the error by successive differences."""
    n = len(values)
    return Estimate(
        float(values.mean()), math.sqrt(float(values.diff().square().sum()) / (2 * n * (n - 1))), n
    )
