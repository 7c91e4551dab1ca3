"""The Ornstein-Uhlenbeck process whose noise explodes, for the residual of an observation."""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import Schedule


class OUVE(Schedule):
    r"""The process whose mean moves from clean data ``x_0`` to an observation ``y`` (SGMSE+), on ``t_min <= t <= 1``:

    .. math:: dx = \theta (y - x) dt + g dW, \quad g = \sigma_{min} q^t \sqrt{2 \log q}, \quad
              q = \sigma_{max} / \sigma_{min} .

    It is a diffusion of the residual ``u = x - y``, and as that it stands here, without ``y``:

    .. math:: du = -\theta u\, dt + g\, dW, \quad \alpha = e^{-\theta t}, \quad
              \sigma^2 = \sigma_{min}^2 \frac{\log q}{\theta + \log q} \left(q^{2t} - e^{-2 \theta t}\right) .

    ``x_t = u_t + y`` then has the mean ``alpha x_0 + (1 - alpha) y``. See ``ResidualScoreMatching`` for training and
    ``Conditioned`` for drawing. At ``t = 1`` the share ``exp(-theta)`` of the residual is left, which the prior
    ``u ~ N(0, sigma^2)`` of the paper leaves out: a larger theta or ``sigma_max`` makes that error small.

    Reference: J. Richter, S. Welker, J.-M. Lemercier, B. Lay, T. Gerkmann, "Speech Enhancement and Dereverberation with
    Diffusion-Based Generative Models", 2023, https://arxiv.org/abs/2208.05830, section III.

    >>> tuple(round(x, 4) for x in OUVE().at(1.0))
    (0.2231, 0.389)

    Args:
        theta: stiffness with which the mean moves to ``y``, > 0 (1.5 in the paper).
        sigma_min: > 0, in the units of the data.
        sigma_max: > ``sigma_min``, in the same units.
        t_min: the smallest time, in (0, 1), because ``sigma(0) = 0``.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        theta: PositiveFloat = 1.5,
        sigma_min: PositiveFloat = 0.05,
        sigma_max: PositiveFloat = 0.5,
        t_min: PositiveFloat = 0.03,
    ) -> None:
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: choose sigma_min < sigma_max")
        super().__init__(t_min=t_min, t_max=1.0)
        self.theta, self.sigma_min, self.sigma_max = theta, sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)
        self._rate = theta + self._log_ratio
        self._scale = sigma_min * math.sqrt(self._log_ratio / self._rate)  # of sigma / alpha

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -self.theta * t

    def _sigma(self, t: Tensor) -> Tensor:
        return self._scale * self._log_alpha(t).exp() * torch.expm1(2 * self._rate * t).sqrt()

    def _drift(self, t: Tensor) -> Tensor:
        return -self.theta + 0 * t  # differentiable in t

    def _diffusion(self, t: Tensor) -> Tensor:
        return math.sqrt(2 * self._log_ratio) * self.sigma_min * (self._log_ratio * t).exp()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return torch.log1p((ratio / self._scale) ** 2) / (2 * self._rate)
