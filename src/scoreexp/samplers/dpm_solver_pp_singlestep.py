"""Singlestep solvers of second and third order for the prediction of clean data."""

from typing import Any, Literal

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.exponential import Prediction, data_step, half_log_snr, time_between
from scoreexp.samplers.grids import TimeGrid


class DPMSolverPPSinglestep(Sampler):
    r"""DPM-Solver++(2S) or (3S): exponential Runge-Kutta in the half log-SNR, without memory.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h = \lambda_s - \lambda_t`, :math:`D_0 = \hat x_0(x_t, t)` and
    :math:`\varphi_k(z)` the functions of exponential integrators, order 2 has its intermediate time :math:`t_1` at
    :math:`\lambda_t + h / 2`:

    1. :math:`u_1 = \frac{\sigma_{t_1}}{\sigma_t} x_t + \alpha_{t_1} \frac h2 \varphi_1(-\tfrac h2) D_0` and
       :math:`D_1 = \hat x_0(u_1, t_1)`;
    2. :math:`x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s h \varphi_1(-h) D_1`.

    Order 3 has two, at :math:`\lambda_t + h / 3` and :math:`\lambda_t + 2 h / 3`:

    1. :math:`u_1` and :math:`D_1` as above, at a third of the step;
    2. :math:`u_2 = \frac{\sigma_{t_2}}{\sigma_t} x_t + \alpha_{t_2} \frac{2h}3 \left( \varphi_1(-\tfrac{2h}3) D_0 +
       2 \varphi_2(-\tfrac{2h}3) (D_1 - D_0) \right)` and :math:`D_2 = \hat x_0(u_2, t_2)`;
    3. :math:`x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s h \left( \varphi_1(-h) D_0 +
       \tfrac32 \varphi_2(-h) (D_2 - D_0) \right)`.

    Early steps are in ``alpha / sigma`` (``scoreexp.samplers.exponential``). N times take ``order (N - 1)`` evaluations, and
    one for the last denoising.

    Reference: C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
    https://arxiv.org/abs/2211.01095, algorithm 1 (2S); C. Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion
    Probabilistic Model Sampling in Around 10 Steps", 2022, https://arxiv.org/abs/2206.00927, whose DPM-Solver-3 has the
    intermediate times of 3S.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import LogSNRGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> draw(model, DPMSolverPPSinglestep(LogSNRGrid(6), order=3), seeds=[0, 1]).nfe
    16

    Args:
        grid: the times visited; ``LogSNRGrid`` makes all steps equal.
        order: evaluations per step, 2 or 3, and the order of convergence.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if ``order`` is neither; on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, grid: TimeGrid, order: Literal[2, 3] = 2, denoise_last: bool = True) -> None:
        super().__init__(grid, denoise_last)
        self.order = order

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

        def predicted(u: Tensor, time: float) -> Prediction:
            return Prediction(half_log_snr(schedule, time), model(u, batch_of(time, u)))

        D0 = predicted(x_t, t)
        t1 = time_between(schedule, t, s, 1 / self.order)
        D1 = predicted(data_step(schedule, x_t, t, t1, [D0]), t1)
        if self.order == 2:
            return data_step(schedule, x_t, t, s, [D1]), state
        t2 = time_between(schedule, t, s, 2 / 3)
        D2 = predicted(data_step(schedule, x_t, t, t2, [D0, D1]), t2)
        return data_step(schedule, x_t, t, s, [D0, D2]), state
