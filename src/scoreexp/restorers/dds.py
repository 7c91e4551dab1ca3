r"""The decomposed diffusion sampler: conjugate gradients on the posterior mean, no gradient through the network.

At each time t of the grid, with the next time s:

1. ``x0_hat = D(x_t, t)``, ``eps_hat = (x_t - alpha_t x0_hat) / sigma_t``;
2. ``x0'``: M steps of conjugate gradients on ``(I + gamma A^T A) x = x0_hat + gamma A^T y``, from ``x0_hat``;
3. ``x_s = alpha_s x0' + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)``.

The result is ``x0'`` at the last time. ``eta`` is this method's own share of fresh noise, not DDIM's.

Reference: H. Chung, S. Lee, J. C. Ye, "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems", 2024,
https://arxiv.org/abs/2303.05754, algorithm 1.
"""

from typing import ClassVar

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FiniteNonNegativeFloat, PositiveInt, Probability
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.restorers.chain import Chain, Problem, renoised
from scoreexp.samplers.grids import TimeGrid


class DDS(Chain):
    """See the module's formulas. One evaluation of the network per time of the grid.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.0))
    >>> restored = DDS(UniformGrid(10), gamma=1e4)(observation, model, streams=ImageStreams([0]))
    >>> restored.x.round(decimals=2), restored.nfe
    (tensor([[1., 1.]]), 10)

    Args:
        grid: the times visited.
        gamma: weight of the data against the posterior mean, without unit (5 in the paper).
        cg_steps: M, the steps of conjugate gradients (5 in the paper).
        eta: share of fresh noise, in [0, 1] (0.85 in the paper).

    Raises:
        ValueError: a parameter is outside its domain; on a call, the operator is not linear or its data have another
            shape than the model's samples allow.
    """

    uses_sigma: ClassVar[bool] = False

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        gamma: FiniteNonNegativeFloat = 5.0,
        cg_steps: PositiveInt = 5,
        eta: Probability = 0.85,
    ) -> None:
        super().__init__(grid)
        self.gamma, self.cg_steps, self.eta = gamma, cg_steps, eta

    def prepare(self, problem: Problem) -> Tensor:
        return problem.operator.adjoint(problem.y)

    def step(
        self, problem: Problem, x_t: Tensor, t: float, s: float | None, prepared: Tensor
    ) -> tuple[Tensor, Tensor]:
        # 1.
        x0_hat = problem.denoise(x_t, t)
        eps_hat = eps_from_x0(x0_hat, x_t, *problem.schedule.at(t))
        # 2.
        x_0 = conjugate_gradient(
            lambda x: x + self.gamma * problem.operator.adjoint(problem.operator(x)),
            x0_hat + self.gamma * prepared,
            x0_hat,
            max_iter=self.cg_steps,
            tol=0.0,
        ).x
        # 3.
        return x_0, x_0 if s is None else renoised(problem, x_0, eps_hat, s, self.eta**2)

    def remedy(self) -> str:
        return f"check the weights of the network, or choose a smaller gamma than {self.gamma:g}"
