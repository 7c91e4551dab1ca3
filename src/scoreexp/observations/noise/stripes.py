r"""Stripes: an offset for each line of an image beside another noise, as of the elements of a line scanner.

.. math:: y = y' + s 1^T, \quad s_j \sim N(0, \sigma_c^2) \text{ for each line of channel } c, \qquad
          \mathrm{Var}[y | x] = \mathrm{Var}[y' | x] + \sigma_c^2 .

**Estimate from the image.** The mean ``m_j`` of line ``j`` is a profile of the image plus offsets of variance
``q = sigma_c^2 + v / H``, where ``v`` is that of the other noise and ``H`` the length of a line. The profile is a random
walk, or the sum of one (``d = 1, 2``), with steps of variance ``tau^2``. The cosine transform of ``m`` has independent
coefficients, of variance ``q + tau^2 / (2 - 2 cos(pi k / W))^d`` for ``k > 0``, so ``q``, ``tau`` and ``d`` follow by
maximum likelihood and the offsets by a linear filter. Where the likelihood hardly rises with it ``tau`` is 0: the offsets of
a constant image are found exactly, up to their mean, which no image can tell from its brightness. Edges along the lines are
steps that a random walk does not have: where an image has many, they are taken for stripes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat
from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.correlated import CorrelatedNoise
from scoreexp.observations.noise.lines import Axis, Lines, log_density, per_channel, require_lines

RATIOS = np.concatenate([[0.0], np.logspace(-6, 6, 97)])  # tau^2 / q
NEEDED = 9.0  # of twice the logarithm of the likelihood, that the profile must raise
FEWEST = 8  # lines


class StripeNoise(NoiseModel):
    """See the module's formula.

    ``log_likelihood`` is that of a Gaussian of the same mean and covariance, exact where the other noise is Gaussian;
    ``posterior_mean`` adds ``sigma_c^2`` times the sum of the score over the line to that of the other noise.

    >>> from scoreexp.observations.noise.gaussian import GaussianNoise
    >>> y = StripeNoise(GaussianNoise(0.0), sigma=0.1).sample(torch.zeros(1, 1, 8, 8), ImageStreams([0]))
    >>> bool((y == y[..., :1, :]).all())
    True

    Args:
        noise: the other noise.
        sigma: ``sigma_c``, >= 0, in the units of the model ([-1, 1]), or one for each channel (band).
        axis: the lines that have offsets.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the data are no images, have another number of channels
            than ``sigma``, or, for the likelihood, the other noise is correlated too.
    """

    @checked
    def __init__(
        self,
        noise: NoiseModel,
        sigma: Annotated[float, (">=", 0), ("<", 1e999)] | Sequence[FiniteNonNegativeFloat],
        axis: Axis = "columns",
    ) -> None:
        self.noise, self.axis = noise, axis
        self.sigma = float(sigma) if isinstance(sigma, int | float) else tuple(float(part) for part in sigma)

    def __str__(self) -> str:
        levels = [self.sigma] if isinstance(self.sigma, float) else self.sigma
        said = ", ".join(f"{sigma_to_unit(level):.3g}" for level in levels)
        return f"{self.noise}, {self.axis} of sigma {said}"

    def parameters(self) -> dict[str, float]:
        of_noise = {f"noise.{name}": value for name, value in self.noise.parameters().items()}
        return {**super().parameters(), **of_noise}

    @property
    def lines(self) -> Lines:
        return Lines(self.sigma, self.axis, self.noise)

    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        require_lines(x, "StripeNoise")
        y = self.noise.sample(x, streams)
        one = x[..., :1] if self.axis == "rows" else x[..., :1, :]
        return y + per_channel(self.sigma, x, "sigma") * streams.normal(one)

    def variance(self, x: Tensor) -> Tensor:
        return self.noise.variance(x) + per_channel(self.sigma, x, "sigma") ** 2

    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        require_lines(x, "StripeNoise")
        if self.noise.lines is not None or isinstance(self.noise, CorrelatedNoise):
            raise ValueError(
                f"StripeNoise around {type(self.noise).__name__}, whose pixels are not independent, has no likelihood: "
                "take a noise of independent pixels within"
            )
        residual, variance = y - x, self.noise.variance(x)
        if self.axis == "columns":
            residual, variance = residual.mT, variance.mT
        return log_density(residual, variance, per_channel(self.sigma, x, "sigma") ** 2)

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        shared = score.sum(-1 if self.axis == "rows" else -2, keepdim=True)
        return self.noise.posterior_mean(y, score) + per_channel(self.sigma, y, "sigma") ** 2 * shared


class StripeEstimate(NamedTuple):
    """Stripes of one image.

    Attributes:
        sigma: standard deviation for each channel.
        offsets: of each line, ``[C, 1, W]`` of columns, ``[C, H, 1]`` of rows; their mean is 0.
    """

    sigma: tuple[float, ...]
    offsets: Tensor


@checked
def estimate_stripes(
    y: Tensor,
    axis: Axis = "columns",
    *,
    variance: FiniteNonNegativeFloat = 0.0,
    sigma: float | Sequence[float] | None = None,
) -> StripeEstimate:
    """The stripes of one image, see the module.

    >>> y = torch.tensor([0.1, -0.2, 0.0, 0.3, -0.1, 0.0, -0.2, 0.1]).expand(1, 5, 8)  # of a constant image
    >>> torch.allclose(estimate_stripes(y).offsets, y[:, :1], atol=1e-6)
    True

    Args:
        y: the image ``[C, H, W]``.
        axis: the lines.
        variance: of the other noise.
        sigma: of the offsets where it is known, or one for each channel; None finds it.

    Raises:
        ValueError: ``y`` is no image, or has fewer than 8 lines.
    """
    if y.ndim != 3 or y.shape[-1 if axis == "columns" else -2] < FEWEST:
        raise ValueError(
            f"y has shape {tuple(y.shape)}: give an image [C, H, W] with at least {FEWEST} {axis}"
        )
    means = y.detach().double().mean(-2 if axis == "columns" else -1).cpu().numpy()
    of_mean = variance / y.shape[-2 if axis == "columns" else -1]
    given = [sigma] * len(means) if sigma is None or isinstance(sigma, int | float) else list(sigma)
    if len(given) != len(means):
        raise ValueError(
            f"sigma has {len(given)} values for {len(means)} channels: give one number or as many"
        )
    found = [_of_profile(m, of_mean, s) for m, s in zip(means, given, strict=True)]
    offsets = torch.from_numpy(np.stack([part for _, part in found])).to(y)
    return StripeEstimate(
        tuple(level for level, _ in found), offsets[:, None] if axis == "columns" else offsets[..., None]
    )


def _of_profile(means: np.ndarray, of_mean: float, sigma: float | None) -> tuple[float, np.ndarray]:
    """Standard deviation and values of the offsets in one profile ``m[W]``."""
    count = len(means)
    mirrored = np.fft.rfft(
        np.concatenate([means, means[::-1]])
    )  # as the cosine transform, its last entry is 0
    squares = np.abs(mirrored[1:count]) ** 2 / (2 * count)
    known = None if sigma is None else sigma**2 + of_mean
    best = (math.inf, 0.0, np.ones(count - 1))
    for order in (1, 2):
        walk = (2 - 2 * np.cos(np.pi * np.arange(1, count) / count)) ** -order
        for ratio in RATIOS:
            spread = 1 + ratio * walk
            q = max(float((squares / spread).mean()) if known is None else known, of_mean, 1e-300)
            cost = float((squares / spread).sum()) / q + np.log(spread).sum() + (count - 1) * math.log(q)
            cost += NEEDED * (ratio > 0)
            if cost < best[0]:
                best = (cost, q, spread)
    _, q, spread = best
    level = max(q - of_mean, 0.0)
    share = np.zeros(count + 1)
    share[1:count] = (level / q) / spread
    return math.sqrt(level), np.fft.irfft(share * mirrored)[:count]
