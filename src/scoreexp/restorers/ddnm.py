r"""The denoising diffusion null-space model: what the data say replaces the estimate on the range of the pseudo-inverse.

Without noise, at each time t with the next time s:

1. ``x0_hat = D(x_t, t)``, ``eps_hat = (x_t - alpha_t x0_hat) / sigma_t``;
2. ``x0' = x0_hat + A^+ (y - A x0_hat)``, which has ``A x0' = y``;
3. ``x_s = alpha_s x0' + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)``.

With noise of level ``sigma_y`` the correction brings noise of level ``n_i = alpha_s sigma_y / s_i`` along each singular
direction into ``x_s``, which must have noise of level ``sigma_s`` in all. Where ``n_i <= sigma_s`` it is taken whole and
fresh noise of level ``sqrt(sigma_s^2 - n_i^2)`` is added; elsewhere the correction is weighted by
``lambda_i = sqrt(1 - eta^2) sigma_s / n_i``, so that its noise takes the place of ``eps_hat``, beside ``eta sigma_s z``.
Directions that are not measured are those of step 3. At the last time, where nothing is added, the weight is that of the
posterior mean with the estimate's own error ``r = sigma_t / sqrt(alpha_t^2 + sigma_t^2)``:
``lambda_i = s_i^2 r^2 / (s_i^2 r^2 + sigma_y^2)``.

Directions whose singular value is below a share ``cutoff`` of the largest count as not measured, as in the authors' program
for blurs: ``1 / s_i`` would make an image of the noise of y, or of its rounding, the more so the more steps there are.

Reference: Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
https://arxiv.org/abs/2212.00490, algorithms 1 and 2; its last step takes the estimate without the data.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import Probability, ProbabilityBelowOne
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.observations.operators import SVD
from scoreexp.restorers.chain import Chain, Problem, renoised
from scoreexp.restorers.proximal import known_svd
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
        eta: share of fresh noise, in [0, 1] (0.85 in the paper).
        cutoff: singular values below this share of the largest count as 0 (0.03 in the authors' program), in [0, 1); of
            operators whose decomposition is known.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the operator has no pseudo-inverse, or where ``y`` has
            noise, no decomposition.
    """

    @checked
    def __init__(self, grid: TimeGrid, eta: Probability = 0.85, cutoff: ProbabilityBelowOne = 0.03) -> None:
        super().__init__(grid)
        self.eta, self.cutoff = eta, cutoff

    def prepare(self, problem: Problem) -> "_Inverse | tuple[SVD, Tensor]":
        if problem.sigma_y == 0:
            return self._inverse(problem)
        svd = self._cut(problem.operator.svd(problem.y))
        return svd, svd.ut(problem.y)

    def _cut(self, svd: SVD) -> SVD:
        """The decomposition without small singular values."""
        kept = svd.singular >= self.cutoff * svd.singular.max()
        return svd._replace(singular=torch.where(kept, svd.singular, 0))

    def _inverse(self, problem: Problem) -> "_Inverse":
        """``A^+``, without small singular values where they are known and there are any."""
        found = known_svd(problem.operator, problem.y)
        svd = None if found is None else self._cut(found)
        if found is None or svd is None or bool((svd.measured == found.measured).all()):
            return _Inverse(problem.operator.pinv, problem.operator.pinv(problem.y))

        def pinv(y: Tensor) -> Tensor:
            return svd.v(torch.where(svd.measured, svd.ut(y) / torch.where(svd.measured, svd.singular, 1), 0))

        return _Inverse(pinv, pinv(problem.y))

    def step(
        self,
        problem: Problem,
        x_t: Tensor,
        t: float,
        s: float | None,
        prepared: "_Inverse | tuple[SVD, Tensor]",
    ) -> tuple[Tensor, Tensor]:
        x0_hat = problem.denoise(x_t, t)
        eps_hat = eps_from_x0(x0_hat, x_t, *problem.schedule.at(t))
        if isinstance(prepared, _Inverse):
            x_0 = x0_hat + prepared.of_data - prepared.pinv(problem.operator(x0_hat))
            return x_0, x_0 if s is None else renoised(problem, x_0, eps_hat, s, self.eta**2)
        svd, seen = prepared
        weights = self._weights(problem, svd, t, s)
        c = svd.vt(x0_hat)
        difference = torch.where(svd.measured, seen / weights.divisor - c, 0)
        x_0 = svd.v(c + weights.data * difference)
        if s is None:
            return x_0, x_0
        noise = weights.kept * svd.vt(eps_hat) + weights.fresh * svd.vt(problem.streams.normal(x_t))
        return x_0, problem.schedule.at(s)[0] * x_0 + svd.v(noise)

    def _weights(self, problem: Problem, svd: SVD, t: float, s: float | None) -> "_Weights":
        singular, seen = svd.singular, svd.measured
        divisor = torch.where(seen, singular, 1)
        if s is None:
            alpha, sigma = problem.schedule.at(t)
            r2 = sigma**2 / (alpha**2 + sigma**2)
            data = singular**2 * r2 / (singular**2 * r2 + problem.sigma_y**2)
            return _Weights(data, 0 * singular, 0 * singular, divisor)
        alpha, sigma = problem.schedule.at(s)
        brought = alpha * problem.sigma_y / divisor
        is_whole, share = brought <= sigma, (1 - self.eta**2) ** 0.5
        data = torch.where(is_whole, 1, share * sigma / brought)
        fresh = torch.where(seen & is_whole, (sigma**2 - brought**2).clamp(min=0).sqrt(), self.eta * sigma)
        return _Weights(data, share * sigma * (~seen).to(fresh), fresh, divisor)


class _Inverse(NamedTuple):
    """``A^+``, and that of the data."""

    pinv: Callable[[Tensor], Tensor]
    of_data: Tensor


class _Weights(NamedTuple):
    """By singular direction: of the correction, of ``eps_hat``, of the fresh noise, and the singular value or 1."""

    data: Tensor
    kept: Tensor
    fresh: Tensor
    divisor: Tensor
