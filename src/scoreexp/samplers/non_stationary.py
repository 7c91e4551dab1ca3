"""A linear multistep method with times and coefficients of its own for each step, fitted to one model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of, falling_noise_levels
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule


class FixedTimes(TimeGrid):
    """The times of a fitted solver, from ``t_max`` on.

    Args:
        times: ``t_0 = t_max > t_1 > ... > t_{n+1}``.
    """

    def __init__(self, times: Sequence[float]) -> None:
        super().__init__(len(times))
        self.times = tuple(times)

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        if t_start not in (None, self.times[0]):
            raise ValueError(
                f"t_start={t_start:.6g}: the solver was fitted from t={self.times[0]:.6g} on, choose that or another sampler"
            )
        return torch.tensor(self.times, dtype=torch.float64)


class _Known(NamedTuple):
    """How many steps are done, and the predictions of ``x_0`` so far, the mean of the data first."""

    steps: int
    x0: tuple[Tensor, ...]


class NonStationary(Sampler):
    r"""``n`` evaluations and ``n + 1`` steps, each a linear combination of the state and of all predictions so far.

    .. math:: x_{i+1} = a_i x_i + \sum_{j=0}^{i} b_{ij} \hat x_0(x_j, t_j), \qquad i = 0, ..., n .

    The scalars and the times are fitted to a model by ``fit_solver``, so that ``x_{n+1}`` is near the end of the
    probability flow. Every linear multistep method for the flow is of this form. The posterior mean at ``t_0 = t_max``,
    where little is known of the data, is replaced by its mean over starts: that step costs no evaluation.

    Reference: N. Shaul, U. Singer, R. T. Q. Chen, M. Le, A. Thabet, A. Pumarola, Y. Lipman, "Bespoke Non-Stationary Solvers
    for Fast Sampling of Diffusion and Flow Models", 2024, https://arxiv.org/abs/2403.01329. There the first evaluation is at
    the start, and the state of each step is the start instead of the last state, which is the same family.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.full((2,), 0.5), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.EDM())
    >>> one = NonStationary([80.0, 1.0, 0.002], [[1 / 80, 1.0], [0.0, 0.0, 1.0]], torch.full((2,), 0.5))
    >>> result = se.samplers.draw(model, one, seeds=[0, 1])  # ends with the posterior mean at t = 1
    >>> result.nfe, result.x.shape
    (1, torch.Size([2, 2]))

    Args:
        times: ``t_0 > t_1 > ... > t_{n+1}``, from the schedule's ``t_max`` on.
        coefficients: for each of the ``n + 1`` steps ``a_i, b_i0, ..., b_ii``.
        mean: the posterior mean at ``t_0``, of the shape of one sample.

    Raises:
        ValueError: if the numbers of times and coefficients do not fit, or times do not fall; on a call, if it does not
            begin at ``t_0`` or has another grid.
    """

    def __init__(self, times: Sequence[float], coefficients: Sequence[Sequence[float]], mean: Tensor) -> None:
        if [len(c) for c in coefficients] != list(range(2, len(times) + 1)) or len(times) < 2:
            raise ValueError(
                f"{len(times)} times with {[len(c) for c in coefficients]} coefficients: give n + 2 times and 2, 3, ..., "
                "n + 2 coefficients for the steps between them"
            )
        if any(t <= s for t, s in pairwise(times)):
            raise ValueError(
                f"times {[round(t, 6) for t in times]}: choose times that fall from each to the next"
            )
        super().__init__(FixedTimes(times), denoise_last=False)
        self.times = tuple(times)
        self.coefficients = tuple(tuple(c) for c in coefficients)
        self.mean = mean

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> _Known:
        """Before any evaluation the mean is known."""
        falling_noise_levels(model.schedule, times)
        if times.tolist() != list(self.times):
            raise ValueError("a fitted solver has its own times: call it without a grid")
        return _Known(0, (self.mean.to(x).expand_as(x),))

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        known = state.x0
        if state.steps:
            known = (*known, model(x_t, batch_of(t, x_t)))
        return combined(self.coefficients[state.steps], x_t, known), _Known(state.steps + 1, known)


def combined(coefficients: Sequence[float] | Tensor, x: Tensor, known: Sequence[Tensor]) -> Tensor:
    """``a x + sum_j b_j known_j`` for the coefficients ``a, b_0, b_1, ...``.

    >>> combined([0.5, 2.0], torch.ones(1, 2), [torch.ones(1, 2)])
    tensor([[2.5000, 2.5000]])
    """
    total = coefficients[0] * x
    for b, value in zip(coefficients[1:], known, strict=True):
        total = total + b * value
    return total
