"""The second-order multistep solver of the reverse-time SDE for the prediction of clean data."""

import math
from typing import Any

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.dpm_solver_pp import Previous
from scoreexp.samplers.exponential import half_log_snr


class SDEDPMSolverPP(Sampler):
    r"""SDE-DPM-Solver++(2M): DPM-Solver++(2M) for the reverse-time SDE.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h_i = \lambda_{t_i} - \lambda_{t_{i-1}}`,
    :math:`r_i = h_{i-1} / h_i` and :math:`z \sim N(0, I)`:

    .. math:: D_i = \left(1 + \frac{1}{2 r_i}\right) \hat x_0(x_{i-1}, t_{i-1})
                    - \frac{1}{2 r_i} \hat x_0(x_{i-2}, t_{i-2}), \qquad
              x_i = \frac{\sigma_i}{\sigma_{i-1}} e^{-h_i} x_{i-1} + \alpha_i (1 - e^{-2 h_i}) D_i
                    + \sigma_i \sqrt{1 - e^{-2 h_i}}\, z ;

    the first step takes :math:`D_1 = \hat x_0(x_0, t_0)`. One evaluation per step. Mean and covariance of Gaussian data
    come out with weak order 2.

    Reference: C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
    https://arxiv.org/abs/2211.01095, section on SDE-DPM-Solver++.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import LogSNRGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> draw(model, SDEDPMSolverPP(LogSNRGrid(20)), seeds=[0, 1]).nfe
    20

    Args:
        grid: the times visited; ``LogSNRGrid`` makes all ``h_i`` equal.
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
        (_, sigma_t), (alpha_s, sigma_s) = model.schedule.at(t), model.schedule.at(s)
        h = half_log_snr(model.schedule, s) - half_log_snr(model.schedule, t)
        fresh = -math.expm1(-2 * h)  # share of the variance that is new

        x0_hat = model(x_t, batch_of(t, x_t))
        D = x0_hat if state is None else state.extrapolated(x0_hat, h)
        x_s = sigma_s / sigma_t * math.exp(-h) * x_t + alpha_s * fresh * D
        x_s = x_s + sigma_s * math.sqrt(fresh) * streams.normal(x_t)
        return x_s, Previous(x0_hat, h)
