"""The second-order multistep solver for the prediction of clean data."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.exponential import half_log_snr


class Previous(NamedTuple):
    """The prediction of the step before and the length of that step in ``lambda``."""

    x0_hat: Tensor
    h: float

    def extrapolated(self, x0_hat: Tensor, h: float) -> Tensor:
        """``D_i`` of a step of length ``h`` whose prediction is ``x0_hat``."""
        r = self.h / h
        return (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * self.x0_hat


class DPMSolverPP(Sampler):
    r"""DPM-Solver++(2M): exponential integrator in the half log-SNR with linear extrapolation of the prediction.

    With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h_i = \lambda_{t_i} - \lambda_{t_{i-1}}` and
    :math:`r_i = h_{i-1} / h_i`:

    .. math:: D_i = \left(1 + \frac{1}{2 r_i}\right) \hat x_0(x_{i-1}, t_{i-1})
                    - \frac{1}{2 r_i} \hat x_0(x_{i-2}, t_{i-2}), \qquad
              x_i = \frac{\sigma_i}{\sigma_{i-1}} x_{i-1} - \alpha_i (e^{-h_i} - 1) D_i ;

    the first step has no ``x_{i-2}`` and takes :math:`D_1 = \hat x_0(x_0, t_0)`, which is DDIM. One evaluation per
    step, order 2, for any schedule. From ``alpha = 0`` the first h is infinite, and the second step is DDIM's as well.

    Reference: C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022,
    https://arxiv.org/abs/2211.01095, algorithm 2.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.DPMSolverPP(se.samplers.LogSNRGrid(10))
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1, 2])
    >>> samples.x.shape, samples.nfe
    (torch.Size([3, 2]), 10)

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

        x0_hat = model(x_t, batch_of(t, x_t))
        D = x0_hat if state is None else state.extrapolated(x0_hat, h)
        x_s = sigma_s / sigma_t * x_t - alpha_s * math.expm1(-h) * D
        return x_s, Previous(x0_hat, h)
