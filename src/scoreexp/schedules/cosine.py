"""The cosine schedule, in continuous time."""

import math
from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, OpenProbability
from scoreexp.schedules.base import VariancePreserving


class Cosine(VariancePreserving):
    r"""Cosine schedule on ``t_min <= t <= t_max``.

    .. math:: \alpha(t) = \frac{\cos \theta(t)}{\cos \theta(0)}, \quad
              \theta(t) = \frac{\pi}{2} \frac{t + s}{1 + s}, \quad \sigma^2 = 1 - \alpha^2, \quad
              g^2 = -2a = \frac{\pi}{1 + s} \tan \theta .

    At ``t = 1`` alpha is 0 and g infinite. The reference clips its last discrete beta; in continuous time the
    schedule stops before: the default ``t_max`` is the last of 1000 steps that the reference does not clip, where
    ``alpha = 0.0016``, and the default ``t_min`` a thousandth of it, the first of its 1000 steps. Near ``t_max`` a
    time rounded to float32 can have a noise level beyond the schedule's: ``t_of_sigma`` wants float64 there.

    Reference: A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672, section 3.2.

    >>> Cosine().prior_std > 0.999
    True

    Args:
        offset: ``s``, > 0, without unit: keeps the first noise levels from being too small.
        t_min: the smallest time, in (0, ``t_max``).
        t_max: the largest time, < 1.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        offset: Annotated[FinitePositiveFloat, "0.008 in the paper"] = 0.008,
        t_min: OpenProbability = 9.99e-4,
        t_max: OpenProbability = 0.999,
    ) -> None:
        if not t_min < t_max:
            raise ValueError(f"t_min={t_min}, t_max={t_max}: choose t_min < t_max")
        super().__init__(t_min=t_min, t_max=t_max)
        self._rate = 0.5 * math.pi / (1 + offset)  # d theta / dt
        self._start = self._rate * offset  # theta(0)

    def _log_alpha(self, t: Tensor) -> Tensor:
        # 1 - cos(theta) / cos(theta_0) by the addition theorem, without cancellation at small t
        turn = self._rate * t
        loss = 2 * (turn / 2).sin() ** 2 + turn.sin() * math.tan(self._start)
        return torch.log1p(-loss)

    def _drift(self, t: Tensor) -> Tensor:
        return -self._rate * (self._start + self._rate * t).tan()

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # the arc tangent, because the arc cosine loses half of the digits at small angles
        cos_start, sin_start = math.cos(self._start), math.sin(self._start)
        sin = (sin_start**2 - cos_start**2 * torch.expm1(2 * log_alpha)).sqrt()
        return (torch.atan2(sin, cos_start * log_alpha.exp()) - self._start) / self._rate
