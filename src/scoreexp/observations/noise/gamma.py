r"""Speckle: an intensity times a Gamma variable of mean 1, as of radar and ultrasound images.

With ``u = (x + 1) / 2`` and ``L`` looks,

.. math:: v = u\, g, \quad g \sim \mathrm{Gamma}(L, 1 / L), \qquad y = 2 v - 1, \qquad \mathrm{Var}[y | x] = 4 u^2 / L .

**Tweedie.** ``L v / ((L - 1) - v l'(v))`` with the score ``l'`` of ``v`` is exactly ``1 / E[1 / u | v]``, the harmonic
posterior mean, and not ``E[u | v]``, which no formula of the score gives.

**Stabilisation.** The logarithm: ``log v = log u + log g``, where ``log g`` has the mean ``psi(L) - log L`` and the variance
``psi'(L)``, so the inverse is exact in the logarithm.

References:
    K. Kim, J. C. Ye, "Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images", 2021,
    https://arxiv.org/abs/2106.07009;
    J. W. Goodman, "Some fundamental properties of speckle", 1976, https://doi.org/10.1364/JOSA.66.001145.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FinitePositiveFloat
from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.poisson import intensity

DARKEST = 1e-6  # intensity that stands for 0 under the logarithm


class GammaNoise(NoiseModel):
    """See the module's formulas.

    >>> import torch
    >>> GammaNoise(looks=4.0).variance(torch.ones(1, 1))
    tensor([[1.]])

    Args:
        looks: ``L``, > 0; the larger, the less noise.

    Raises:
        ValueError: ``looks`` is not positive; on a call, an intensity is negative.
    """

    @checked
    def __init__(self, looks: FinitePositiveFloat) -> None:
        self.looks = float(looks)
        shape = torch.tensor(self.looks, dtype=torch.float64)
        self._bias = float(torch.digamma(shape)) - math.log(self.looks)
        self._deviation = math.sqrt(float(torch.polygamma(1, shape)))

    def __str__(self) -> str:
        return f"Gamma (speckle), {self.looks:.3g} looks"

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        return 2 * intensity(x) * streams.gamma(x, self.looks) / self.looks - 1

    def variance(self, x: Tensor) -> Tensor:
        return 4 * intensity(x) ** 2 / self.looks

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        u, v = intensity(x).clamp(min=DARKEST), intensity(y).clamp(min=DARKEST)
        rate = self.looks / u
        density = self.looks * rate.log() + (self.looks - 1) * v.log() - rate * v - math.lgamma(self.looks)
        return (density - math.log(2)).flatten(1).sum(1)  # dy = 2 dv

    def of_mean(self, count: int) -> "GammaNoise":
        return GammaNoise(self.looks * count)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        """The harmonic mean ``1 / E[1 / u | v]``, as ``x``."""
        v = (y + 1) / 2
        return 2 * self.looks * v / (self.looks - 1 - v * 2 * score) - 1

    def stabilise(self, y: Tensor) -> Tensor:
        return ((y + 1) / 2).clamp(min=DARKEST).log() / self._deviation

    def unstabilise(self, z: Tensor) -> Tensor:
        return 2 * (z * self._deviation - self._bias).exp() - 1
