r"""What every sampler is: steps along a time grid, from noise towards data.

A sampler visits the times ``t_1 > t_2 > ... > t_N`` of its grid. Each step takes the state from ``t`` to the
next time ``s``; after the last time the posterior mean ``E[x_0 | x_t]`` is the result. A sampler with one
evaluation of the network per step therefore spends ``N`` evaluations (NFE) on ``N`` times, as DDPM counts its
1000 steps.

A new sampler writes ``step`` as its paper's algorithm; what it carries from step to step (earlier
predictions, a step size) is the value that ``init_state`` and ``step`` return, never an attribute of the
sampler.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.counting import counting
from scoreexp.denoisers.denoiser import DenoiserBase, Wrapper
from scoreexp.samplers.grids import TimeGrid
from scoreexp.samplers.starts import start_from_observation
from scoreexp.schedules import Schedule

Callback = Callable[[int, int, Tensor, Tensor | None], None]


class SampleResult(NamedTuple):
    """What a sampler returns.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> result = se.samplers.draw(model, se.samplers.DDIM(se.samplers.UniformGrid(10)), seeds=[0], keep=3)
    >>> result.nfe, len(result.trajectory), torch.equal(result.trajectory[-1], result.x)
    (10, 3, True)

    Attributes:
        x: the samples ``[B, *]``.
        nfe: evaluations of the network for each sample, whatever wraps it.
        trajectory: the kept states ``[B, *]``, first to last.
        times: the time of each kept state, float64; 0 for the denoised result.
    """

    x: Tensor
    nfe: int
    trajectory: list[Tensor]
    times: Tensor


class _Bound(Wrapper):
    """The model with its labels or images, remembering the last posterior mean."""

    def __init__(self, model: DenoiserBase, cond: Tensor | None) -> None:
        super().__init__(model)
        self.cond = cond
        self.x0_hat: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.x0_hat = self.model(x_t, t, self.cond if cond is None else cond)
        return self.x0_hat

    def toward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        self.x0_hat = self.model.toward(x_t, t, s, self.cond if cond is None else cond)
        return self.x0_hat


class Sampler(ABC):
    """Base of all samplers.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.samplers.base import batch_of
    >>> class Renoise(se.samplers.Sampler):
    ...     '''x_s = alpha_s x0_hat + sigma_s z'''
    ...     def step(self, model, x_t, t, s, state, streams):
    ...         alpha_s, sigma_s = model.schedule.at(s)
    ...         return alpha_s * model(x_t, batch_of(t, x_t)) + sigma_s * streams.normal(x_t), state
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> se.samplers.draw(model, Renoise(se.samplers.UniformGrid(10)), seeds=[0, 1]).x.shape
    torch.Size([2, 2])

    Args:
        grid: the times visited.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time (one more evaluation) instead of ``x_t``
            itself.
    """

    @checked
    def __init__(self, grid: TimeGrid, denoise_last: bool = True) -> None:
        self.grid = grid
        self.denoise_last = denoise_last

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> Any:
        """What the first ``step`` receives as ``state``: None, unless a sampler remembers more than that it has begun.

        Raises:
            ValueError: unless the noise level falls from each of ``times [N]`` to the next; override what does without.
        """
        falling_noise_levels(model.schedule, times)
        return None

    def asked(self, model: DenoiserBase, streams: ImageStreams) -> DenoiserBase:
        """The denoiser that is asked at each time: ``model``, unless a sampler draws something for it."""
        return model

    def start(self, schedule: Schedule, y: Tensor, sigma: float) -> tuple[Tensor, float]:
        """State and time at which denoising an observation begins; see ``start_from_observation``."""
        return start_from_observation(schedule, y, sigma)

    @abstractmethod
    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        """One step from time ``t`` to ``s < t``: returns ``x_s [B, *]`` and the next state.

        ``model(x_t, t)``, ``model.score`` and ``model.eps`` have the labels or images ``cond`` of the call.
        """

    def last(self, model: DenoiserBase, x_t: Tensor, t: float) -> Tensor:
        """The result from the last time ``t`` of the grid, by one evaluation: ``E[x_0 | x_t]``, ``[B, *]``."""
        return model(x_t, batch_of(t, x_t))

    @torch.no_grad()
    def __call__(
        self,
        model: DenoiserBase,
        x: Tensor,
        *,
        streams: ImageStreams,
        grid: TimeGrid | None = None,
        t_start: float | None = None,
        cond: Tensor | None = None,
        keep: int = 0,
        callback: Callback | None = None,
    ) -> SampleResult:
        """Run the sampler.

        Args:
            model: the denoiser; put a network into evaluation mode first.
            x: the state at ``t_start``, ``[B, *]``.
            streams: one random stream per sample.
            grid: the times visited instead of the sampler's own.
            t_start: time of ``x``; the schedule's ``t_max`` by default.
            cond: class labels ``[B]``, images ``[B, C', H, W]`` that the model is conditioned on, or None.
            keep: how many evenly spaced states to return, the last one always among them; at most all of
                them.
            callback: called after each step as ``callback(i, n, x, x0_hat)`` with ``i = 1, ..., n``, the new
                state and the latest posterior mean.

        Raises:
            ValueError: if ``t_start`` is outside the schedule's range, the grid has no step or equal times, or ``keep`` is
                negative.
            FloatingPointError: if a state is not finite; names the step and the time.
        """
        if keep < 0:
            raise ValueError(f"keep={keep}: choose how many states to keep, >= 0")
        bound = _Bound(self.asked(model.begin(), streams), cond)
        grid = grid or self.grid
        times = grid(model.schedule, t_start=t_start)
        if grid.steps == 1 and len(times) == 1 and not self.denoise_last:
            raise ValueError(
                f"{type(self).__name__}: one time and denoise_last=False make no step: choose grid.steps >= 2"
            )
        visited = times.tolist() + [0.0] * self.denoise_last
        n = len(visited) - 1
        kept = spread(0, n, keep)
        trajectory = [x] if 0 in kept else []

        with counting() as evaluations:
            state = self.init_state(bound, x, times)
            for i, (t, s) in enumerate(pairwise(visited), start=1):
                if self.denoise_last and i == n:
                    x = self.last(bound, x, t)
                else:
                    x, state = self.step(bound, x, t, s, state, streams)
                if not x.isfinite().all():
                    raise FloatingPointError(
                        f"the state is not finite after step {i} of {n}, from t = {t:.6g} to {s:.6g}: "
                        "check the weights of the network, or sample in float32"
                    )
                if i in kept:
                    trajectory.append(x)
                if callback is not None:
                    callback(i, n, x, bound.x0_hat)
        nfe = evaluations.per_sample(len(x))
        return SampleResult(x, nfe, trajectory, torch.tensor(visited, dtype=torch.float64)[sorted(kept)])


def spread(first: int, last: int, count: int) -> set[int]:
    """``count`` whole numbers, evenly spaced from ``last`` down to ``first``; at most all of them.

    >>> sorted(spread(0, 10, 3))
    [0, 5, 10]
    """
    return set(torch.linspace(last, first, count, dtype=torch.float64).round().int().tolist())


def falling_noise_levels(schedule: Schedule, times: Tensor) -> Tensor:
    """``sigma / alpha`` at ``times [N]``, the first maybe infinite, for samplers that step from one to the next.

    Raises:
        ValueError: unless it falls from each time to the next.
    """
    levels = schedule.noise_level(times)
    if (levels.diff() < 0).all():
        return levels
    low, high = schedule.sigma_range
    if low < high and not (times.diff() < 0).all():
        again = int((times.diff() >= 0).nonzero()[0, 0])
        raise ValueError(
            f"time {again + 2} of the grid is {times[again + 1].item():.6g} and the one before {times[again].item():.6g}: "
            "choose times that fall from each to the next (fewer steps, or another grid)"
        )
    raise ValueError(
        f"the {type(schedule).__name__} schedule has the same noise level {levels[0].item():.6g} at different "
        "times, so there is no flow to follow: choose a schedule whose noise grows (vp, ve, ddpm)"
    )


def step_from_noise(
    model: DenoiserBase, x_t: Tensor, t: float, s: float, streams: ImageStreams | None = None
) -> Tensor:
    r"""The step to ``s`` from a time ``t`` at which ``alpha`` is 0, one evaluation: ``x_s [B, *]``.

    .. math:: x_s = \alpha_s \hat x_0 + \sigma_s z

    For samplers whose own step takes ``x_t / alpha`` or the drift, which do not exist there. The posterior mean is that of
    the data, whatever ``x_t``, and the noise is known: ``z = x_t / sigma_t`` follows the probability flow (DDIM), with an
    error of order ``(alpha_s / sigma_s)^2``. With ``streams`` z is drawn anew: the reverse SDE has an infinite drift there
    and forgets ``x_t`` at once (ancestral sampling).
    """
    alpha_s, sigma_s = model.schedule.at(s)
    x0_hat = model(x_t, batch_of(t, x_t))
    z = x_t / model.schedule.at(t)[1] if streams is None else streams.normal(x_t)
    return alpha_s * x0_hat + sigma_s * z


def batch_of(t: float, x: Tensor) -> Tensor:
    """The time ``t`` of every sample of ``x[B, *]``: ``[B]``, float64 on the CPU.

    >>> batch_of(0.5, torch.zeros(2, 3, 8, 8))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    return torch.full((x.shape[0],), t, dtype=torch.float64)
