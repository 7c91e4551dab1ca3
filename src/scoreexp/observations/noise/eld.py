r"""The noise of a raw sensor, from its physics: photons, read-out with long tails, rows, and rounding to steps.

With ``u = x + 1 >= 0``, twice the intensity, and the gain ``K`` (what one electron adds to ``y``),

.. math:: y + 1 = K n + e + r 1^T + q + \mu, \quad n \sim \mathrm{Poisson}(u / K), \quad
          e \sim \mathrm{TukeyLambda}(\lambda), \quad r \sim N(0, s_r^2), \quad q \sim U(-\delta/2, \delta/2),

.. math:: E[y | x] = x + \mu, \qquad \mathrm{Var}[y | x] = K u + \sigma^2 + s_r^2 + \delta^2 / 12 .

The quantile function of the Tukey-lambda law is ``(p^lambda - (1 - p)^lambda) / lambda``: nearly normal at 0.14, logistic
at 0, with tails that are the longer the smaller ``lambda``; it is scaled to the standard deviation ``sigma``. ``mu`` is an
error of the black level, one for each channel (colour bias). ``y`` is not clipped.

``log_likelihood`` and ``posterior_mean`` are those of a Gaussian of the same mean and covariance, the rows' included:
neither the tails nor the skewness of few photons are in them. ``stabilise`` takes the rows for noise of each pixel, and its
inverse is unbiased under the whole law; ``lines`` lets a restorer remove the rows before.

Reference: K. Wei, Y. Fu, Y. Zheng, J. Yang, "Physics-based Noise Modeling for Extreme Low-light Photography", 2021,
https://arxiv.org/abs/2108.02158.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat
from scoreexp.observations.noise.anscombe import Anscombe, normal_law, sum_law
from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.lines import Lines, log_density, per_channel, require_lines
from scoreexp.observations.noise.poisson import BRIGHTEST, intensity

TukeyShape = Annotated[float, (">", -0.5), ("<=", 1)]  # finite variance; 1 is the uniform law
FARTHEST = 38.0  # of a normal variable, whose probability is still a number
NODES, NODES_OF_ROWS, NODES_OF_STEPS = 161, 15, 5


class ELDNoise(NoiseModel):
    """See the module's formulas.

    >>> noise = ELDNoise(gain=0.02, sigma=0.02, shape=-0.1, row=0.005, step=2 / 1023)
    >>> noise.sample(torch.zeros(1, 4, 8, 8), ImageStreams([0])).shape
    torch.Size([1, 4, 8, 8])
    >>> print(noise)
    raw sensor, 100 electrons at white, read-out sigma 0.01 of shape -0.1, rows 0.0025

    Args:
        gain: ``K``, > 0, in the units of the model ([-1, 1]): ``2 / K`` electrons make white.
        sigma: standard deviation of the read-out noise, > 0, in the same units, as all that follow.
        shape: ``lambda`` of the read-out noise, in (-0.5, 1].
        row: ``s_r``, >= 0.
        step: ``delta``, >= 0, such as ``2 / 1023`` for 10 bits.
        bias: ``mu``, or one for each channel.

    Raises:
        ValueError: a parameter is outside its domain; on a call, an intensity is negative, the data are no images where
            ``row`` is not 0, or have another number of channels than ``bias``.
    """

    @checked
    def __init__(
        self,
        gain: FinitePositiveFloat,
        sigma: FinitePositiveFloat,
        shape: TukeyShape = 0.14,
        row: FiniteNonNegativeFloat = 0.0,
        step: FiniteNonNegativeFloat = 0.0,
        bias: float | Sequence[float] = 0.0,
    ) -> None:
        self.gain, self.sigma, self.shape = float(gain), float(sigma), float(shape)
        self.row, self.step = float(row), float(step)
        self.bias = float(bias) if isinstance(bias, int | float) else tuple(float(part) for part in bias)
        self._scale = self.sigma / tukey_deviation(self.shape)

    def __str__(self) -> str:
        rows = f", rows {sigma_to_unit(self.row):.3g}" if self.row else ""
        return (
            f"raw sensor, {2 / self.gain:.3g} electrons at white, read-out sigma {sigma_to_unit(self.sigma):.3g} of shape "
            f"{self.shape:.3g}{rows}"
        )

    @property
    def lines(self) -> Lines | None:
        if not self.row:
            return None
        return Lines(self.row, "rows", ELDNoise(self.gain, self.sigma, self.shape, 0.0, self.step, self.bias))

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        photons = streams.poisson(2 / self.gain * intensity(x))
        y = self.gain * photons - 1 + per_channel(self.bias, x, "bias")
        y = y + self._scale * tukey_quantile(streams.normal(x), self.shape)
        if self.row:
            require_lines(x, "the row noise of ELDNoise")
            y = y + self.row * streams.normal(x[..., :1])
        return y + self.step * (torch.special.ndtr(streams.normal(x)) - 0.5) if self.step else y

    def variance(self, x: Tensor) -> Tensor:
        return self._of_pixels(x) + self.row**2

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        residual = y - x - per_channel(self.bias, x, "bias")
        if x.ndim < 3 or not self.row:
            return (
                torch.distributions.Normal(0.0, self.variance(x).sqrt()).log_prob(residual).flatten(1).sum(1)
            )
        return log_density(residual, self._of_pixels(x), self.row**2)

    def of_mean(self, count: int) -> NoiseModel:
        """Of the same mean and variance, with read-out noise that is nearly normal, as means are, and holds the rounding.

        Raises:
            ValueError: rows share noise, so that of neighbours is not independent.
        """
        if self.row:
            return super().of_mean(count)
        sigma = ((self.sigma**2 + self.step**2 / 12) / count) ** 0.5
        return ELDNoise(self.gain / count, sigma, bias=self.bias)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        x = y - per_channel(self.bias, y, "bias")
        x = x + self._of_pixels(x.clamp(min=-1)) * score
        return x + self.row**2 * score.sum(-1, keepdim=True) if self.row else x

    def stabilise(self, y: Tensor) -> Tensor:
        """Values without channels are taken as free of a colour bias."""
        bias = per_channel(self.bias, y, "bias") if y.ndim > 2 or isinstance(self.bias, float) else 0.0
        return self._transform((y - bias + 1) / self.gain)

    def unstabilise(self, z: Tensor) -> Tensor:
        return self.gain * self._transform.back(z) - 1

    def _of_pixels(self, x: Tensor) -> Tensor:
        """The variance without the rows."""
        return 2 * self.gain * intensity(x) + self.sigma**2 + self.step**2 / 12

    @cached_property
    def _transform(self) -> Anscombe:
        reading = math.sqrt(self.sigma**2 + self.row**2 + self.step**2 / 12)
        return Anscombe(BRIGHTEST * 2 / self.gain, reading / self.gain, self._reading_law)

    def _reading_law(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of read-out, row and rounding noise together, in units of their standard deviation."""
        z = torch.linspace(-10, 10, NODES, dtype=torch.float64)
        weights = torch.exp(-(z**2) / 2)
        rows, of_rows = normal_law(NODES_OF_ROWS if self.row else 1)
        count = NODES_OF_STEPS if self.step else 1
        steps = (torch.arange(count, dtype=torch.float64) + 0.5) / count - 0.5
        return sum_law([
            (self._scale * tukey_quantile(z, self.shape), weights / weights.sum()),
            (self.row * rows, of_rows),
            (self.step * steps, torch.full_like(steps, 1 / count)),
        ])  # fmt: skip


def tukey_quantile(z: Tensor, shape: float) -> Tensor:
    """The Tukey-lambda quantile of the probability at which a standard normal variable has the quantile ``z``.

    >>> tukey_quantile(torch.tensor([0.0]), 0.14)
    tensor([0.])

    Args:
        z: any shape; a standard normal draw gives a draw of the law.
        shape: ``lambda``.
    """
    below, above = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
    if shape == 0:
        return below - above
    return ((shape * below).expm1() - (shape * above).expm1()) / shape


def tukey_deviation(shape: float) -> float:
    """Standard deviation of the Tukey-lambda law.

    >>> round(tukey_deviation(0.0) ** 2 * 3 / math.pi**2, 6)  # logistic
    1.0
    """
    z = torch.linspace(-FARTHEST, FARTHEST, 1521, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2)
    return float((density @ tukey_quantile(z, shape) ** 2 / density.sum()).sqrt())
