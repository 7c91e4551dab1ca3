"""The variance-exploding SDE with geometric noise levels."""

import math

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import VarianceExploding


class VE(VarianceExploding):
    r"""Geometric variance-exploding schedule on ``0 <= t <= 1``.

    .. math:: \alpha = 1, \quad \sigma(t) = \sigma_{min} (\sigma_{max} / \sigma_{min})^t, \quad
              g(t) = \sigma(t) \sqrt{2 \log (\sigma_{max} / \sigma_{min})} .

    As in the reference, ``sigma(0) = sigma_min`` rather than 0: the smallest noise level is data plus
    ``sigma_min``.

    Reference: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021, https://arxiv.org/abs/2011.13456, appendix C.

    >>> VE().at(0.5)[0]
    1.0

    Args:
        sigma_min: smallest noise level, > 0, in units of the [-1, 1] range (0.02 is the paper's 0.01 of [0,
            1]).
        sigma_max: largest noise level, > ``sigma_min``, in the same units (100 is the paper's 50 of [0, 1]).

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(self, sigma_min: PositiveFloat = 0.02, sigma_max: PositiveFloat = 100.0) -> None:
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: choose sigma_min < sigma_max")
        super().__init__(t_min=0.0, t_max=1.0)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self._log_ratio * t).exp()

    def _diffusion(self, t: Tensor) -> Tensor:
        return math.sqrt(2 * self._log_ratio) * self._sigma(t)

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_min).log() / self._log_ratio
