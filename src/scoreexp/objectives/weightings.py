r"""Weightings ``w(alpha, sigma)`` of the squared error of the posterior mean.

Errors of the other quantities are multiples of the error of ``x_0`` at the same ``x_t``,

.. math:: \Delta\epsilon = -\frac{\alpha}{\sigma} \Delta x_0, \qquad
          \Delta s = \frac{\alpha}{\sigma^2} \Delta x_0, \qquad
          \Delta v = -\frac{\alpha^2 + \sigma^2}{\sigma} \Delta x_0,

so each published loss is one weighting. ``SNR = alpha^2 / sigma^2``.
"""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat, NonNegativeFloat, PositiveFloat


class Weighting(ABC):
    """Maps the scales ``alpha[B]`` >= 0 and ``sigma[B]`` > 0 to the weight ``w[B]`` > 0, or 0 where ``alpha`` is 0.

    At ``alpha = 0`` the noise and the score are ``x_t / sigma`` and ``-x_t / sigma^2`` whatever the model says, so their
    errors, and with them the weights of SNR, are 0; the errors of ``x_0``, v and EDM's output are not.

    >>> import torch
    >>> import scoreexp as se
    >>> class SqrtSNR(se.objectives.Weighting):
    ...     def __call__(self, alpha, sigma):
    ...         return alpha / sigma
    >>> SqrtSNR()(torch.tensor([1.0]), torch.tensor([0.5]))
    tensor([2.])
    """

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor: ...


class EpsWeighting(Weighting):
    """``w = SNR``: the squared error of the noise, DDPM's simple loss.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, equation (14).

    >>> import torch
    >>> EpsWeighting()(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0]))
    tensor([4.0000, 0.2500])
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2


class X0Weighting(Weighting):
    """``w = 1``: the squared error of the clean data.

    >>> import torch
    >>> X0Weighting()(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0]))
    tensor([1., 1.])
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


class VWeighting(Weighting):
    """``w = SNR + 1``: the squared error of ``(alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2)``, the
    velocity.

    Reference: T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, section 4.

    >>> import torch
    >>> VWeighting()(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0]))
    tensor([5.0000, 1.2500])
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2 + 1


class ScoreWeighting(Weighting):
    r"""``w = sigma^(power - 4) alpha^2``: the squared error of the score times ``sigma^power``.

    Power 2 is the usual ``lambda = sigma^2`` and equals ``EpsWeighting``, because
    ``sigma^2 |\Delta s|^2 = SNR |\Delta x_0|^2``. Power 0 is unweighted score matching. Power 4 with
    ``alpha = 1`` is ``X0Weighting``, that is ``|sigma^2 s(x_t) + x_t - x_0|^2``.

    Reference: Y. Song, S. Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution",
    2019, https://arxiv.org/abs/1907.05600, section 4.2.

    >>> import torch
    >>> alpha, sigma = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0])
    >>> ScoreWeighting()(alpha, sigma), ScoreWeighting(power=4.0)(alpha, sigma)
    (tensor([4.0000, 0.2500]), tensor([1., 1.]))

    Args:
        power: of ``sigma``, >= 0.

    Raises:
        ValueError: if ``power`` is negative.
    """

    @checked
    def __init__(self, power: Annotated[NonNegativeFloat, "2 is the usual weighting"] = 2.0) -> None:
        self.power = power

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma ** (self.power - 4) * alpha**2


class EDMWeighting(Weighting):
    """``w = (r^2 + sigma_data^2) / (r sigma_data)^2``, ``r = sigma / alpha``: the error of EDM's network
    output.

    Reference: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1.

    >>> import torch
    >>> EDMWeighting(sigma_data=0.5)(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0]))
    tensor([8.0000, 4.2500])

    Args:
        sigma_data: standard deviation of the data, > 0, in units of the [-1, 1] range.

    Raises:
        ValueError: if ``sigma_data`` is not positive.
    """

    @checked
    def __init__(self, sigma_data: Annotated[PositiveFloat, "0.5 for images in [-1, 1]"] = 0.5) -> None:
        self.sigma_data = sigma_data

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma) ** 2 + self.sigma_data**-2


class FlowWeighting(Weighting):
    """``w = (1 + alpha / sigma)^2``: the squared error of ``z - x_0``, flow matching's target, where ``alpha + sigma = 1``.

    On that path ``x_t = (1 - t) x_0 + t z``, so ``z - x_0 = (x_t - x_0) / t`` and ``w = 1 / t^2``. It depends on the noise
    level only, so it is the same loss on other schedules, at the same noise levels.

    Reference: Y. Lipman, R. Chen, H. Ben-Hamu, M. Nickel, M. Le, "Flow Matching for Generative Modeling", 2022,
    https://arxiv.org/abs/2210.02747.

    >>> FlowWeighting()(torch.tensor([0.75, 0.0]), torch.tensor([0.25, 1.0]))
    tensor([16.,  1.])
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (1 + alpha / sigma) ** 2


class ResnoiseWeighting(Weighting):
    """``w = (alpha / sigma + sigma / 2)^2``: the squared error of Resfusion's target, the noise with a part of the residual.

    The limit of small steps of ``(alpha / sigma + sigma / (1 + sqrt(a_t / a_s)))^2``; it is not 0 where alpha is.

    Reference: Z. Shi et al., "Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration Based on Prior
    Residual Noise", 2024, https://arxiv.org/abs/2311.14900, equation (24).

    >>> ResnoiseWeighting()(torch.tensor([0.0, 0.6]), torch.tensor([1.0, 0.8]))
    tensor([0.2500, 1.3225])
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha / sigma + sigma / 2) ** 2


class MinSNR(Weighting):
    """``w = min(SNR, gamma)``: DDPM's simple loss with the weight of small noise levels clipped.

    Reference: T. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
    https://arxiv.org/abs/2303.09556.

    >>> import torch
    >>> MinSNR(gamma=3.0)(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0]))
    tensor([3.0000, 0.2500])

    Args:
        gamma: largest weight, > 0.

    Raises:
        ValueError: if ``gamma`` is not positive.
    """

    @checked
    def __init__(self, gamma: Annotated[PositiveFloat, "5 in the paper"] = 5.0) -> None:
        self.gamma = gamma

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha / sigma) ** 2).clamp(max=self.gamma)


class P2Weighting(Weighting):
    """``w = SNR / (k + SNR)^gamma``: perception prioritised, DDPM's simple loss with less weight on small noise levels.

    ``gamma = 0`` is ``EpsWeighting``.

    Reference: J. Choi, J. Lee, C. Shin, S. Kim, H. Kim, S. Yoon, "Perception Prioritized Training of Diffusion Models",
    2022, https://arxiv.org/abs/2204.00227, equation (8).

    >>> P2Weighting()(torch.tensor([1.0, 1.0]), torch.tensor([0.5, 1.0]))
    tensor([0.8000, 0.5000])

    Args:
        gamma: how far small noise levels are suppressed, >= 0.
        k: of the signal-to-noise ratio, > 0, from which on they are.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        gamma: Annotated[FiniteNonNegativeFloat, "0.5 and 1 in the paper"] = 1.0,
        k: Annotated[FinitePositiveFloat, "1 in the paper"] = 1.0,
    ) -> None:
        self.gamma, self.k = gamma, k

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        snr = (alpha / sigma) ** 2
        return snr / (self.k + snr) ** self.gamma
