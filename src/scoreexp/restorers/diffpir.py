r"""DiffPIR: half-quadratic splitting along the reverse diffusion, with the denoiser as the prior's proximal step.

At each time t with the next time s, with the noise level ``r_t = sigma_t / alpha_t``:

1. ``x0_hat = D(x_t, t)``;
2. ``x0' = argmin |y - A x|^2 + rho_t |x - x0_hat|^2`` with ``rho_t = lambda sigma_y^2 / r_t^2``;
3. ``eps' = (x_t - alpha_t x0') / sigma_t``, ``x_s = alpha_s x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z)``.

Where alpha is 0 (flow matching), rho would be 0 and step 2 the pseudo-inverse with all its noise: there ``x0' = x0_hat``.

Reference: Y. Zhu, K. Zhang, J. Liang, J. Cao, B. Wen, R. Timofte, L. Van Gool, "Denoising Diffusion Models for Plug-and-Play
Image Restoration", 2023, https://arxiv.org/abs/2305.08995, algorithm 1.
"""

from typing import ClassVar

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, Probability
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.observations.operators import SVD
from scoreexp.restorers.chain import Chain, Problem, renoised
from scoreexp.restorers.proximal import data_proximal, known_svd
from scoreexp.samplers.grids import TimeGrid


class DiffPIR(Chain):
    """See the module's formulas. No gradient through the network; step 2 is exact where ``A`` has a decomposition.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.01))
    >>> DiffPIR(UniformGrid(20))(observation, model, streams=ImageStreams([0])).x.round(decimals=1)
    tensor([[1., 1.]])

    Args:
        grid: the times visited.
        weight: ``lambda``, of the prior against the data (about 7 in the paper).
        zeta: share of fresh noise, in [0, 1] (0.3 to 1 in the paper, by task).

    Raises:
        ValueError: a parameter is outside its domain; on a call, ``y`` has no noise.
    """

    divides_by_sigma: ClassVar[bool] = True

    @checked
    def __init__(self, grid: TimeGrid, weight: PositiveFloat = 7.0, zeta: Probability = 0.3) -> None:
        super().__init__(grid)
        self.weight, self.zeta = weight, zeta

    def prepare(self, problem: Problem) -> SVD | None:
        return known_svd(problem.operator, problem.y)

    def step(
        self, problem: Problem, x_t: Tensor, t: float, s: float | None, prepared: SVD | None
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = problem.schedule.at(t)
        x_0 = problem.denoise(x_t, t)
        if alpha > 0:
            rho = self.weight * (problem.sigma_y * alpha / sigma) ** 2
            x_0 = data_proximal(problem.operator, problem.y, x_0, rho, prepared)
        if s is None:
            return x_0, x_0
        return x_0, renoised(problem, x_0, eps_from_x0(x_0, x_t, alpha, sigma), s, self.zeta)
