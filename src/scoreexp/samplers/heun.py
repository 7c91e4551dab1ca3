"""The second-order sampler of EDM, deterministic or with churn."""

import math
from typing import Annotated, Any

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import NonNegativeFloat, PositiveFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of, falling_noise_levels, step_from_noise
from scoreexp.samplers.grids import TimeGrid


class Heun(Sampler):
    r"""Heun's method in the noise level, after raising the noise level a little with fresh noise ("churn").

    With ``x = x_t / alpha`` at the noise level ``r = sigma / alpha`` (the paper's ``t_i``), of any schedule:

    1. ``r_hat = (1 + gamma) r``, with :math:`\gamma = \min(S_{churn} / N, \sqrt2 - 1)` if
       :math:`S_{tmin} \le r \le S_{tmax}`, else 0;
    2. :math:`\hat x = x + \sqrt{\hat r^2 - r^2}\, S_{noise} z`;
    3. :math:`d = (\hat x - D(\hat x; \hat r)) / \hat r` and the Euler step
       :math:`x' = \hat x + (r' - \hat r) d`;
    4. :math:`d' = (x' - D(x'; r')) / r'` and :math:`x' = \hat x + (r' - \hat r) (d + d') / 2`.

    The paper's last step, an Euler step to the noise level 0, is the final denoising; it is not churned here. With N
    times this makes 2N - 1 evaluations. Without churn the order is 2. From ``alpha = 0``, where r is infinite, the first
    step is DDIM's, of one evaluation and without churn.

    Reference: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, algorithm 2.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.EDM())
    >>> sampler = se.samplers.Heun(se.samplers.KarrasGrid(10))
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 19)

    Args:
        grid: the times visited; ``KarrasGrid`` in the paper.
        s_churn: amount of fresh noise, 0 for the deterministic sampler of algorithm 1.
        s_tmin: smallest noise level ``sigma / alpha`` to churn, in units of the [-1, 1] range.
        s_tmax: largest noise level to churn, in the same units; None for no bound.
        s_noise: standard deviation of ``z``, 1 or slightly above.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time, as the reference does.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, if the schedule's noise level does not fall along
            the grid, or churn would raise it beyond the schedule's range.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        s_churn: Annotated[NonNegativeFloat, "0 is deterministic"] = 0.0,
        s_tmin: NonNegativeFloat = 0.0,
        s_tmax: PositiveFloat | None = None,
        s_noise: Annotated[PositiveFloat, "1, or up to 1.01"] = 1.0,
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        if s_tmax is not None and not s_tmin <= s_tmax:
            raise ValueError(f"s_tmin={s_tmin}, s_tmax={s_tmax}: choose s_tmin <= s_tmax")
        self.s_churn = s_churn
        self.s_tmin = s_tmin
        self.s_tmax = s_tmax
        self.s_noise = s_noise

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> float:
        """``gamma`` of the noise levels that are churned."""
        steps = len(times) - 1 + self.denoise_last
        gamma = min(self.s_churn / max(steps, 1), math.sqrt(2) - 1)
        largest = model.schedule.sigma_range[1]
        for level in falling_noise_levels(model.schedule, times)[:-1].tolist():
            if gamma > 0 and self._is_churned(level) and (1 + gamma) * level > largest:
                raise ValueError(
                    f"s_churn={self.s_churn} raises the noise level {level:.6g} to {(1 + gamma) * level:.6g}, beyond "
                    f"{largest:.6g} of the {type(model.schedule).__name__} schedule: choose s_tmax <= "
                    f"{largest / (1 + gamma):.6g}"
                )
        return gamma

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        schedule = model.schedule
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
        if alpha_t == 0:
            return step_from_noise(model, x_t, t, s), state
        r, r_next = sigma_t / alpha_t, sigma_s / alpha_s
        x = x_t / alpha_t

        # 1., 2. churn
        t_hat, alpha_hat, r_hat = t, alpha_t, r
        if state > 0 and self._is_churned(r):
            r_hat = (1 + state) * r
            x = x + math.sqrt(r_hat**2 - r**2) * self.s_noise * streams.normal(x)
            t_hat = schedule.t_of_sigma(torch.tensor(r_hat, dtype=torch.float64)).item()
            alpha_hat = schedule.at(t_hat)[0]
        # 3. Euler step
        d = model.eps(alpha_hat * x, batch_of(t_hat, x))
        x_next = x + (r_next - r_hat) * d
        # 4. correction
        d_next = model.eps(alpha_s * x_next, batch_of(s, x))
        x_next = x + (r_next - r_hat) * (d + d_next) / 2
        return alpha_s * x_next, state

    def _is_churned(self, level: float) -> bool:
        return self.s_tmin <= level <= (math.inf if self.s_tmax is None else self.s_tmax)
