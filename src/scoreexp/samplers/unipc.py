"""The unified predictor-corrector."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of, falling_noise_levels
from scoreexp.samplers.exponential import Prediction, data_step, exact_moments, half_log_snr
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule

# so many times and more, and order 3 spends an evaluation on its start; below, that would cost more than it gives
TIMES_TO_RESTART = 20


class _Before(NamedTuple):
    """The corrected states before, the newest first, their times, and what was predicted at them."""

    x: tuple[Tensor, ...]
    t: tuple[float, ...]
    known: tuple[Prediction, ...]
    restart: bool


def _bh2(n: int, z: float) -> list[float]:
    """What the paper's coefficients integrate: exact moments, but for two predictions, where ``a_1 = 1/2``."""
    exact = exact_moments(n, z)
    return [exact[0], exact[0] / 2] if n == 2 else exact


class UniPC(Sampler):
    r"""UniPC-p: the multistep predictor UniP-p and corrector UniC-p for the prediction of clean data, with :math:`B_2(h)`.

    With :math:`\lambda = \log(\alpha / \sigma)`, at each time t but the first:

    1. evaluate :math:`D_0 = \hat x_0(\tilde x_t, t)` at the predicted state;
    2. UniC-p: integrate from the time before to t again, with the polynomial in :math:`\lambda` through :math:`D_0` and the
       p predictions before it: the corrected state :math:`x_t`, without an evaluation of its own;
    3. UniP-p: integrate from t to s with the polynomial through the p latest predictions: :math:`\tilde x_s`.

    Each integral is exact for the polynomial, as the paper's linear system for its coefficients says; with two predictions
    the paper takes :math:`a_1 = 1/2` instead, and only there its :math:`B_2(h) = e^{-h} - 1` matters (with the exact
    integral the errors of p = 2 are 1.3 to 2.4 times as large). The state after the last step is a predicted one. Early
    steps take polynomials in ``alpha / sigma`` (``scoreexp.samplers.exponential``).

    UniPC-p has order p + 1. The start keeps it: the first step is DDIM, corrected with a line, which is good to order 3, so
    p = 2 takes one evaluation per step. For p = 3 and 20 or more times the model is evaluated again at the corrected second
    state, and the third is corrected from the first one: N times take one evaluation more. From the noise level 2 on this
    halves the error at 40 steps and keeps order 4.0 (3.1 without); from ``t_max`` on it gains nothing and costs what an
    evaluation is worth, 15 % of error at 30 and a factor of 2 at 8, so shorter grids leave it out.

    Reference: W. Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", 2023,
    https://arxiv.org/abs/2302.04867, algorithms 1 and 2.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import LogSNRGrid, draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> [draw(model, UniPC(LogSNRGrid(n), order=3), seeds=[0, 1]).nfe for n in (10, 20)]
    [10, 21]

    Args:
        grid: the times visited; ``LogSNRGrid`` makes all steps equal.
        order: the paper's p, 2 or 3.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: if ``order`` is neither; on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, grid: TimeGrid, order: Literal[2, 3] = 2, denoise_last: bool = True) -> None:
        super().__init__(grid, denoise_last)
        self.order = order

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> _Before:
        """Nothing precedes the first step; whether order 3 restarts."""
        falling_noise_levels(model.schedule, times)
        return _Before((), (), (), self.order == 3 and len(times) >= TIMES_TO_RESTART)

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        def corrected(known: tuple[Prediction, ...], steps: int) -> Tensor:
            """The state at t, integrated from so many steps before."""
            return self._integrated(model.schedule, state.x[steps - 1], state.t[steps - 1], t, known)

        # 1. evaluate
        known = (self._predicted(model, x_t, t), *state.known)[: self.order + 1]
        # 2. correct
        if state.restart and len(state.x) == 1:
            known = (self._predicted(model, corrected(known, 1), t), *state.known)
        if state.x:
            x_t = corrected(known, 2 if state.restart and len(state.x) == 2 else 1)
        # 3. predict
        x_s = self._integrated(model.schedule, x_t, t, s, known[: self.order])
        return x_s, _Before((x_t, *state.x)[:3], (t, *state.t)[:3], known, state.restart)

    def _predicted(self, model: DenoiserBase, x_t: Tensor, t: float) -> Prediction:
        """What the polynomials go through: one evaluation."""
        return Prediction(half_log_snr(model.schedule, t), model(x_t, batch_of(t, x_t)))

    def _integrated(
        self, schedule: Schedule, x_t: Tensor, t: float, s: float, known: Sequence[Prediction]
    ) -> Tensor:
        """``x_s`` from ``x_t`` with the polynomial through the ``known`` predictions."""
        return data_step(schedule, x_t, t, s, known, moments=_bh2)
