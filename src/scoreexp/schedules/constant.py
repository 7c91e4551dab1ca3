"""One noise level at every time."""

from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.schedules.base import VarianceExploding


class ConstantNoise(VarianceExploding):
    r"""``alpha = 1`` and ``sigma(t) = sigma`` on ``0 <= t <= 1``.

    Denoising score matching at a single noise level: a score CNN, or the score embedding of Lau, Na, Wan, whose
    perturbation is 0.1 of the [0, 1] range at every time. The noise does not grow, so the SDE with these marginals
    has ``g = 0``; a method that names another diffusion coefficient carries its own.

    Reference: K. Lau, A. Na, J. Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
    Projection", 2025, https://arxiv.org/abs/2511.17634.

    >>> ConstantNoise(0.2).sigma_range
    (0.2, 0.2)

    Args:
        sigma: noise level, > 0, in units of the [-1, 1] range (0.2 is the paper's 0.1 of [0, 1]).

    Raises:
        ValueError: if ``sigma`` is not positive.
    """

    @checked
    def __init__(self, sigma: Annotated[PositiveFloat, "0.2 for the paper's 0.1 of [0, 1]"] = 0.2) -> None:
        super().__init__(t_min=0.0, t_max=1.0)
        self.constant_sigma = sigma

    def _sigma(self, t: Tensor) -> Tensor:
        return 0 * t + self.constant_sigma

    def _diffusion(self, t: Tensor) -> Tensor:
        return 0 * t

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return torch.full_like(ratio, self.t_max)
