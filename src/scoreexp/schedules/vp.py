"""The variance-preserving SDE with a linear beta(t)."""

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import VariancePreserving


class VP(VariancePreserving):
    r"""Continuous variance-preserving schedule on ``t_min <= t <= 1``.

    .. math:: \beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min}), \quad
              \log \alpha = -\tfrac12 \int_0^t \beta, \quad \sigma^2 = 1 - \alpha^2, \quad
              a = -\beta / 2, \quad g^2 = \beta .

    Reference: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021, https://arxiv.org/abs/2011.13456, appendix C.

    >>> round(VP().at(0.5)[0], 3)
    0.281

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
        if not beta_min <= beta_max:
            raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: choose beta_min <= beta_max")
        super().__init__(t_min=t_min, t_max=1.0)
        self.beta_min = beta_min
        self.beta_max = beta_max

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def _drift(self, t: Tensor) -> Tensor:
        return -0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t)

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # the root of the quadratic in the form without cancellation
        integral, slope = -2 * log_alpha, self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
