"""Denoising diffusion implicit models."""

import math
from typing import Annotated, Any

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import Probability
from scoreexp.denoisers.denoiser import DenoiserBase, eps_from_x0
from scoreexp.samplers.base import Sampler, batch_of, falling_noise_levels
from scoreexp.samplers.grids import TimeGrid


class DDIM(Sampler):
    r"""DDIM on any grid of times of any schedule.

    .. math:: x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2 - \eta^2 \tilde\beta}\, \hat\epsilon
                    + \eta \sqrt{\tilde\beta}\, z, \qquad
              \tilde\beta = \frac{\sigma_s^2}{\sigma_t^2}
                            \left(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2} \sigma_s^2\right) .

    ``eta = 0`` is deterministic: a first-order solver of the probability-flow equation. ``eta = 1`` is
    ancestral sampling with the posterior variance. On a schedule of one noise level deterministic steps change nothing,
    and the result is the posterior mean ``E[x_0 | x_t]``, which one step gives as well.

    Reference: J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2021,
    https://arxiv.org/abs/2010.02502, equations (12) and (16).

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.DDIM(se.samplers.UniformGrid(20), eta=0.5)
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 20)

    Args:
        grid: the times visited.
        eta: share of fresh noise, in [0, 1].
        denoise_last: end with ``E[x_0 | x_t]`` at the last time, as the reference does.

    Raises:
        ValueError: if ``eta`` is outside [0, 1]; on a call, if the schedule's noise level does not fall along the grid
            and ``eta > 0`` or the last denoising is left out.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        eta: Annotated[Probability, "0 is deterministic, 1 ancestral"] = 0.0,
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.eta = eta

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> None:
        if self.eta > 0 or not self.denoise_last:
            falling_noise_levels(model.schedule, times)

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
        beta = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        fresh = self.eta**2 * beta * (sigma_s / sigma_t) ** 2  # variance of the new noise

        x0_hat = model(x_t, batch_of(t, x_t))
        eps_hat = eps_from_x0(x0_hat, x_t, alpha_t, sigma_t)
        kept = max(sigma_s**2 - fresh, 0.0)  # 0, up to a rounding, from alpha_t = 0 with eta = 1
        x_s = alpha_s * x0_hat + math.sqrt(kept) * eps_hat
        if self.eta > 0:
            x_s = x_s + math.sqrt(fresh) * streams.normal(x_t)
        return x_s, state
