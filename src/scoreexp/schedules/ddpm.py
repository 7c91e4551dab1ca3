"""The discrete betas of DDPM, read as a continuous schedule."""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, OpenProbability
from scoreexp.schedules.base import VariancePreserving

# of one step: a time n/T that was rounded belongs to the step that ends there, not to the next one
_KNOT_TOLERANCE = 1e-4


class DDPM(VariancePreserving):
    r"""The linear betas of DDPM on ``1/T <= t <= 1``, with step ``n`` at time ``n/T``.

    .. math:: \beta_n = \beta_{start} + \frac{n-1}{T-1} (\beta_{end} - \beta_{start}), \quad
              \alpha(n/T)^2 = \bar\alpha_n = \prod_{i \le n} (1 - \beta_i), \quad \sigma^2 = 1 - \alpha^2 .

    Between the knots ``log alpha`` is linear in ``t``, so drift ``a = (T/2) log(1 - beta_n)`` and
    ``g^2 = -2a`` are constant on each step ``((n-1)/T, n/T]`` and the SDE has exactly Ho et al.'s marginals
    at the knots.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, section 4.

    >>> tuple(round(x, 4) for x in DDPM().at(1e-3))
    (0.9999, 0.01)

    Args:
        beta_start: variance of the first step, in (0, 1).
        beta_end: variance of the last step, in (0, 1).
        steps: number of steps ``T``, >= 2.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self, beta_start: OpenProbability = 1e-4, beta_end: OpenProbability = 0.02, steps: AtLeastTwo = 1000
    ) -> None:
        super().__init__(t_min=1 / steps, t_max=1.0)
        self.steps = steps
        self.betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self._step_log_alpha = 0.5 * torch.log1p(-self.betas)
        self._knots = torch.cat([torch.zeros(1, dtype=torch.float64), self._step_log_alpha.cumsum(0)])

    def _log_alpha(self, t: Tensor) -> Tensor:
        n = self._step(t)
        return self._knots[n] + (self.steps * t - n) * self._step_log_alpha[n - 1]

    def _drift(self, t: Tensor) -> Tensor:
        # 0 * t: constant on each step, yet differentiable in t
        return self.steps * self._step_log_alpha[self._step(t) - 1] + 0 * t

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        n = torch.searchsorted(-self._knots, -log_alpha).clamp(1, self.steps)
        return (n + (log_alpha - self._knots[n]) / self._step_log_alpha[n - 1]) / self.steps

    def _step(self, t: Tensor) -> Tensor:
        return torch.ceil(self.steps * t.detach() - _KNOT_TOLERANCE).long().clamp(1, self.steps)
