"""Euler-Maruyama steps of the reverse-time equation."""

import math
from typing import Any

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of, step_from_noise


def euler_maruyama_step(
    model: DenoiserBase, x_t: Tensor, t: float, s: float, streams: ImageStreams
) -> Tensor:
    """One step of ``EulerMaruyama`` from ``t`` to ``s < t``: ``x_s [B, *]``, one evaluation."""
    if model.schedule.at(t)[0] == 0:
        return step_from_noise(model, x_t, t, s, streams)
    time = torch.tensor(t, dtype=torch.float64)
    a, g = model.schedule.drift(time).item(), model.schedule.diffusion(time).item()
    dt = t - s
    score = model.score(x_t, batch_of(t, x_t))
    return (1 - a * dt) * x_t + g**2 * dt * score + g * math.sqrt(dt) * streams.normal(x_t)


class EulerMaruyama(Sampler):
    r"""Euler-Maruyama for the reverse-time SDE ``dx = (a(t) x - g(t)^2 grad log p_t(x)) dt + g(t) dW``:

    .. math:: x_s = x_t - \left(a(t) x_t - g(t)^2 s_\theta(x_t, t)\right) (t - s) + g(t) \sqrt{t - s}\, z .

    Weak order one. From ``alpha = 0``, where a and g are infinite, the first step is a draw of
    ``alpha_s x0_hat + sigma_s z``.

    Reference: Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole, "Score-Based Generative
    Modeling through Stochastic Differential Equations", 2021, https://arxiv.org/abs/2011.13456, equation (6).

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.EulerMaruyama(se.samplers.UniformGrid(50))
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 50)

    Args:
        grid: the times visited.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

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
        return euler_maruyama_step(model, x_t, t, s, streams), state
