"""The stochastic Adams method."""

from typing import Any, Literal, NamedTuple

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import NonNegativeFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.exponential import Prediction, data_step, half_log_snr, sde_step
from scoreexp.samplers.grids import TimeGrid


class _Before(NamedTuple):
    """The corrected state and time before, the noise of the step from there, and the predictions of ``x_0``."""

    x: Tensor
    t: float
    noise: Tensor | float
    known: tuple[Prediction, ...]


class SASolver(Sampler):
    r"""SA-Solver: a multistep predictor and corrector for the SDE with the amount of noise ``tau``.

    With :math:`\lambda = \log(\alpha / \sigma)` and :math:`h = \lambda_s - \lambda_t`, the SDE whose marginals are those of
    the probability flow and whose noise has the strength :math:`\tau` (0: the flow, 1: the reverse-time SDE) has the
    solution

    .. math:: x_s = \frac{\sigma_s}{\sigma_t} e^{-\tau^2 h} x_t
                  + \alpha_s (1 + \tau^2) \int_0^h e^{-(1 + \tau^2)(h - u)} \hat x_0(\lambda_t + u)\, du
                  + \sigma_s \sqrt{1 - e^{-2 \tau^2 h}}\, z .

    At each time t but the first:

    1. evaluate :math:`D_0 = \hat x_0(\tilde x_t, t)` at the predicted state;
    2. SA-Corrector: the step to t again, with the polynomial in :math:`\lambda` through :math:`D_0` and the ``order``
       predictions before it and with the same z: the corrected state :math:`x_t`, without an evaluation of its own;
    3. SA-Predictor: the step from t to s with the polynomial through the ``order`` latest predictions and a new z.

    One evaluation per step. Mean and covariance of Gaussian data come out with weak order 2, whatever ``order``, which makes
    the error smaller. With ``tau=0`` the result converges to the flow's with order 2, 3 and 3 for ``order`` 1, 2 and 3.

    Reference: S. Xue et al., "SA-Solver: Stochastic Adams Solver for Fast Sampling of Diffusion Models", 2023,
    https://arxiv.org/abs/2309.05019, algorithm 1.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import LogSNRGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> draw(model, SASolver(LogSNRGrid(20), tau=0.5), seeds=[0, 1]).nfe
    20

    Args:
        grid: the times visited; ``LogSNRGrid`` makes all steps equal.
        tau: amount of noise, >= 0, the same at all noise levels.
        order: number of predictions in the predictor's polynomial, 1, 2 or 3.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, if the schedule's noise level does not fall along the
            grid.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        tau: NonNegativeFloat = 1.0,
        order: Literal[1, 2, 3] = 2,
        denoise_last: bool = True,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.tau = tau
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

        def moved(x: Tensor, t: float, s: float, known: tuple[Prediction, ...]) -> tuple[Tensor, float]:
            """The mean of x at s, and the standard deviation of its noise."""
            if self.tau > 0:
                return sde_step(schedule, x, t, s, known, self.tau)
            return data_step(schedule, x, t, s, known), 0.0

        # 1. evaluate
        known = (Prediction(half_log_snr(schedule, t), model(x_t, batch_of(t, x_t))),)
        # 2. correct
        if state is not None:
            known = (*known, *state.known)[: self.order + 1]
            x_t = moved(state.x, state.t, t, known)[0] + state.noise
        # 3. predict
        mean, std = moved(x_t, t, s, known[: self.order])
        noise = std * streams.normal(x_t) if self.tau > 0 else 0.0
        return mean + noise, _Before(x_t, t, noise, known)
