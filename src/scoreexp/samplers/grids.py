"""Time grids: which times a sampler visits.

A grid of ``N = steps`` has the times ``t_1 = t_start > t_2 > ... > t_N = t_end``. Together with the final
denoising this makes ``N`` evaluations for a sampler that spends one per step. All but ``DiscreteGrid`` are
evenly spaced in some coordinate: time, its root, or a function of the noise level.
"""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.schedules import Schedule


class TimeGrid(ABC):
    """Base of all grids.

    >>> import torch
    >>> import scoreexp as se
    >>> class Halving(se.samplers.TimeGrid):
    ...     def __call__(self, schedule, *, t_start=None):
    ...         start = schedule.t_max if t_start is None else t_start
    ...         return start * 0.5 ** torch.arange(self.steps, dtype=torch.float64)
    >>> Halving(3)(se.schedules.VP())
    tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)

    Args:
        steps: number of times ``N``, >= 1.

    Raises:
        ValueError: if ``steps`` is not positive.
    """

    @checked
    def __init__(self, steps: PositiveInt) -> None:
        self.steps = steps

    @abstractmethod
    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        """The times ``[N]``, float64, strictly decreasing from ``t_start`` (default: ``t_max``)."""


class SpacedGrid(TimeGrid):
    """Base of the grids that are evenly spaced in some coordinate.

    >>> import scoreexp as se
    >>> class CubicGrid(SpacedGrid):
    ...     def _between(self, schedule, start, end, fraction):
    ...         return end + (start - end) * (1 - fraction) ** 3
    >>> CubicGrid(3, t_end=0.2)(se.schedules.VP())
    tensor([1.0000, 0.3000, 0.2000], dtype=torch.float64)

    Args:
        steps: number of times ``N``, >= 1; with one step the grid is ``t_start`` alone.
        t_end: the last time; the schedule's ``t_min`` by default.

    Raises:
        ValueError: if ``steps`` is not positive.
    """

    @checked
    def __init__(self, steps: PositiveInt, t_end: NonNegativeFloat | None = None) -> None:
        super().__init__(steps)
        self.t_end = t_end

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        """The times, float64, strictly decreasing from ``t_start`` to ``t_end``.

        Args:
            schedule: whose times they are.
            t_start: the first time; the schedule's ``t_max`` by default. If it equals ``t_end``, it is the
                only one.

        Raises:
            ValueError: unless ``t_min <= t_end <= t_start <= t_max``.
        """
        start = schedule.t_max if t_start is None else t_start
        end = schedule.t_min if self.t_end is None else self.t_end
        if not schedule.t_min <= end <= start <= schedule.t_max:
            raise ValueError(
                f"t_start={start:.6g}, t_end={end:.6g}: choose {schedule.t_min:.6g} <= t_end <= t_start <= "
                f"{schedule.t_max:.6g} for the {type(schedule).__name__} schedule"
            )
        if self.steps == 1 or start == end:
            return torch.tensor([start], dtype=torch.float64)
        times = self._between(schedule, start, end, torch.linspace(0, 1, self.steps, dtype=torch.float64))
        times[0], times[-1] = start, end
        return times

    @abstractmethod
    def _between(self, schedule: Schedule, start: float, end: float, fraction: Tensor) -> Tensor:
        """Times from ``start`` (fraction 0) to ``end`` (fraction 1)."""


class UniformGrid(SpacedGrid):
    """Evenly spaced in time.

    >>> import scoreexp as se
    >>> se.samplers.UniformGrid(3, t_end=0.5)(se.schedules.VP())
    tensor([1.0000, 0.7500, 0.5000], dtype=torch.float64)
    """

    def _between(self, schedule: Schedule, start: float, end: float, fraction: Tensor) -> Tensor:
        return start + fraction * (end - start)


class QuadraticGrid(SpacedGrid):
    """Evenly spaced in the square root of time: denser near the data.

    Reference: J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2021,
    https://arxiv.org/abs/2010.02502, appendix D.2.

    >>> import scoreexp as se
    >>> se.samplers.QuadraticGrid(3, t_end=0.25)(se.schedules.VP())
    tensor([1.0000, 0.5625, 0.2500], dtype=torch.float64)
    """

    def _between(self, schedule: Schedule, start: float, end: float, fraction: Tensor) -> Tensor:
        return (start**0.5 + fraction * (end**0.5 - start**0.5)) ** 2


class NoiseLevelGrid(SpacedGrid):
    """Base of the grids that are evenly spaced in a function of the noise level ``r = sigma / alpha``.

    No spacing is even from infinity. From ``alpha = 0`` the N times are ``t_start`` and N - 1 from the level N on (N times
    the last level, if that is above 1): for the probability flow a first step of the angle 1 / N, whose error falls
    with N like theirs.

    >>> import scoreexp as se
    >>> class LinearNoiseGrid(NoiseLevelGrid):
    ...     def _levels(self, first, last, fraction):
    ...         return first + fraction * (last - first)
    >>> LinearNoiseGrid(3, t_end=20.0)(se.schedules.EDM())
    tensor([80., 50., 20.], dtype=torch.float64)
    """

    def _between(self, schedule: Schedule, start: float, end: float, fraction: Tensor) -> Tensor:
        first, last = schedule.noise_level(torch.tensor([start, end], dtype=torch.float64))
        if first.isfinite():
            return schedule.t_of_sigma(self._levels(first, last, fraction))
        finite = len(fraction) * last.clamp(min=1)
        fraction = torch.linspace(0, 1, len(fraction) - 1, dtype=torch.float64)
        levels = torch.cat([first[None], self._levels(finite, last, fraction)])
        return schedule.t_of_sigma(levels)

    @abstractmethod
    def _levels(self, first: Tensor, last: Tensor, fraction: Tensor) -> Tensor:
        """Levels from the finite ``first`` (fraction 0) to ``last`` (fraction 1)."""


class KarrasGrid(NoiseLevelGrid):
    """Evenly spaced in ``(sigma / alpha)^(1 / rho)``; from ``alpha = 0`` see ``NoiseLevelGrid``.

    Reference: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, equation (5).

    >>> import scoreexp as se
    >>> se.samplers.KarrasGrid(3, rho=2.0, t_end=5.0)(se.schedules.EDM())
    tensor([80.0000, 31.2500,  5.0000], dtype=torch.float64)

    Args:
        steps: number of times, >= 1.
        rho: > 0; 7 in the paper. Larger values put more times at small noise levels.
        t_end: the last time; the schedule's ``t_min`` by default.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        steps: PositiveInt,
        rho: Annotated[PositiveFloat, "7 in the paper"] = 7.0,
        t_end: NonNegativeFloat | None = None,
    ) -> None:
        super().__init__(steps, t_end)
        self.rho = rho

    def _levels(self, first: Tensor, last: Tensor, fraction: Tensor) -> Tensor:
        root_first, root_last = torch.stack([first, last]) ** (1 / self.rho)
        return (root_first + fraction * (root_last - root_first)) ** self.rho


class LogSNRGrid(NoiseLevelGrid):
    """Evenly spaced in ``log(sigma / alpha)``, hence in the logarithm of the signal-to-noise ratio; from ``alpha = 0``
    see ``NoiseLevelGrid``.

    Reference: C. Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in
    Around 10 Steps", 2022, https://arxiv.org/abs/2206.00927.

    >>> import scoreexp as se
    >>> se.samplers.LogSNRGrid(3, t_end=0.8)(se.schedules.EDM())
    tensor([80.0000,  8.0000,  0.8000], dtype=torch.float64)
    """

    def _levels(self, first: Tensor, last: Tensor, fraction: Tensor) -> Tensor:
        log_first, log_last = torch.stack([first, last]).log()
        return (log_first + fraction * (log_last - log_first)).exp()


class DiscreteGrid(TimeGrid):
    r"""DDPM's integer steps ``T, T - c, ..., c`` with ``c = T / steps``, at the times ``t = t_max n / T``.

    From an earlier ``t_start`` the grid is ``t_start`` and the steps below it: the spacing stays, the number
    falls.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, algorithm 2; J. Song et al., 2021, https://arxiv.org/abs/2010.02502,
    section 4.2.

    >>> import scoreexp as se
    >>> se.samplers.DiscreteGrid(4)(se.schedules.DDPM())
    tensor([1.0000, 0.7500, 0.5000, 0.2500], dtype=torch.float64)

    Args:
        steps: number of times from ``t_max`` on, a divisor of ``total_steps``.
        total_steps: ``T``, the number of steps that the model was trained with.

    Raises:
        ValueError: if ``steps`` does not divide ``total_steps``, or a time is outside the schedule's range.
    """

    @checked
    def __init__(self, steps: PositiveInt = 1000, total_steps: PositiveInt = 1000) -> None:
        super().__init__(steps)
        if total_steps % steps:
            raise ValueError(f"steps={steps} does not divide total_steps={total_steps}: choose a divisor")
        self.total_steps = total_steps

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        start = schedule.t_max if t_start is None else t_start
        stride = self.total_steps // self.steps
        n = torch.arange(self.total_steps, 0, -stride, dtype=torch.float64)
        times = schedule.t_max * n / self.total_steps
        first = torch.tensor([start], dtype=torch.float64)
        times = torch.cat([first, times[times < start * (1 - 1e-9)]])
        schedule.alpha(times)  # raises where a time is outside the schedule's range
        return times
