r"""Gaussian noise that neighbouring pixels share: white noise through a filter, as of demosaicking, scaling and compression.

.. math:: y = x + \sigma\, (k * z), \qquad \sum_{ab} k_{ab}^2 = 1, \qquad E[x | y] = y + C \nabla \log p(y), \quad
          C = \sigma^2\, \mathrm{corr}(k) .

The borders are periodic, so the Fourier transform diagonalises the covariance ``C``.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat
from scoreexp.observations.noise.base import NoiseModel


class CorrelatedNoise(NoiseModel):
    """Stationary Gaussian noise of images, of the correlation that a Gaussian filter gives.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> CorrelatedNoise(sigma=0.2, length=1.0).sample(torch.zeros(1, 1, 8, 8), ImageStreams([0])).shape
    torch.Size([1, 1, 8, 8])

    Args:
        sigma: standard deviation of every pixel, >= 0, in the units of the model ([-1, 1]).
        length: standard deviation of the filter in pixels, > 0; neighbours have the correlation ``exp(-1 / (4 length^2))``
            where the filter is wide enough to be sampled.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(self, sigma: FiniteNonNegativeFloat, length: FinitePositiveFloat = 1.0) -> None:
        self.sigma, self.length = float(sigma), float(length)

    def __str__(self) -> str:
        level = sigma_to_unit(self.sigma)
        return f"correlated Gaussian, sigma {level:.3g} ({255 * level:.3g} of 255), length {self.length:.2g} pixels"

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        return x + self._filtered(streams.normal(x), 0.5)

    def variance(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.sigma**2)

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """In nats; the spectrum of a wide filter is 0 to rounding at high frequencies, where there is no density.

        Raises:
            ValueError: there is no density.
        """
        spectrum = self.spectrum(x)
        if not float(spectrum.min()) > 1e-12 * float(spectrum.max()) > 0:
            raise ValueError(
                f"sigma={self.sigma:g}, length={self.length:g}: the covariance is singular to rounding, so there is no "
                "density; take a shorter length"
            )
        residual = torch.fft.fft2(y - x, norm="ortho").abs() ** 2
        terms = residual / spectrum + (2 * math.pi * spectrum).log()
        return -0.5 * terms.flatten(1).sum(1)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        return y + self._filtered(score, 1.0)

    def spectrum(self, like: Tensor) -> Tensor:
        """Eigenvalues of ``C`` at the frequencies of ``like [B, *, H, W]``: ``[H, W]``, whose mean is ``sigma^2``.

        Raises:
            ValueError: the data are no images.
        """
        if like.ndim < 3:
            raise ValueError(
                f"CorrelatedNoise is for images [B, *, H, W], not {tuple(like.shape)}: take GaussianNoise for points"
            )
        kernel = torch.ones((), dtype=torch.float64)
        for side in like.shape[-2:]:
            place = torch.arange(side, dtype=torch.float64)
            place = torch.minimum(place, side - place)
            kernel = kernel[..., None] * torch.exp(-(place**2) / (2 * self.length**2))
        power = torch.fft.fft2(kernel).abs() ** 2
        return (self.sigma**2 * power / power.mean()).to(like)

    def _filtered(self, x: Tensor, exponent: float) -> Tensor:
        """``C^exponent x``."""
        return torch.fft.ifft2(torch.fft.fft2(x) * self.spectrum(x) ** exponent).real
