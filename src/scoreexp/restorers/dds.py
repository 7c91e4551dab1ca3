r"""The decomposed diffusion sampler: conjugate gradients on the posterior mean, no gradient through the network.

At each time t of the grid, with the next time s:

1. ``x0_hat = D(x_t, t)``, ``eps_hat = (x_t - alpha_t x0_hat) / sigma_t``;
2. ``x0'``: M steps of conjugate gradients on ``(I + gamma A^T A) x = x0_hat + gamma A^T y``, from ``x0_hat``;
3. ``x_s = alpha_s x0' + sigma_s (sqrt(1 - eta^2) eps_hat + eta z)``.

The result is ``x0'`` at the last time. ``eta`` is this method's own share of fresh noise, not DDIM's.

Reference: H. Chung, S. Lee, J. C. Ye, "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems", 2024,
https://arxiv.org/abs/2303.05754, algorithm 1.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat, PositiveInt, Probability
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.observations import LinearOperator, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers import start_from_prior
from scoreexp.samplers.base import batch_of, spread
from scoreexp.samplers.grids import TimeGrid


class DDS(Restorer):
    """See the module's formulas. One evaluation of the network per time of the grid.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
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

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        gamma: FiniteNonNegativeFloat = 5.0,
        cg_steps: PositiveInt = 5,
        eta: Probability = 0.85,
    ) -> None:
        self.grid, self.gamma, self.cg_steps, self.eta = grid, gamma, cg_steps, eta

    @torch.no_grad()
    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y, operator = observation.y, observation.operator
        if model.event_shape is None:
            raise ValueError("DDS needs a model that knows the shape of its samples: give the prior of x")
        if not isinstance(operator, LinearOperator):
            raise ValueError(
                f"DDS solves linear problems, and {type(operator).__name__} is no LinearOperator"
            )
        observation.require_shape(model.event_shape)
        if not y.isfinite().all():
            raise ValueError("y holds values that are not finite: find their origin")
        schedule, times = model.schedule, self.grid(model.schedule).tolist()
        x_t = start_from_prior(model, model.event_shape, streams, dtype=y.dtype, device=y.device)
        back_projected = operator.adjoint(y)
        kept = spread(1, len(times), keep)
        trajectory: list[Tensor] = []
        for i, t in enumerate(times, start=1):
            # 1.
            alpha_t, sigma_t = schedule.at(t)
            x0_hat = model(x_t, batch_of(t, x_t), cond)
            if not x0_hat.isfinite().all():
                raise FloatingPointError(
                    f"the model's estimate is not finite at step {i} of {len(times)}: check its weights"
                )
            eps_hat = eps_from_x0(x0_hat, x_t, alpha_t, sigma_t)
            # 2.
            x0 = conjugate_gradient(
                lambda x: x + self.gamma * operator.adjoint(operator(x)),
                x0_hat + self.gamma * back_projected,
                x0_hat,
                max_iter=self.cg_steps,
                tol=0.0,
            ).x
            if not x0.isfinite().all():
                raise FloatingPointError(
                    f"the estimate is not finite at step {i} of {len(times)}: choose a smaller gamma than {self.gamma:g}"
                )
            # 3.
            if i < len(times):
                alpha_s, sigma_s = schedule.at(times[i])
                noise = math.sqrt(1 - self.eta**2) * eps_hat
                if self.eta > 0:
                    noise = noise + self.eta * streams.normal(x_t)
                x_t = alpha_s * x0 + sigma_s * noise
            if i in kept:
                trajectory.append(x0)
            if callback is not None:
                callback(i, len(times), x0, x0_hat)
        return x0, trajectory
