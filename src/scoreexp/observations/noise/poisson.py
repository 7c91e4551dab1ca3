r"""Counted photons, with or without the noise of reading them.

With the intensity ``u = (x + 1) / 2`` in [0, 1] and ``peak`` photons at ``u = 1``,

.. math:: n \sim \mathrm{Poisson}(\mathtt{peak}\; u), \qquad y = 2 n / \mathtt{peak} - 1 + \sigma z, \qquad
          \mathrm{Var}[y | x] = 4 u / \mathtt{peak} + \sigma^2 .

**Tweedie.** Without reading noise the exact formula is Robbins', ``E[lambda | n] = (n + 1) p(n + 1) / p(n)``, which needs
the law of counts and not a score. From a score ``l'(n)`` of a smooth density two approximations are in use, which differ:
``(n + 1/2) exp(l'(n))`` (Noise2Score) and its expansion ``n + n l'(n)``; the first is used here, the second is of other
libraries. With reading noise, and many photons, ``y + Var[y | y] l'(y)`` of a Gaussian of that variance.

**Stabilisation.** The generalised Anscombe transform (``anscombe``) of the photons ``peak (y + 1) / 2``.

References:
    H. Robbins, "An Empirical Bayes Approach to Statistics", 1956;
    K. Kim, J. C. Ye, "Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images", 2021,
    https://arxiv.org/abs/2106.07009.
"""

import math
from functools import cached_property, partial

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat
from scoreexp.observations.noise.anscombe import Anscombe, log_poisson, normal_law
from scoreexp.observations.noise.base import NoiseModel

QUADRATURE = 241  # nodes for the reading noise, many because the root has a kink
BRIGHTEST = 1.5  # of the stabilising transform, in units of the peak


class PoissonGaussianNoise(NoiseModel):
    """Photons and reading noise, see the module's formulas.

    >>> import torch
    >>> noise = PoissonGaussianNoise(peak=30.0, sigma=0.02)
    >>> noise.variance(torch.ones(1, 1)).round(decimals=4)
    tensor([[0.1337]])

    Args:
        peak: photons at the brightest value, > 0.
        sigma: standard deviation of the reading noise, >= 0, in the units of the model ([-1, 1]).

    Raises:
        ValueError: a parameter is outside its domain; on a call, an intensity is negative.
    """

    @checked
    def __init__(self, peak: FinitePositiveFloat, sigma: FiniteNonNegativeFloat = 0.0) -> None:
        self.peak, self.sigma = float(peak), float(sigma)

    def __str__(self) -> str:
        counts = f"{self.peak:.3g} counts at white"
        if not self.sigma:
            return f"Poisson, {counts}"
        return f"Poisson-Gaussian, {counts}, read-out sigma {sigma_to_unit(self.sigma):.3g}"

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        y = 2 / self.peak * streams.poisson(self.peak * intensity(x)) - 1
        return y + self.sigma * streams.normal(x) if self.sigma else y

    def variance(self, x: Tensor) -> Tensor:
        return 4 / self.peak * intensity(x) + self.sigma**2

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """Of the counts ``n`` (probabilities) without reading noise; with it the density of ``y``, summed over ``n``."""
        rate, photons = self.peak * intensity(x), self.peak * (y + 1) / 2
        if self.sigma == 0:
            return log_poisson(photons.round(), rate).flatten(1).sum(1)
        s = self.peak * self.sigma / 2
        # a term P(n) N(photons; n, s^2) is largest between the two and falls from there as fast as the Gaussian
        both = torch.cat([photons.flatten(), rate.flatten()]).detach()
        low, high = max(int(float(both.min()) - 8 * s), 0), max(int(float(both.max()) + 8 * s), 0) + 1
        counts = torch.arange(low, high + 1, dtype=y.dtype, device=y.device).reshape(-1, *[1] * y.ndim)
        deviation = (photons - counts) / s
        gaussian = -0.5 * deviation**2 - math.log(self.sigma * math.sqrt(2 * math.pi))
        return (log_poisson(counts, rate) + gaussian).logsumexp(0).flatten(1).sum(1)

    def of_mean(self, count: int) -> "PoissonGaussianNoise":
        if not self.sigma:
            return PoissonNoise(self.peak * count)
        return PoissonGaussianNoise(self.peak * count, self.sigma / count**0.5)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        """``(n + 1/2) exp(l'(n))`` without reading noise; with it the Gaussian formula at the variance of ``y``."""
        if self.sigma:
            return y + (4 / self.peak * ((y + 1) / 2).clamp(min=0) + self.sigma**2) * score
        photons, slope = self.peak * (y + 1) / 2, 2 / self.peak * score
        return 2 / self.peak * (photons + 0.5) * slope.exp() - 1

    def stabilise(self, y: Tensor) -> Tensor:
        return self._transform(self.peak * (y + 1) / 2)

    def unstabilise(self, z: Tensor) -> Tensor:
        return 2 / self.peak * self._transform.back(z) - 1

    @cached_property
    def _transform(self) -> Anscombe:
        s = self.peak * self.sigma / 2
        return Anscombe(BRIGHTEST * self.peak, s, partial(normal_law, QUADRATURE if s else 1))


class PoissonNoise(PoissonGaussianNoise):
    """Photons alone.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> PoissonNoise(peak=1.0).sample(-torch.ones(1, 4), ImageStreams([0]))
    tensor([[-1., -1., -1., -1.]])

    Args:
        peak: photons at the brightest value, > 0.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(self, peak: FinitePositiveFloat) -> None:
        super().__init__(peak)


def intensity(x: Tensor) -> Tensor:
    """``(x + 1) / 2``, [-1, 1] to [0, 1].

    Raises:
        ValueError: a value is negative beyond rounding.
    """
    u = (x + 1) / 2
    lowest = float(u.detach().min()) if u.numel() else 0.0
    if not lowest >= -1e-5:
        raise ValueError(f"an intensity (x + 1) / 2 is {lowest:.4g}: this noise is for values of x >= -1")
    return u.clamp(min=0)
