r"""RED-diff: the image that a sum of denoisers at all noise levels and the data agree on, by stochastic descent.

From ``mu`` after three steps of conjugate gradients on ``min |y - A mu|^2`` (``A^+ y`` for a mask; without the noise that
``A^+`` of a blur raises, and in the units of the data whatever the norm of ``A``), for each time t of the grid from high to
low noise:

1. ``x_t = alpha_t mu + sigma_t eps`` with fresh noise, ``eps_hat`` of the model there;
2. one step of Adam (0.9, 0.99) on ``(w / 2) |y - A mu|^2 + lambda_t <eps_hat - eps, mu>``, the bracket held fixed, with
   ``lambda_t = lambda sigma_t / alpha_t``. As ``eps_hat - eps = (alpha_t / sigma_t) (mu - D(x_t, t))``, the gradient of the
   second term is ``lambda (mu - D(x_t, t))``, which is finite where alpha is 0 too.

No gradient goes through the network. The mean of the bracket is that of the score's gradient flow, so with t drawn from the
grid the fixed point for Gaussian data ``N(m, S)`` solves ``(w A^T A + L) mu = w A^T y + L m`` with
``L = mean_t lambda_t alpha_t sigma_t (alpha_t^2 S + sigma_t^2 I)^{-1}``; it is neither the posterior's mean nor its mode.

Reference: M. Mardani, J. Song, J. Kautz, A. Vahdat, "A Variational Perspective on Solving Inverse Problems with Diffusion
Models", 2024, https://arxiv.org/abs/2305.04391, algorithm 1.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat
from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.restorers.chain import Chain, Problem
from scoreexp.samplers.grids import TimeGrid

BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
START_STEPS = 3  # few, as noise enters with each


class _State(NamedTuple):
    """The estimate and Adam's moments of its gradient."""

    mu: Tensor
    first: Tensor
    second: Tensor
    steps: int


class REDDiff(Chain):
    """See the module's formulas. One evaluation of the network per time of the grid, and no gradient through it.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.0))
    >>> REDDiff(UniformGrid(50))(observation, model, streams=ImageStreams([0])).nfe
    50

    Args:
        grid: the times, whose number is that of the steps of Adam.
        weight: ``lambda``, of the prior, >= 0 (0.25 in the authors' code).
        data_weight: ``w``, > 0.
        lr: Adam's step, > 0, in units of the model.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    uses_sigma: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        weight: NonNegativeFloat = 0.25,
        data_weight: PositiveFloat = 1.0,
        lr: PositiveFloat = 0.1,
    ) -> None:
        super().__init__(grid)
        self.weight, self.data_weight, self.lr = weight, data_weight, lr

    def start(self, problem: Problem, share: Tensor, noise: Tensor, t: float, prepared: Any) -> _State:
        a = problem.operator
        mu = conjugate_gradient(lambda x: a.adjoint(a(x)), a.adjoint(problem.y), max_iter=START_STEPS).x
        return _State(mu, torch.zeros_like(mu), torch.zeros_like(mu), 0)

    def step(
        self, problem: Problem, state: _State, t: float, s: float | None, prepared: Any
    ) -> tuple[Tensor, _State]:
        # 1.
        alpha, sigma = problem.schedule.at(t)
        x_t = alpha * state.mu + sigma * problem.streams.normal(state.mu)
        # 2.
        gradient = self.gradient(problem, state.mu) + self.weight * (state.mu - problem.denoise(x_t, t))
        first = BETA_1 * state.first + (1 - BETA_1) * gradient
        second = BETA_2 * state.second + (1 - BETA_2) * gradient**2
        k = state.steps + 1
        mu = state.mu - self.lr * first / (1 - BETA_1**k) / ((second / (1 - BETA_2**k)).sqrt() + EPSILON)
        return mu, _State(mu, first, second, k)

    def gradient(self, problem: Problem, mu: Tensor) -> Tensor:
        """Of the data term: ``w A^T (A mu - y)``."""
        return self.data_weight * problem.operator.adjoint(problem.operator(mu) - problem.y)

    def remedy(self) -> str:
        return f"choose a smaller lr than {self.lr:g}"
