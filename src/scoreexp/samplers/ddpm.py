"""Ancestral sampling."""

import math
from typing import Any, Literal

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.denoisers.transitions import posterior
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule


class DDPM(Sampler):
    r"""Ancestral sampling on any sub-grid of times of any schedule.

    With ``alpha_{t|s} = alpha_t / alpha_s`` and ``sigma_{t|s}^2 = sigma_t^2 - alpha_{t|s}^2 sigma_s^2``
    (``beta_t`` on DDPM's own steps) the posterior of ``x_s`` given ``x_t`` and ``x_0`` is Gaussian; a step
    draws from it with ``E[x_0 | x_t]`` for ``x_0``:

    .. math:: x_s = \frac{\alpha_{t|s} \sigma_s^2}{\sigma_t^2} x_t
                    + \frac{\alpha_s \sigma_{t|s}^2}{\sigma_t^2} \hat x_0 + \sqrt{v}\, z .

    The variance ``v`` is that of the posterior, ``beta_tilde = sigma_{t|s}^2 sigma_s^2 / sigma_t^2`` (exact
    for data at one point), or that of the forward step, ``beta = sigma_{t|s}^2`` (exact for standard normal
    data). They agree as the grid is refined.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, equations (6), (7) and algorithm 2.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.DDPM())
    >>> sampler = se.samplers.DDPM(se.samplers.DiscreteGrid(20), variance="beta")
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 20)

    Args:
        grid: the times visited.
        variance: ``beta_tilde`` or ``beta``.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time, as the reference does.

    Raises:
        ValueError: if ``variance`` is neither; on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        variance: Literal["beta_tilde", "beta"] = "beta_tilde",
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.variance = variance

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        of_x_t, of_x0, beta = posterior_coefficients(model.schedule, t, s)
        sigma_t, sigma_s = model.schedule.at(t)[1], model.schedule.at(s)[1]
        variance = beta * (sigma_s / sigma_t) ** 2 if self.variance == "beta_tilde" else beta

        x0_hat = model(x_t, batch_of(t, x_t))
        mean = of_x_t * x_t + of_x0 * x0_hat
        return mean + math.sqrt(variance) * streams.normal(x_t), state


def posterior_coefficients(schedule: Schedule, t: float, s: float) -> tuple[float, float, float]:
    """Of ``x_t`` and of ``x_0`` in the mean of ``x_s`` given both, and ``beta``, the variance of the forward step."""
    return posterior(*schedule.at(t), *schedule.at(s))
