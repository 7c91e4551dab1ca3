r"""Langevin dynamics: noisy gradient ascent on the log-density of noisy data.

The equation ``dx = grad log p(x) dtau + sqrt(2) dW`` leaves ``p`` as it is. Its Euler steps of size ``eta``, the
unadjusted Langevin algorithm,

.. math:: x \leftarrow x + \eta\, \nabla \log p(x) + \sqrt{2 \eta}\, z ,

need the score alone. At a noise level sigma the curvature of ``log p`` is at most ``1 / sigma^2``, reached where
the data are a point, so they are stable for ``eta < 2 sigma^2``; for Gaussian data with marginal variance ``w``
their stationary variance is ``w / (1 - eta / (2 w))``.

References:
    G. Roberts, R. Tweedie, "Exponential Convergence of Langevin Distributions and Their Discrete Approximations",
    1996, https://doi.org/10.2307/3318418;
    Y. Song, S. Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019,
    https://arxiv.org/abs/1907.05600.
"""

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule


class ConstantGrid(TimeGrid):
    """One time, again and again: ``steps`` updates at it are ``steps + 1`` equal times.

    >>> import scoreexp as se
    >>> se.samplers.ConstantGrid(2)(se.schedules.VP(), t_start=0.5)
    tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64)

    Args:
        steps: number of updates, >= 1.

    Raises:
        ValueError: if ``steps`` is not positive.
    """

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        """``t_start`` (default: ``t_max``), ``[steps + 1]`` times, float64."""
        start = schedule.t_max if t_start is None else t_start
        times = torch.full((self.steps + 1,), start, dtype=torch.float64)
        schedule.alpha(times[:1])  # raises where the time is outside the schedule's range
        return times


class Langevin(Sampler):
    r"""Langevin dynamics at the one noise level where it starts.

    .. math:: x \leftarrow \operatorname{clamp}\!\left(x + \eta\, s_\theta(x, t)
                           + \sqrt{2 \eta}\, \kappa\, z\right) .

    ``kappa = 1`` without the clamp samples ``p_t``; a smaller ``kappa`` samples ``p_t^(1 / kappa^2)`` (tempering),
    which is how a noisy image is denoised: it drifts to where ``p_t`` is large and little noise is added.
    Denoising starts at the observation. A schedule with a single noise level is run at that level, whatever the
    observation's: the score is the only one there is.

    References: Nguyen, Senequier, Arthaud, "Score-Based Denoising with Reverse-Time SDEs", for denoising with
    ``eta = 1e-4`` in squared units of [0, 1], 100 steps, ``kappa`` equal to the noise level and the clamp; the
    module's for the algorithm.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> oracle = se.oracles.Gaussian(torch.ones(2), torch.zeros(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.ConstantNoise(0.2))
    >>> sampler = se.samplers.Langevin(se.samplers.ConstantGrid(100), step_size=0.01, noise=0.0)
    >>> sampler(model, torch.zeros(1, 2), streams=ImageStreams([0])).x
    tensor([[1.0000, 1.0000]])

    Args:
        grid: how many updates: a ``ConstantGrid``.
        step_size: ``eta``, in squared units of the [-1, 1] range (four times the figure of [0, 1]).
        noise: ``kappa``, without unit.
        clamp: keep the state within the data's range, ``[-alpha, alpha]``.
        denoise_last: end with ``E[x_0 | x_t]`` (one more evaluation).

    Raises:
        ValueError: if a parameter is outside its domain; on a call, if ``step_size`` is not below ``2 sigma^2`` at the
            noise level where the sampler runs, from where on the iteration diverges, or ``alpha`` is 0 there.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        step_size: Annotated[PositiveFloat, "4e-4 for the paper's 1e-4 of [0, 1]"] = 4e-4,
        noise: Annotated[NonNegativeFloat, "1 is plain Langevin dynamics"] = 1.0,
        clamp: bool = False,
        denoise_last: bool = False,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.step_size = step_size
        self.noise = noise
        self.clamp = clamp

    def start(self, schedule: Schedule, y: Tensor, sigma: float) -> tuple[Tensor, float]:
        """The observation at its noise level, or at the only one that the schedule has."""
        low, high = schedule.sigma_range
        if low == high:
            return schedule.at(schedule.t_max)[0] * y, schedule.t_max
        return super().start(schedule, y, sigma)

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> None:
        """Checks that there are data at the noise level of ``times``, and that the step is stable there."""
        if not (model.schedule.alpha(times) > 0).all():
            raise ValueError(
                f"Langevin dynamics at t={times[0].item():g} of the {type(model.schedule).__name__} schedule, where alpha "
                "is 0, sees noise alone: choose an observation to denoise (t_start < t_max), or langevin_annealed"
            )
        sigma = model.schedule.sigma(times).min().item()
        if not self.step_size < 2 * sigma**2:
            raise ValueError(
                f"step_size={self.step_size:.6g} diverges at noise level {sigma:.6g} (units of [-1, 1]): "
                f"choose sampler.step_size < 2 sigma^2 = {2 * sigma**2:.6g}"
            )

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        x = langevin_update(model, x_t, t, self.step_size, self.noise, streams)
        if self.clamp:
            alpha = model.schedule.at(t)[0]
            x = x.clamp(-alpha, alpha)
        return x, state


class AnnealedLangevin(Sampler):
    r"""Langevin dynamics at one noise level after the other, each step in proportion to its ``sigma^2``.

    For each time ``s`` of the grid after the first, with ``eta = ratio sigma_s^2``, ``updates`` times

    .. math:: x \leftarrow x + \eta\, s_\theta(x, s) + \sqrt{2 \eta}\, z .

    The paper's ``alpha_i = epsilon sigma_i^2 / sigma_L^2`` is ``2 eta``: ``ratio = epsilon / (2 sigma_L^2)``, 0.1 for
    its ``epsilon = 2e-5`` and ``sigma_L = 0.01``, and a ratio has no unit. The paper also updates at the first level;
    the state that starts there is already a draw of it here. Its other settings are 10 levels and 100 updates; it
    returns the last state, ``denoise_last`` the posterior mean, which removes its noise.

    Reference: Y. Song, S. Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019,
    https://arxiv.org/abs/1907.05600, algorithm 1.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VE())
    >>> sampler = se.samplers.AnnealedLangevin(se.samplers.LogSNRGrid(10), updates=5)
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 46)

    Args:
        grid: the times visited, one per noise level.
        ratio: ``eta / sigma^2``, in (0, 2), without unit.
        updates: Langevin updates per noise level, >= 1.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if a parameter is outside its domain; a ``ratio`` of 2 or more diverges.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        ratio: Annotated[float, (">", 0), ("<", 2), "from 2 on the iteration diverges"] = 0.1,
        updates: PositiveInt = 100,
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.ratio = ratio
        self.updates = updates

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> None:
        """Nothing to check: each level is sampled by itself."""

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        x, step_size = x_t, self.ratio * model.schedule.at(s)[1] ** 2
        for _ in range(self.updates):
            x = langevin_update(model, x, s, step_size, 1.0, streams)
        return x, state


def langevin_update(
    model: DenoiserBase,
    x: Tensor,
    t: float,
    step_size: float,
    noise: float,
    streams: ImageStreams,
) -> Tensor:
    """``x + eta score(x, t) + sqrt(2 eta) kappa z``, one evaluation; no noise is drawn for ``kappa = 0``."""
    x_new = x + step_size * model.score(x, batch_of(t, x))
    return x_new + math.sqrt(2 * step_size) * noise * streams.normal(x) if noise > 0 else x_new
