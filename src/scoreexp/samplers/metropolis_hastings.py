"""Metropolis-Hastings with an energy that a denoising auto-encoder knows by its differences alone."""

from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to, sum_per_sample
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.grids import TimeGrid


class MetropolisHastings(Sampler):
    r"""A random walk at the one noise level where it starts, accepted by a line integral of the score.

    1. propose ``x' = x + step_size z``;
    2. the energy difference is the integral of :math:`r(x) - x = \sigma^2 \nabla \log p(x)` along the straight line,

       .. math:: \log p(x') - \log p(x) = \int_0^1 \nabla \log p\bigl(x + u (x' - x)\bigr) \cdot (x' - x)\, du ,

       by ``nodes`` points of Gauss-Legendre quadrature, one evaluation each;
    3. take ``x'`` with the probability ``min(1, p(x') / p(x))``, else stay.

    It samples ``p_t`` without the error of a step size, and its long steps go from mode to mode with the modes' true
    weights, which Langevin dynamics keep as they started because their steps are short. The quadrature needs about two
    points for each noise level that a step spans. A network's score need not be a gradient; then the integral depends on
    the path and the chain has no such law. In many dimensions hardly a proposal is taken.

    Reference: G. Alain, Y. Bengio, "What Regularized Auto-Encoders Learn from the Data-Generating Distribution", 2014,
    https://arxiv.org/abs/1211.4246, section 4.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.ConstantNoise(0.2))
    >>> sampler = se.samplers.MetropolisHastings(se.samplers.ConstantGrid(10), step_size=1.0, nodes=4)
    >>> sampler(model, torch.zeros(3, 2), streams=ImageStreams([0, 1, 2])).nfe
    40

    Args:
        grid: how many updates: a ``ConstantGrid``.
        step_size: standard deviation of a proposal, in units of the data ([-1, 1]).
        nodes: of the quadrature.
        denoise_last: end with ``E[x_0 | x_t]`` (one more evaluation).

    Raises:
        ValueError: if a parameter is outside its domain; on a call, if ``alpha`` is 0 at the start, where there is noise
            alone.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        step_size: PositiveFloat = 0.5,
        nodes: Annotated[PositiveInt, "2 for each noise level that a step spans"] = 8,
        denoise_last: bool = False,
    ) -> None:
        super().__init__(grid, denoise_last)
        self.step_size, self.nodes = step_size, nodes

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> list[tuple[float, float]]:
        """The points and weights of the quadrature on [0, 1]."""
        if not (model.schedule.alpha(times) > 0).all():
            raise ValueError(
                f"Metropolis-Hastings at t={times[0].item():g} of the {type(model.schedule).__name__} schedule, where alpha "
                "is 0, sees noise alone: choose t_start < t_max, or langevin_annealed"
            )
        points, weights = np.polynomial.legendre.leggauss(self.nodes)
        return [((u + 1) / 2, w / 2) for u, w in zip(points.tolist(), weights.tolist(), strict=True)]

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        # 1. proposal; the step is of x_t / alpha
        move = self.step_size * model.schedule.at(t)[0] * streams.normal(x_t)
        # 2. line integral
        gain = torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
        for u, weight in state:
            score = model.score(x_t + u * move, batch_of(t, x_t))
            gain = gain + weight * sum_per_sample(score * move)
        # 3. accept; a gain that is no number makes the state none, so that it is reported and no proposal quietly refused
        uniform = torch.special.ndtr(streams.normal(gain))
        taken = torch.where(gain.isnan(), gain, (uniform.log() < gain).to(gain))
        return x_t + expand_to(taken, x_t) * move, state
