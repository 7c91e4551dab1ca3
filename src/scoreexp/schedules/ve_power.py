"""The variance-exploding SDE whose diffusion coefficient is a power."""

import math
from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import VarianceExploding


class VEPower(VarianceExploding):
    r"""Variance-exploding schedule with ``g = c s^t`` on ``t_min <= t <= 1``.

    .. math:: \alpha = 1, \quad g(t) = c\, s^t, \quad \sigma(t)^2 = c^2 \frac{s^{2t} - 1}{2 \ln s} .

    Reference: Na, Gao, Briazkalo, Wan, "Efficient Denoising using Score Embedding in Score-based
    Diffusion Models", 2024, https://arxiv.org/abs/2404.06661 (with c = 1 for images in [0, 1]).

    >>> VEPower().at(0.5)[0]
    1.0

    Args:
        sigma: the base ``s``, > 1, without unit (the paper: 5 for CIFAR-10, 2 for CelebA).
        scale: ``c``, > 0, in units of the [-1, 1] range (2 is the paper's 1 of [0, 1]).
        t_min: the smallest time, in (0, 1).

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        sigma: Annotated[float, (">", 1), "the noise grows with t"] = 5.0,
        scale: Annotated[PositiveFloat, "2 for the paper's figures"] = 2.0,
        t_min: PositiveFloat = 1e-3,
    ) -> None:
        super().__init__(t_min=t_min, t_max=1.0)
        self.base = sigma
        self.scale = scale
        self._log_base = math.log(sigma)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.scale * (torch.expm1(2 * self._log_base * t) / (2 * self._log_base)).sqrt()

    def _diffusion(self, t: Tensor) -> Tensor:
        return self.scale * (self._log_base * t).exp()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return torch.log1p(2 * self._log_base * (ratio / self.scale) ** 2) / (2 * self._log_base)
