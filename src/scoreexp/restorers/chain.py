"""Restorers that are a reverse diffusion in which each estimate of the clean data is made to agree with the observation."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, LinearOperator, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.requirements import event_shape, gaussian_level, linear_operator
from scoreexp.restorers.start import image_share, squared_norm
from scoreexp.samplers import start_from_prior
from scoreexp.samplers.base import batch_of, spread
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule

DIVERGED = 1e6  # of estimates of data near 1


@dataclass(frozen=True)
class Problem:
    """What the steps of a chain know.

    Attributes:
        denoise: ``(x_t [B, *], t) -> E[x_0 | x_t]``, with the labels of the call.
        schedule: of the model.
        y: the data ``[B, *]``.
        operator: ``A``.
        sigma_y: standard deviation of the noise of ``y``, for those that use it.
        streams: one random stream per sample.
    """

    denoise: Callable[[Tensor, float], Tensor]
    schedule: Schedule
    y: Tensor
    operator: LinearOperator
    sigma_y: float
    streams: ImageStreams

    @cached_property
    def squared_norm(self) -> float:
        """``|A|^2``, by which the step of a squared residual is divided, so that no unit of ``y`` makes it too long."""
        return squared_norm(self.operator, self.y, self.operator.adjoint(self.y[:1]).shape[1:])


class Chain(Restorer):
    """Base of the restorers with one estimate of the clean data for each time of a grid, beginning at the prior.

    A new one writes ``step``; what it computes once goes into ``prepare``. The result is the estimate at the last time.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.restorers.chain import Chain, renoised
    >>> class Average(Chain):
    ...     '''The posterior mean moved half way to the data.'''
    ...     def step(self, problem, state, t, s, prepared):
    ...         x_0 = (problem.denoise(state, t) + problem.y) / 2
    ...         return x_0, x_0 if s is None else renoised(problem, x_0, torch.zeros_like(x_0), s, 1.0)
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.zeros(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(0.5))
    >>> Average(se.samplers.UniformGrid(10))(observation, model, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Attributes:
        uses_sigma: whether the noise level of y enters, which then must be white Gaussian.
        divides_by_sigma: whether it must not be 0.

    Args:
        grid: the times visited.
    """

    uses_sigma: ClassVar[bool] = True
    divides_by_sigma: ClassVar[bool] = False

    def __init__(self, grid: TimeGrid) -> None:
        self.grid = grid

    def prepare(self, problem: Problem) -> Any:
        """What every step needs again, such as ``A^T y``; it refuses what this restorer cannot serve."""
        return None

    def start(self, problem: Problem, share: Tensor, noise: Tensor, t: float, prepared: Any) -> Any:
        """The first state, of the image's share ``[B, *]`` and noise of the prior's standard deviation."""
        return share + noise

    @abstractmethod
    def step(
        self, problem: Problem, state: Any, t: float, s: float | None, prepared: Any
    ) -> tuple[Tensor, Any]:
        """From time ``t`` to ``s < t``: the estimate ``x_0 [B, *]`` and the next state, most often ``x_s``.

        ``s`` is None at the last time, whose state is not used.
        """

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        name = type(self).__name__
        with torch.inference_mode(False), torch.no_grad():
            problem = self._problem(observation, model, streams, cond)
            times = self.grid(model.schedule).tolist()
            y = problem.y
            shape = event_shape(name, model)
            noise = start_from_prior(model, shape, streams, dtype=y.dtype, device=y.device)
            prepared = self.prepare(problem)
            share = image_share(model.schedule, problem.operator, y, problem.sigma_y, shape)
            state = self.start(problem, share, noise, times[0], prepared)
            kept = spread(1, len(times), keep)
            trajectory: list[Tensor] = []
            for i, (t, s) in enumerate(zip(times, [*times[1:], None], strict=True), start=1):
                place = f"at step {i} of {len(times)}, t = {t:.6g}"
                try:
                    x_0, state = self.step(problem, state, t, s, prepared)
                except FloatingPointError as error:
                    reason = str(error).partition(":")[0]
                    raise FloatingPointError(f"{name}: {reason} failed {place}: {self.remedy()}") from error
                if not x_0.isfinite().all():
                    raise FloatingPointError(f"{name}: the estimate is not finite {place}: {self.remedy()}")
                if (largest := float(x_0.abs().max())) > DIVERGED:
                    raise FloatingPointError(
                        f"{name}: the estimate has reached {largest:.2g} {place}, so it diverges: {self.remedy()}"
                    )
                if i in kept:
                    trajectory.append(x_0)
                if callback is not None:
                    callback(i, len(times), x_0, x_0)
        return x_0, trajectory

    def remedy(self) -> str:
        """What to change where the chain diverges: the parameter that weighs the data, with its value."""
        return "check the weights of the network"

    def _problem(
        self, observation: Observation, model: DenoiserBase, streams: ImageStreams, cond: Tensor | None
    ) -> Problem:
        name, y = type(self).__name__, observation.y
        shape, operator = event_shape(name, model), linear_operator(name, observation)
        is_gaussian = isinstance(observation.noise, GaussianNoise)
        sigma = gaussian_level(name, observation) if self.uses_sigma or is_gaussian else 0.0
        observation.require_shape(shape)
        observation.require_finite()
        if self.divides_by_sigma and sigma == 0:
            raise ValueError(
                f"{name} divides by the noise level of y, which is 0: give a small one, or take a restorer for data "
                "without noise, such as DDNM or DDS"
            )
        begun = model.begin()
        return Problem(
            lambda x, t: begun(x, batch_of(t, x), cond),
            model.schedule,
            y.clone() if y.is_inference() else y,
            operator,
            sigma,
            streams,
        )


def renoised(problem: Problem, x_0: Tensor, eps: Tensor, s: float, fresh: float) -> Tensor:
    r"""``alpha_s x_0 + sigma_s (sqrt(1 - fresh) eps + sqrt(fresh) z)``: noise of which a share is drawn anew."""
    alpha, sigma = problem.schedule.at(s)
    if fresh == 0:
        return alpha * x_0 + sigma * eps
    noise = (1 - fresh) ** 0.5 * eps + fresh**0.5 * problem.streams.normal(x_0)
    return alpha * x_0 + sigma * noise
