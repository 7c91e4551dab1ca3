"""Exponential Adams-Bashforth methods for the predicted noise."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase, eps_from_x0
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.exponential import EARLY, Prediction, data_step, half_log_snr, noise_step
from scoreexp.samplers.grids import TimeGrid


class _Before(NamedTuple):
    """The state and time of the step before, and the predictions of ``x_0`` and of the noise, the newest first."""

    x: Tensor
    t: float
    x0: tuple[Prediction, ...]
    eps: tuple[Prediction, ...]


class DEIS(Sampler):
    r"""DEIS in the half log-SNR: the noise is extrapolated by a polynomial and the flow integrated exactly with it.

    With :math:`\lambda = \log(\alpha / \sigma)`, the ``order`` latest predictions :math:`\epsilon_j` of the noise at
    :math:`\lambda_j` and Lagrange's polynomials :math:`\ell_j`, :math:`\ell_j(\lambda_i) = \delta_{ij}`:

    .. math:: x_s = \frac{\alpha_s}{\alpha_t} x_t + \sum_j C_j \epsilon_j, \qquad
              C_j = -\alpha_s \int_{\lambda_t}^{\lambda_s} e^{-\lambda} \ell_j(\lambda)\, d\lambda
                  = \alpha_s \int_{\rho_t}^{\rho_s} \ell_j(-\log \rho)\, d\rho, \qquad \rho = \sigma / \alpha .

    The polynomial is one in :math:`\lambda`; the paper's are in t (tAB) or in :math:`\rho` (:math:`\rho`\ AB). Measured on a
    mixture in 5 dimensions, those in :math:`\rho` have errors 2 to 8 times as large at 5 to 30 evaluations, on grids even in
    :math:`\lambda` and on Karras et al.'s; they are mostly the better ones on even times. Those in t depend on the schedule.
    Early steps take that in ``alpha / sigma`` through the predictions of ``x_0``, which exists from ``alpha = 0`` on
    (``scoreexp.samplers.exponential``).

    The first step is DDIM's and has order 1. For ``order=3`` it is repeated at the second time, where the prediction is
    needed anyway, with the line through both predictions of ``x_0`` (a line through those of the noise is unstable on a
    long first step). This keeps order 3 at one evaluation per step. From the noise level 2 on, the error at 80 steps is 16
    times smaller with it; a first step by the midpoint rule costs an evaluation, and errors are larger by 10 to 60 % at 6
    to 10 evaluations.

    Reference: Q. Zhang, Y. Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023,
    https://arxiv.org/abs/2204.13902.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import KarrasGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> draw(model, DEIS(KarrasGrid(10)), seeds=[0, 1]).nfe
    10

    Args:
        grid: the times visited; ``KarrasGrid`` or ``LogSNRGrid``.
        order: number of predictions in the polynomial, 2 or 3, and the order of convergence.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if ``order`` is neither; on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, grid: TimeGrid, order: Literal[2, 3] = 3, denoise_last: bool = True) -> None:
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
        schedule, lam = model.schedule, half_log_snr(model.schedule, t)
        x0_hat = model(x_t, batch_of(t, x_t))
        x0 = (Prediction(lam, x0_hat),)
        eps = (Prediction(lam, eps_from_x0(x0_hat, x_t, *schedule.at(t))),)
        if state is not None:
            x0, eps = (*x0, *state.x0)[: self.order], (*eps, *state.eps)[: self.order]
            if self.order == 3 and len(state.eps) == 1:  # the first step again, now that its end is known
                x_t = data_step(schedule, state.x, state.t, t, x0)
        x_s = data_step(schedule, x_t, t, s, x0) if lam < EARLY else noise_step(schedule, x_t, t, s, eps)
        return x_s, _Before(x_t, t, x0, eps)
