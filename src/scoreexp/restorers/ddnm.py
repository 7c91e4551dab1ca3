r"""The denoising diffusion null-space model: what the data say replaces the estimate on the range of the pseudo-inverse.

Without noise, at each time t with the next time s:

1. ``x0_hat = D(x_t, t)``, ``eps_hat = (x_t - alpha_t x0_hat) / sigma_t``;
2. ``x0' = x0_hat + A^+ (y - A x0_hat)``, which has ``A x0' = y``;
3. ``x_s = alpha_s x0' + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)``.

With noise of level ``sigma_y`` the correction would bring noise of level ``alpha_s sigma_y / s_i`` along each singular
direction into ``x_s``. It may replace fresh noise, not exceed it: with ``n_i = alpha_s sigma_y / s_i`` and the fresh noise
``f = eta sigma_s`` the correction is weighted by ``lambda_i = min(1, f / n_i)`` and the fresh noise of the direction is
reduced to ``sqrt(f^2 - lambda_i^2 n_i^2)``, so ``x_s`` keeps noise of level ``sigma_s``. At the last time, where nothing is
added, the weight is that of the posterior mean with the estimate's own error ``r = sigma_t / sqrt(alpha_t^2 + sigma_t^2)``:
``lambda_i = s_i^2 r^2 / (s_i^2 r^2 + sigma_y^2)``.

Reference: Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
https://arxiv.org/abs/2212.00490, algorithms 1 and 2; its weights for noise differ in the share of fresh noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import Probability
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.observations.operators import SVD
from scoreexp.restorers.chain import Chain, Problem, renoised
from scoreexp.samplers.grids import TimeGrid


class DDNM(Chain):
    """See the module's formulas. For operators whose pseudo-inverse is known, with noise also their decomposition.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Observation, RandomMask
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())
    >>> mask = RandomMask(size=4)
    >>> observation = Observation(torch.ones(1, 1, 8), mask, GaussianNoise(0.0))
    >>> restored = DDNM(UniformGrid(10))(observation, model, streams=ImageStreams([0]))
    >>> bool((mask(restored.x) - 1).abs().max() < 1e-6)
    True

    Args:
        grid: the times visited.
        eta: share of fresh noise, in [0, 1] (0.85 in the paper); > 0 where ``y`` has noise.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the operator has no pseudo-inverse, or where ``y`` has
            noise, no decomposition, or eta is 0.
    """

    @checked
    def __init__(self, grid: TimeGrid, eta: Probability = 0.85) -> None:
        super().__init__(grid)
        self.eta = eta

    def prepare(self, problem: Problem) -> Tensor | tuple[SVD, Tensor]:
        if problem.sigma_y == 0:
            return problem.operator.pinv(problem.y)
        if self.eta == 0:
            raise ValueError(
                f"eta=0: DDNM lets the noise of y, {problem.sigma_y:g}, take the place of fresh noise, and without any it "
                "would not use y: choose eta > 0"
            )
        svd = problem.operator.svd(problem.y)
        return svd, svd.ut(problem.y)

    def step(
        self,
        problem: Problem,
        x_t: Tensor,
        t: float,
        s: float | None,
        prepared: Tensor | tuple[SVD, Tensor],
    ) -> tuple[Tensor, Tensor]:
        x0_hat = problem.denoise(x_t, t)
        eps_hat = eps_from_x0(x0_hat, x_t, *problem.schedule.at(t))
        if isinstance(prepared, Tensor):
            x_0 = x0_hat + prepared - problem.operator.pinv(problem.operator(x0_hat))
            return x_0, x_0 if s is None else renoised(problem, x_0, eps_hat, s, self.eta**2)
        svd, seen = prepared
        weights = self._weights(problem, svd, t, s)
        c = svd.vt(x0_hat)
        difference = torch.where(svd.measured, seen / weights.divisor - c, 0)
        x_0 = svd.v(c + weights.data * difference)
        if s is None:
            return x_0, x_0
        alpha_s, sigma_s = problem.schedule.at(s)
        x_s = alpha_s * x_0 + sigma_s * (1 - self.eta**2) ** 0.5 * eps_hat
        return x_0, x_s + svd.v(weights.fresh * svd.vt(problem.streams.normal(x_t)))

    def _weights(self, problem: Problem, svd: SVD, t: float, s: float | None) -> "_Weights":
        singular = svd.singular
        divisor = torch.where(svd.measured, singular, 1)
        if s is None:
            alpha, sigma = problem.schedule.at(t)
            r2 = sigma**2 / (alpha**2 + sigma**2)
            return _Weights(singular**2 * r2 / (singular**2 * r2 + problem.sigma_y**2), 0 * singular, divisor)
        alpha_s, sigma_s = problem.schedule.at(s)
        brought, fresh = alpha_s * problem.sigma_y / divisor, self.eta * sigma_s
        data = (fresh / brought).clamp(max=1)
        kept = (fresh**2 - (data * brought) ** 2).clamp(min=0).sqrt()
        return _Weights(data, torch.where(svd.measured, kept, fresh), divisor)


class _Weights(NamedTuple):
    """By singular direction: of the correction, of the fresh noise, and the singular value or 1."""

    data: Tensor
    fresh: Tensor
    divisor: Tensor
