r"""Denoising diffusion restoration models: the chain runs in the singular directions of the operator.

With ``A = U S V^T``, ``y_i = (U^T y)_i / s_i`` and noise levels ``r_t = sigma_t / alpha_t`` the state ``x_t / alpha_t`` has
the coordinates ``x_i`` along ``V``. It begins at ``N(y_i, r_T^2 - sigma_y^2 / s_i^2)`` where ``s_i > 0`` and
``r_T >= sigma_y / s_i``, at ``N(0, r_T^2)`` elsewhere; where ``r_T`` is low, around the estimate of ``start.py`` instead
of 0. From t to s, with ``d = V^T D(x_t, t)``:

.. math:: x_i' \sim \begin{cases}
          N(d_i + \sqrt{1 - \eta^2}\, r_s (x_i - d_i) / r_t,\; \eta^2 r_s^2) & s_i = 0, \\
          N(d_i + \sqrt{1 - \eta^2}\, r_s (y_i - d_i) s_i / \sigma_y,\; \eta^2 r_s^2) & r_s < \sigma_y / s_i, \\
          N((1 - \eta_b) d_i + \eta_b y_i,\; r_s^2 - \eta_b^2 \sigma_y^2 / s_i^2) & r_s \ge \sigma_y / s_i .
          \end{cases}

Reference: B. Kawar, M. Elad, S. Ermon, J. Song, "Denoising Diffusion Restoration Models", 2022,
https://arxiv.org/abs/2201.11793, equations (7) and (8).
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import Probability
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.observations.operators import SVD
from scoreexp.restorers.chain import Chain, Problem
from scoreexp.samplers.grids import TimeGrid

Prepared = tuple[SVD, Tensor, Tensor]


class DDRM(Chain):
    """See the module's formulas; the last step goes to ``r_s = 0``. For operators whose decomposition is known.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.0))
    >>> DDRM(UniformGrid(20))(observation, model, streams=ImageStreams([0])).x
    tensor([[1., 1.]])

    Args:
        grid: the times visited.
        eta: share of fresh noise where the data say nothing, in [0, 1] (0.85 in the paper).
        eta_b: weight of the data, in [0, 1] (1 in the paper).

    Raises:
        ValueError: a parameter is outside its domain; on a call, the operator has no decomposition.
    """

    @checked
    def __init__(self, grid: TimeGrid, eta: Probability = 0.85, eta_b: Probability = 1.0) -> None:
        super().__init__(grid)
        self.eta, self.eta_b = eta, eta_b

    def prepare(self, problem: Problem) -> Prepared:
        """The decomposition, ``y_i``, and their noise ``sigma_y / s_i``, infinite where nothing is measured."""
        svd = problem.operator.svd(problem.y)
        seen = svd.measured
        divisor = torch.where(seen, svd.singular, 1)
        level = torch.where(seen, problem.sigma_y / divisor, torch.inf)
        return svd, svd.ut(problem.y) / divisor, level

    def start(self, problem: Problem, share: Tensor, noise: Tensor, t: float, prepared: Prepared) -> Tensor:
        svd, y, level = prepared
        alpha, sigma = problem.schedule.at(t)
        brought = torch.where(level.isfinite(), alpha * level, torch.inf)  # alpha may be 0
        used = sigma >= brought
        spread = torch.where(used, (sigma**2 - brought**2).clamp(min=0).sqrt(), sigma)
        return svd.v(
            torch.where(used, alpha * y, svd.vt(share)) + spread * svd.vt(noise / problem.schedule.prior_std)
        )

    def step(
        self, problem: Problem, x_t: Tensor, t: float, s: float | None, prepared: Prepared
    ) -> tuple[Tensor, Tensor]:
        svd, y, level = prepared
        alpha_t, sigma_t = problem.schedule.at(t)
        alpha_s, sigma_s = (1.0, 0.0) if s is None else problem.schedule.at(s)
        r_s = sigma_s / alpha_s
        denoised = problem.denoise(x_t, t)
        d = svd.vt(denoised)
        eps = svd.vt(eps_from_x0(denoised, x_t, alpha_t, sigma_t))

        keep = (1 - self.eta**2) ** 0.5 * r_s
        unseen = d + keep * eps  # (x_i - d_i) / r_t, also where alpha_t is 0
        below = d + keep * (y - d) / torch.where(level.isfinite() & (level > 0), level, 1)
        above = (1 - self.eta_b) * d + self.eta_b * y
        finite = torch.where(level.isfinite(), level, 0)
        deviation = (r_s**2 - (self.eta_b * finite) ** 2).clamp(min=0).sqrt()

        is_above = r_s >= level
        mean = torch.where(level.isinf(), unseen, torch.where(is_above, above, below))
        if s is None:
            x_0 = svd.v(mean)
            return x_0, x_0
        spread = torch.where(is_above, deviation, self.eta * r_s)
        x_s = svd.v(mean + spread * svd.vt(problem.streams.normal(x_t)))
        return denoised, alpha_s * x_s
