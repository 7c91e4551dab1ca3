"""Pseudo numerical methods: linear multistep in the predicted noise, along DDIM's curves."""

from typing import Any, Literal

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase, x0_from_eps
from scoreexp.samplers.base import Sampler, batch_of, falling_noise_levels, step_from_noise
from scoreexp.samplers.grids import TimeGrid

# Adams-Bashforth weights of the predictions, the newest first
_WEIGHTS = {"S": (3 / 2, -1 / 2), "F": (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


class PNDM(Sampler):
    r"""S-PNDM (two steps) or F-PNDM (four steps).

    A step combines predictions of the noise as a linear multistep method does and moves with DDIM's exact solution
    for a constant noise :math:`e`, the transfer

    .. math:: \phi(x_t, e, t, s) = \alpha_s \frac{x_t - \sigma_t e}{\alpha_t} + \sigma_s e .

    With :math:`e_k` the prediction k steps ago, the combinations are

    .. math:: \text{S:}\; \tfrac12 (3 e_0 - e_1), \qquad
              \text{F:}\; \tfrac1{24} (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3),

    until which the first step of S is a pseudo improved Euler step, :math:`(e + e') / 2` with e' at the end of the
    transfer, and the first three of F are pseudo Runge-Kutta steps. Both forms have order 2: the weights are those of
    Adams and Bashforth for the noise, but the transfer is not linear in time. F has the smaller constant and settles
    later. The weights suppose even steps, as in ``UniformGrid``; on a grid that is smooth in another coordinate the
    order remains. N times take N + 1 (S) or N + 9 (F) evaluations. From ``alpha = 0``, where the noise is ``x_t / sigma``,
    the first step is DDIM's and takes the place of a pseudo step: 1 (S) or 3 (F) evaluations fewer.

    Reference: L. Liu, Y. Ren, Z. Lin, Z. Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022,
    https://arxiv.org/abs/2202.09778, sections 3.2 to 3.4.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.PNDM(se.samplers.UniformGrid(10), form="S")
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 11)

    Args:
        grid: the times visited.
        form: ``S`` or ``F``.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if ``form`` is neither; on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, grid: TimeGrid, form: Literal["S", "F"] = "F", denoise_last: bool = True) -> None:
        super().__init__(grid, denoise_last)
        self.form = form

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> tuple[Tensor, ...]:
        """The latest predictions of the noise, the newest first; none before the first step."""
        falling_noise_levels(model.schedule, times)
        return ()

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
        if alpha_t == 0:
            return step_from_noise(model, x_t, t, s), (x_t / sigma_t,)

        def noise(x: Tensor, u: float) -> Tensor:
            return model.eps(x, batch_of(u, x))

        def transfer(e: Tensor, u: float) -> Tensor:
            alpha_u, sigma_u = model.schedule.at(u)
            return alpha_u * x0_from_eps(e, x_t, alpha_t, sigma_t) + sigma_u * e

        weights = _WEIGHTS[self.form]
        history = (noise(x_t, t), *state)[: len(weights)]
        if len(history) == len(weights):
            e = torch.stack([w * e_k for w, e_k in zip(weights, history)]).sum(0)
        elif self.form == "S":
            e1 = history[0]
            e2 = noise(transfer(e1, s), s)
            e = (e1 + e2) / 2
        else:
            middle = (t + s) / 2
            e1 = history[0]
            e2 = noise(transfer(e1, middle), middle)
            e3 = noise(transfer(e2, middle), middle)
            e4 = noise(transfer(e3, s), s)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        return transfer(e, s), history
