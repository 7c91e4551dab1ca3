"""The schedule of EDM: time is the noise level."""

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveFloat
from scoreexp.schedules.base import VarianceExploding


class EDM(VarianceExploding):
    r"""``alpha = 1``, ``sigma(t) = t`` and ``g = sqrt(2 t)`` on ``sigma_min <= t <= sigma_max``.

    The solution curves of its probability-flow ODE are nearly straight. Times spread over five decades, so it wants
    a law of training times and a grid of sampling times that are uniform in a power or the logarithm of the noise
    level (``LogNormalNoise``), not in ``t``.

    Reference: T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
    Models", 2022, https://arxiv.org/abs/2206.00364, section 3 and table 1.

    >>> EDM().sigma_range
    (0.002, 80.0)

    Args:
        sigma_min: smallest noise level, > 0, in units of the [-1, 1] range.
        sigma_max: largest noise level, > ``sigma_min``, in the same units.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(self, sigma_min: PositiveFloat = 0.002, sigma_max: FinitePositiveFloat = 80.0) -> None:
        if not sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: choose sigma_min < sigma_max")
        super().__init__(t_min=sigma_min, t_max=sigma_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _diffusion(self, t: Tensor) -> Tensor:
        return (2 * t).sqrt()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return ratio
