r"""The generalised Anscombe transform of counted photons that are read with noise, and its exact unbiased inverse.

In photons, ``m = n + r`` with ``n ~ Poisson(rate)`` and reading noise ``r`` of mean 0 and variance ``s^2``,

.. math:: f(m) = 2 \sqrt{\max(m + \tfrac38 + s^2, 0)} ,

has about the variance 1. The algebraic inverse is biased by about a quarter of a photon; ``back`` inverts
``rate -> E[f(m)]`` instead, which is tabulated.

Reference: M. Makitalo, A. Foi, "Optimal Inversion of the Generalized Anscombe Transformation for Poisson-Gaussian Noise",
2013, https://doi.org/10.1109/TIP.2012.2202675.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

TABLE = 1024  # rates at which E[f] is known, evenly spaced in their roots
FEW = 400.0  # photons up to which the expectation is summed over the counts


class Anscombe:
    """See the module's formula.

    >>> from functools import partial
    >>> transform = Anscombe(brightest=15.0, s=1.0, law=partial(normal_law, 241))
    >>> transform.back(transform(torch.tensor([9.0]))) > 9.0  # of E[f] = f(9), which is of a larger rate
    tensor([True])

    Args:
        brightest: rate up to which the inverse is known, in photons.
        s: standard deviation of the reading noise in photons, >= 0.
        law: gives nodes and weights of an expectation over ``r``, float64, in units of ``s``.
    """

    def __init__(self, brightest: float, s: float, law: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self.brightest, self.s, self.law = brightest, s, law

    def __call__(self, photons: Tensor) -> Tensor:
        return 2 * (photons + 0.375 + self.s**2).clamp(min=0).sqrt()

    def back(self, z: Tensor) -> Tensor:
        """The rate at which ``E[f] = z``."""
        rates, values = (part.to(z) for part in self.table)
        place = torch.searchsorted(values, z.contiguous()).clamp(1, len(values) - 1)
        low, high = values[place - 1], values[place]
        share = ((z - low) / (high - low)).clamp(min=0)
        root = rates.sqrt()
        return (root[place - 1] + share * (root[place] - root[place - 1])) ** 2

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Rates and ``E[f]``, float64, both increasing."""
        rates = torch.linspace(0, math.sqrt(self.brightest), TABLE, dtype=torch.float64) ** 2
        s, few = self.s, rates <= FEW
        expected = torch.empty_like(rates)
        nodes, weights = self.law()
        counts = torch.arange(int(FEW + 12 * math.sqrt(FEW)), dtype=torch.float64)
        of_count = torch.stack([self(n + s * nodes) @ weights for n in counts])
        law = log_poisson(counts, rates[few, None]).exp()
        expected[few] = law @ of_count
        many = rates[~few]
        shifted = many + 0.375 + s**2
        # f + f'' Var / 2 + f''' mu_3 / 6 + f'''' mu_4 / 24 at the mean, for a Poisson variable plus a symmetric one
        variance, third = many + s**2, many
        excess = s**4 * (float(weights @ nodes**4) - 3) if s else 0.0
        fourth = 3 * variance**2 + many + excess
        expected[~few] = (
            2
            * shifted.sqrt()
            * (1 - variance / (8 * shifted**2) + third / (16 * shifted**3) - 5 * fourth / (128 * shifted**4))
        )
        return rates, expected


def log_poisson(n: Tensor, rate: Tensor) -> Tensor:
    """``log P(n)``, with ``P(0) = 1`` at the rate 0.

    >>> log_poisson(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    tensor([ 0., -1.])
    """
    return torch.xlogy(n, rate) - rate - torch.lgamma(n + 1)


def normal_law(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ``E[h(z)]`` for a standard normal z, by the trapezoidal rule; one node is 0 alone.

    >>> nodes, weights = normal_law(61)
    >>> round(float(weights @ nodes**4), 4)
    3.0
    """
    nodes = (
        torch.linspace(-6, 6, count, dtype=torch.float64)
        if count > 1
        else torch.zeros(1, dtype=torch.float64)
    )
    weights = torch.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def sum_law(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a sum of independent variables, in units of its standard deviation.

    >>> nodes, weights = sum_law([normal_law(61), normal_law(1)])
    >>> round(float(weights @ nodes**2), 6)
    1.0

    Args:
        parts: nodes and weights of each.
    """
    nodes, weights = parts[0]
    for more, of_more in parts[1:]:
        nodes, weights = (nodes[:, None] + more).flatten(), (weights[:, None] * of_more).flatten()
    return nodes / (weights @ nodes**2).sqrt(), weights
