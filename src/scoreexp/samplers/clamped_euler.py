"""The denoising iteration of the published score-embedding script."""

import math
from typing import Annotated, Any

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import NonNegativeFloat, PositiveFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule


class ClampedEulerMaruyama(Sampler):
    r"""Euler-Maruyama steps of a reverse equation with clamping, started at the observation itself.

    .. math:: x_s = \operatorname{clamp}\!\left(x_t + g^2 s_\theta(x_t, t) (t - s)
                    + c\, g \sqrt{t - s}\, \xi,\, -1,\, 1\right),

    without noise in the step to the last time. It starts at ``t_max`` from the clamped observation, whatever its
    noise level: the network knows a single one, so the iteration is a descent with fixed step rather than the
    reversal of the forward process. 50 steps are a grid of 51 times.

    Reference: K. Lau, A. Na, J. Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
    Projection", 2025, https://arxiv.org/abs/2511.17634.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.full((2,), 0.01))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.ConstantNoise(0.2))
    >>> sampler = se.samplers.ClampedEulerMaruyama(se.samplers.UniformGrid(51), g=0.3, noise=0.0)
    >>> x, t = sampler.start(model.schedule, torch.tensor([[0.5, -0.5]]), sigma=0.2)
    >>> sampler(model, x, streams=ImageStreams([0]), t_start=t).x.round(decimals=2)
    tensor([[ 0.0800, -0.0800]])

    Args:
        grid: the times visited, from ``t_max`` to 0 in the paper.
        g: diffusion coefficient in units of the [-1, 1] range (1 is the paper's 0.5 of [0, 1]).
        noise: c, without unit (0.1 in the paper).

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        g: Annotated[PositiveFloat, "1 for the paper's 0.5 of [0, 1]"] = 1.0,
        noise: Annotated[NonNegativeFloat, "0.1 in the paper"] = 0.1,
    ) -> None:
        super().__init__(grid, denoise_last=False)
        self.g = g
        self.noise = noise

    def start(self, schedule: Schedule, y: Tensor, sigma: float) -> tuple[Tensor, float]:
        """The observation clamped to [-1, 1], at ``t_max``; ``sigma`` is not used."""
        return y.clamp(-1, 1), schedule.t_max

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> float:
        """The last time, to which the step adds no noise."""
        return times[-1].item()

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        dt = t - s
        x_s = x_t + self.g**2 * model.score(x_t, batch_of(t, x_t)) * dt
        if self.noise > 0 and s > state:
            x_s = x_s + self.noise * self.g * math.sqrt(dt) * streams.normal(x_t)
        return x_s.clamp(-1, 1), state
