r"""What the network predicts, as four coefficients.

Every parameterisation of the denoiser is

.. math:: \hat x_0 = c_{skip} x_t + c_{out} F(c_{in} x_t, c_{noise}),

so the network ``F`` sees an input of about unit variance and the noise level
``c_noise = log(sigma / alpha) / 4`` (about -2.5 to 1.5), never a raw scale. The classes differ in what ``F``
stands for. For data of unit variance ``c_in = 1 / sqrt(alpha^2 + sigma^2)``, which is 1 for
variance-preserving schedules.

Where ``alpha`` is 0 the noise level is infinite. Levels beyond 1e4, at which data of unit scale are a ten-thousandth
of the input, are one level: ``c_noise`` ends at 2.3. ``F`` must be able to state ``x_0`` there by itself, which
``x_0``, ``v`` and EDM's output are and the noise is not: it is ``x_t / sigma``, whatever ``x_0``.

References:
    T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the Design Space of Diffusion-Based Generative
    Models", 2022, https://arxiv.org/abs/2206.00364, section 5 and table 1.
"""

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat


class Coefficients(NamedTuple):
    """``x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise)``; each ``[B]``.

    >>> alpha, sigma = torch.tensor([0.8]), torch.tensor([0.6])
    >>> c = EpsPrediction()(alpha, sigma)
    >>> x_t, eps = alpha * 1.0 + sigma * 0.5, 0.5
    >>> c.c_skip * x_t + c.c_out * eps
    tensor([1.])
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioning(ABC):
    """Maps the scales ``alpha[B]`` >= 0 and ``sigma[B]`` > 0 to the four coefficients, in their dtype.

    >>> class Residual(Preconditioning):  # F = (x_0 - x_t) / sigma
    ...     def __call__(self, alpha, sigma):
    ...         one = torch.ones_like(sigma)
    ...         return Coefficients(one, sigma, 1 / torch.hypot(alpha, sigma), (sigma / alpha).log() / 4)
    >>> Residual()(torch.tensor([1.0]), torch.tensor([2.0])).c_out
    tensor([2.])

    Raises:
        ValueError: if the parameterisation does not determine ``x_0`` where ``alpha`` is 0, and it is.
    """

    states_posterior_mean: ClassVar[bool] = True  # False: ``x0_hat`` is the end of a path

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients: ...


_LARGEST_LEVEL = 1e4  # the schedules of conf/ end at 700 or at infinity


def _noise_level(alpha: Tensor, sigma: Tensor) -> Tensor:
    return (sigma / torch.maximum(alpha, sigma / _LARGEST_LEVEL)).log() / 4


def _require_signal(preconditioning: Preconditioning, alpha: Tensor) -> None:
    if (alpha == 0).any():
        raise ValueError(
            f"{type(preconditioning).__name__} does not determine x_0 where alpha is 0, as at t = 1 of flow matching: "
            "choose v, x0 or edm prediction (precond=v), or schedule.t_max < 1"
        )


class EpsPrediction(Preconditioning):
    """``F`` is the noise ``eps = (x_t - alpha x_0) / sigma``.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239.

    >>> c = EpsPrediction()(torch.tensor([0.8]), torch.tensor([0.6]))
    >>> c.c_skip, c.c_out
    (tensor([1.2500]), tensor([-0.7500]))
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        _require_signal(self, alpha)
        return Coefficients(
            1 / alpha, -sigma / alpha, 1 / torch.hypot(alpha, sigma), _noise_level(alpha, sigma)
        )


class ScorePrediction(Preconditioning):
    """``F`` is the scaled score ``sigma grad log p_t(x_t)``, which is ``-eps``.

    The division by sigma that score networks carry on their output is ``c_out`` here.

    Reference: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    2021, https://arxiv.org/abs/2011.13456.

    >>> c = ScorePrediction()(torch.tensor([0.8]), torch.tensor([0.6]))
    >>> c.c_skip, c.c_out
    (tensor([1.2500]), tensor([0.7500]))
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        _require_signal(self, alpha)
        return Coefficients(
            1 / alpha, sigma / alpha, 1 / torch.hypot(alpha, sigma), _noise_level(alpha, sigma)
        )


class X0Prediction(Preconditioning):
    """``F`` is the clean data ``x_0`` itself.

    >>> c = X0Prediction()(torch.tensor([0.8]), torch.tensor([0.6]))
    >>> c.c_skip, c.c_out
    (tensor([0.]), tensor([1.]))
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Coefficients(zero, one, 1 / torch.hypot(alpha, sigma), _noise_level(alpha, sigma))


class VPrediction(Preconditioning):
    """``F`` is the velocity ``(alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2)``.

    For variance-preserving schedules this is ``v = alpha eps - sigma x_0``; for others the root keeps it at
    unit scale.

    Reference: T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, appendix D.

    >>> c = VPrediction()(torch.tensor([0.8]), torch.tensor([0.6]))
    >>> c.c_skip, c.c_out
    (tensor([0.8000]), tensor([-0.6000]))
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        norm = torch.hypot(alpha, sigma)
        return Coefficients(alpha / norm**2, -sigma / norm, 1 / norm, _noise_level(alpha, sigma))


class EDMPrediction(Preconditioning):
    r"""``F`` has unit variance and amplifies its errors least, for data of standard deviation ``sigma_data``.

    With ``r = sigma / alpha`` the EDM coefficients of ``x_t / alpha`` are

    .. math:: c_{skip} = \frac{\sigma_d^2}{r^2 + \sigma_d^2}, \quad
              c_{out} = \frac{r \sigma_d}{\sqrt{r^2 + \sigma_d^2}}, \quad
              c_{in} = \frac{1}{\sqrt{r^2 + \sigma_d^2}} .

    Reference: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1.

    >>> c = EDMPrediction(sigma_data=0.5)(torch.tensor([1.0]), torch.tensor([0.5]))
    >>> c.c_skip, c.c_out.round(decimals=4)
    (tensor([0.5000]), tensor([0.3536]))

    Args:
        sigma_data: standard deviation of the data, > 0, in units of the [-1, 1] range.

    Raises:
        ValueError: if ``sigma_data`` is not positive.
    """

    @checked
    def __init__(self, sigma_data: Annotated[PositiveFloat, "0.5 for images in [-1, 1]"] = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        data = self.sigma_data * alpha
        norm = torch.hypot(data, sigma)
        return Coefficients(
            self.sigma_data * data / norm**2,
            self.sigma_data * sigma / norm,
            1 / norm,
            _noise_level(alpha, sigma),
        )


class ConsistencyPrediction(Preconditioning):
    r"""EDM's with ``F`` left out at the smallest noise level ``r_min``: there ``x0_hat`` is ``x_t / alpha``, whatever ``F``.

    .. math:: c_{skip} = \frac{\sigma_d^2}{(r - r_{min})^2 + \sigma_d^2}, \quad
              c_{out} = \frac{(r - r_{min}) \sigma_d}{\sqrt{r^2 + \sigma_d^2}} ,

    of ``x_t / alpha`` with ``r = sigma / alpha``: the boundary condition of a consistency function.

    Reference: Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023, https://arxiv.org/abs/2303.01469,
    appendix C.

    >>> c = ConsistencyPrediction(sigma_min=0.002)(torch.tensor([1.0]), torch.tensor([0.002]))
    >>> c.c_skip, c.c_out
    (tensor([1.]), tensor([0.]))

    Args:
        sigma_data: standard deviation of the data, > 0, in units of the [-1, 1] range.
        sigma_min: ``r_min``, the smallest noise level of the schedule, > 0, in the same units.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    states_posterior_mean = False

    @checked
    def __init__(
        self,
        sigma_data: Annotated[PositiveFloat, "0.5 for images in [-1, 1]"] = 0.5,
        sigma_min: Annotated[PositiveFloat, "that of the schedule"] = 0.002,
    ) -> None:
        self.sigma_data, self.sigma_min = sigma_data, sigma_min

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        above = sigma - self.sigma_min * alpha  # in units of x_t
        data = self.sigma_data * alpha
        norm = torch.hypot(data, sigma)
        return Coefficients(
            self.sigma_data * data / (above**2 + data**2),
            self.sigma_data * above / norm,
            1 / norm,
            _noise_level(alpha, sigma),
        )
