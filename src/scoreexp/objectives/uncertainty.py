r"""A learned weight by noise level: each level's loss is divided by the size that it has.

With ``L_i`` the loss of a sample at the noise level ``r = sigma / alpha`` and a learned function ``u`` of that level,

.. math:: e^{-u(r)} L_i + u(r) .

For a fixed model its expectation at one level is least at ``e^u = E[L | r]``, where it is ``1 + log E[L | r]``; so every
level gives gradients of about the same size, and which levels are trained most is left to the law of times.

Reference: T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine, "Analyzing and Improving the Training
Dynamics of Diffusion Models", 2024, https://arxiv.org/abs/2312.02696, appendix B (EDM2), after A. Kendall, Y. Gal,
R. Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", 2018, https://arxiv.org/abs/1705.07115.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective

_LARGEST_LEVEL = 1e4  # infinite noise levels are this one, as for networks
_SLOWEST, _FASTEST = (
    1 / 32,
    1.0,
)  # periods per unit of log(sigma / alpha): u is smooth over the range of levels


class UncertaintyWeighted(nn.Module, Objective):
    """``loss = exp(-u(r)) objective + u(r)``, with ``u`` linear in Fourier features of ``log r`` and 0 at the start.

    The value is no distance any more and may be negative.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.VP())
    >>> objective = UncertaintyWeighted(se.objectives.DenoisingScoreMatching(se.objectives.X0Weighting()))
    >>> objective(model, Batch(x=torch.full((3, 2), 0.5)), torch.full((3,), 0.2), torch.randn(3, 2)).detach()  # as inside
    tensor([0.2500, 0.2500, 0.2500])

    Args:
        objective: of which the weight is learned; what it learns itself is trained too.
        features: number of functions of the noise level, of which ``u`` is a linear combination.

    Raises:
        ValueError: if ``features`` is not positive; on a call, what ``objective`` refuses.
    """

    frequencies: Tensor
    phases: Tensor

    @checked
    def __init__(self, objective: Objective, features: PositiveInt = 64) -> None:
        super().__init__()
        self.objective = objective
        ratio = _FASTEST / _SLOWEST
        frequencies = 2 * math.pi * _SLOWEST * ratio ** torch.linspace(0, 1, features)
        self.register_buffer("frequencies", frequencies, persistent=False)
        # neighbours are a quarter of a turn apart: sine and cosine of about the same frequency
        self.register_buffer("phases", torch.arange(features) * (math.pi / 2), persistent=False)
        self.weight = nn.Parameter(torch.zeros(features + 1))  # the last one is the constant

    def prepare(self, size: int, fetch: Callable[[Tensor], Batch]) -> None:
        self.objective.prepare(size, fetch)

    def log_size(self, level: Tensor) -> Tensor:
        """``u(r)[B]`` of noise levels ``r[B]``, the logarithm of the loss that is expected there."""
        phase = level.clamp(max=_LARGEST_LEVEL).log().to(self.weight)[:, None] * self.frequencies
        features = (phase + self.phases).cos() * math.sqrt(2 / len(self.frequencies))
        return features @ self.weight[:-1] + self.weight[-1]

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        losses = self.objective(model, batch, t, noise)
        level = model.schedule.noise_level(t.to(device="cpu", dtype=torch.float64))
        u = self.log_size(level).to(losses)
        return (-u).exp() * losses + u
