r"""White Gaussian noise, ``y = x + sigma z`` with ``z ~ N(0, I)``.

.. math:: E[x | y] = y + \sigma^2 \nabla \log p(y) .

Reference: B. Efron, "Tweedie's Formula and Selection Bias", 2011, https://doi.org/10.1198/jasa.2011.tm11181.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat
from scoreexp.observations.noise.base import NoiseModel


class GaussianNoise(NoiseModel):
    """``y = x + sigma z``.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> noise = GaussianNoise(sigma=0.2)
    >>> noise.sample(torch.zeros(1, 3, 8, 8), ImageStreams([0])).shape
    torch.Size([1, 3, 8, 8])

    Args:
        sigma: standard deviation, >= 0, in the units of the model ([-1, 1]; twice the figure of the [0, 1] range).

    Raises:
        ValueError: if ``sigma`` is negative or no number.
    """

    @checked
    def __init__(self, sigma: FiniteNonNegativeFloat) -> None:
        self.sigma = float(sigma)

    def __str__(self) -> str:
        level = sigma_to_unit(self.sigma)
        return f"white Gaussian, sigma {level:.3g} ({255 * level:.3g} of 255)"

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        return x + self.sigma * streams.normal(x)

    def variance(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.sigma**2)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """``-|y - x|^2 / (2 sigma^2) - n log(sigma sqrt(2 pi))``: ``[B]``.

        Raises:
            ValueError: if ``sigma`` is 0, where there is no density.
        """
        if self.sigma == 0:
            raise ValueError("sigma=0: an observation without noise has no density; give sigma > 0")
        residual = (y - x).flatten(1)
        return -residual.square().sum(1) / (2 * self.sigma**2) - residual.shape[1] * math.log(
            self.sigma * math.sqrt(2 * math.pi)
        )

    def of_mean(self, count: int) -> "GaussianNoise":
        return GaussianNoise(self.sigma / count**0.5)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        return y + self.sigma**2 * score
