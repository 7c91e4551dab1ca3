"""Ancestral sampling of Resfusion."""

import math
from typing import Any

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of


class Resfusion(Sampler):
    r"""Resfusion's steps, for the residual ``u = x - y`` on the schedule ``Resfusion``.

    Its forward step adds noise as DDPM's does and a part of the residual ``R = -u_0`` besides. Of the noise at ``s`` the
    state at ``t`` keeps ``rho = sqrt(a_t / a_s) = (1 + alpha_t) / (1 + alpha_s)`` and not ``alpha_t / alpha_s``. The
    posterior of ``u_s`` given ``u_t`` and ``u_0`` is

    .. math:: u_s = \alpha_s \hat u_0 + \rho \frac{\sigma_s^2}{\sigma_t} \hat\epsilon
                    + \frac{\sigma_s}{\sigma_t} \sqrt{\sigma_t^2 - \rho^2 \sigma_s^2}\, z, \qquad
              \hat\epsilon = \frac{u_t - \alpha_t \hat u_0}{\sigma_t} .

    With ``x_t = u_t + sqrt(a_t) y`` this is the paper's step. Where ``u_0 = 0`` (y is the clean image) u takes DDPM's
    ancestral steps for data at 0, bit for bit. The marginals are those of every sampler here; ``samplers.DDPM`` on the
    same schedule draws more fresh noise. On other schedules whose sigma grows these are valid steps with the same
    marginals too.

    Reference: Z. Shi et al., "Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration Based on Prior
    Residual Noise", 2024, https://arxiv.org/abs/2311.14900, equations (33) and (44).

    >>> import torch
    >>> from scoreexp import schedules
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import UniformGrid, draw
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), schedules.Resfusion())
    >>> draw(model, Resfusion(UniformGrid(5)), [0]).nfe
    5

    Args:
        grid: the times visited.
        denoise_last: end with ``E[u_0 | u_t]`` at the last time, as the reference does.

    Raises:
        ValueError: (on a call) if the schedule's noise level does not fall along the grid.
    """

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        alpha_t, sigma_t = model.schedule.at(t)
        alpha_s, sigma_s = model.schedule.at(s)
        rho = (1 + alpha_t) / (1 + alpha_s)
        fresh = (sigma_t**2 - (rho * sigma_s) ** 2) * (sigma_s / sigma_t) ** 2  # variance of the new noise

        x0_hat = model(x_t, batch_of(t, x_t))
        kept = (rho * sigma_s**2 / sigma_t**2) * (x_t - alpha_t * x0_hat)
        return alpha_s * x0_hat + kept + math.sqrt(fresh) * streams.normal(x_t), state
