"""The sub-variance-preserving SDE with a linear beta(t)."""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import Schedule
from scoreexp.schedules.vp import VP


class SubVP(Schedule):
    r"""Continuous sub-VP schedule on ``t_min <= t <= 1``: the drift of ``VP``, never more noise than it.

    .. math:: \log \alpha = -\tfrac12 \int_0^t \beta, \quad \sigma = 1 - \alpha^2, \quad a = -\beta / 2, \quad
              g^2 = \beta (1 - e^{-2 \int_0^t \beta}), \quad \beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min}) .

    It is not variance preserving: ``alpha^2 + sigma^2 < 1`` in between, so a network relies on the
    preconditioning to see inputs of unit scale. A noise level ``r = sigma / alpha = 1 / alpha - alpha`` has
    ``log alpha = -asinh(r / 2)``. The noise starts like ``t``, not like its root: ``sigma(0.001)`` is 1.1e-4 by
    default, a hundredth of VP's; a loss in float32 is off by up to 1e-3 of itself there.

    Reference: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021, https://arxiv.org/abs/2011.13456, section 3.4 and appendix C.

    >>> round(SubVP().prior_std, 3)
    1.0

    Args:
        beta_min: beta(0), > 0, per unit of time.
        beta_max: beta(1), >= ``beta_min``, per unit of time.
        t_min: the smallest time, in (0, 1).

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self, beta_min: PositiveFloat = 0.1, beta_max: PositiveFloat = 20.0, t_min: PositiveFloat = 1e-3
    ) -> None:
        self._vp = VP(beta_min, beta_max, t_min)
        super().__init__(t_min=t_min, t_max=1.0)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._vp._log_alpha(t)

    def _drift(self, t: Tensor) -> Tensor:
        return self._vp._drift(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def _diffusion(self, t: Tensor) -> Tensor:
        return (2 * self._drift(t) * torch.expm1(4 * self._log_alpha(t))).sqrt()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return self._vp._t_of_log_alpha(-torch.asinh(ratio / 2))
