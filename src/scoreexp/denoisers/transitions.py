r"""The step of a diffusion between two of its times, forwards and, given clean data, backwards.

For :math:`x_t = \alpha_t x_0 + \sigma_t z` with independent increments and :math:`s < t`,

.. math:: x_t | x_s \sim N(\alpha_{t|s} x_s, \beta), \quad \alpha_{t|s} = \alpha_t / \alpha_s, \quad
          \beta = \sigma_t^2 - \alpha_{t|s}^2 \sigma_s^2,

          x_s | x_t, x_0 \sim N\Big(\frac{\alpha_{t|s} \sigma_s^2}{\sigma_t^2} x_t
          + \frac{\alpha_s \beta}{\sigma_t^2} x_0, \; \beta \frac{\sigma_s^2}{\sigma_t^2}\Big) .

Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239,
equations (6) and (7), where the alphas are squared.
"""

from typing import TypeVar

from torch import Tensor

Scale = TypeVar("Scale", float, Tensor)


def posterior(alpha_t: Scale, sigma_t: Scale, alpha_s: Scale, sigma_s: Scale) -> tuple[Scale, Scale, Scale]:
    """Of ``x_t`` and of ``x_0`` in the mean of ``x_s`` given both, and ``beta``, the variance of the forward step.

    >>> posterior(0.6, 0.8, alpha_s=1.0, sigma_s=0.0)  # clean data are known
    (0.0, 1.0, 0.6400000000000001)

    Args:
        alpha_t: of the later time, a number or a tensor.
        sigma_t: of it, > 0.
        alpha_s: of the earlier time, > 0.
        sigma_s: of it, 0 where it is that of clean data.
    """
    alpha_ts = alpha_t / alpha_s
    beta = sigma_t**2 - (alpha_ts * sigma_s) ** 2
    return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * beta / sigma_t**2, beta
