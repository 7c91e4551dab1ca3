"""Discrete variance-preserving diffusions: a table of betas, the schedule through it, and the steps that are visited."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, NonNegativeInt, OpenProbability, PositiveInt
from scoreexp.samplers.grids import TimeGrid
from scoreexp.schedules import Schedule
from scoreexp.schedules.base import VariancePreserving

_TOLERANCE = 1e-4  # of one step, as in schedules.DDPM


class Betas:
    r"""The cumulative products ``abar_n = prod_{i <= n} (1 - beta_i)`` of a trained model, n = 1 .. T.

    They are computed in the precision in which the library computes them: at the last steps, where ``abar`` is 4e-5, the
    rounding of a product of a thousand numbers in float32 changes ``E[x_0 | x_t]`` by 1e-4.

    .. math:: \text{linear: } \beta_n \text{ from start to end}, \quad
              \text{scaled\_linear: } \sqrt{\beta_n} \text{ is}, \quad
              \text{squaredcos\_cap\_v2: } \bar\alpha = \cos^2 \frac{\pi}{2} \frac{t + 0.008}{1.008}, \beta \le 0.999, \quad
              \text{sigmoid: } \beta_n = start + (end - start) / (1 + e^{-u}), u \text{ from -6 to 6} .

    >>> round(Betas("linear").cumulative[-1].item(), 7)
    4.04e-05
    >>> Betas("scaled_linear", start=0.00085, end=0.012, zero_terminal_snr=True).cumulative[-1].item()
    0.0

    Args:
        kind: the formula; ``given`` for the values of ``cumulative``.
        steps: ``T``.
        start: the first beta of a formula.
        end: the last.
        cumulative: ``abar_1 .. abar_T`` themselves, falling, in [0, 1); ``kind`` must be ``given``.
        zero_terminal_snr: shift and scale the square roots of ``abar`` so that the last is 0 (S. Lin, B. Liu, J. Li,
            X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024, https://arxiv.org/abs/2305.08891).
        double: compute in float64 instead of float32.

    Raises:
        ValueError: the values are not those of a diffusion.
    """

    @checked
    def __init__(
        self,
        kind: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "given"] = "linear",
        steps: AtLeastTwo = 1000,
        start: OpenProbability = 1e-4,
        end: OpenProbability = 0.02,
        cumulative: Sequence[float] | None = None,
        zero_terminal_snr: bool = False,
        double: bool = False,
    ) -> None:
        if (kind == "given") != (cumulative is not None):
            raise ValueError(
                f"kind={kind} with cumulative values {'given' if cumulative else 'missing'}: give both"
            )
        dtype = torch.float64 if double else torch.float32  # on the CPU, also while shapes alone are computed
        if cumulative is not None:
            found = torch.tensor(cumulative, dtype=torch.float64, device="cpu")
        else:
            betas = _formula(kind, steps, start, end, dtype)
            if zero_terminal_snr:
                betas = _without_terminal_signal(betas)
            found = torch.cumprod(1.0 - betas, dim=0).double()
        falls = bool(len(found) > 1 and (found.diff() < 0).all())
        if not (falls and found[-1] >= 0 and found[0] < 1):
            raise ValueError(
                f"{len(found)} cumulative products, {found[0].item():.4g} to {found[-1].item():.4g}: they must fall "
                "from below 1 to 0 or more"
            )
        self.cumulative = found

    @property
    def steps(self) -> int:
        """``T``."""
        return len(self.cumulative)


def _formula(kind: str, steps: int, start: float, end: float, dtype: torch.dtype) -> Tensor:
    if kind == "linear":
        return torch.linspace(start, end, steps, dtype=dtype, device="cpu")
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, steps, dtype=dtype, device="cpu") ** 2
    if kind == "sigmoid":
        return torch.linspace(-6, 6, steps, dtype=dtype, device="cpu").sigmoid() * (end - start) + start
    angles = [(n / steps + 0.008) / 1.008 * math.pi / 2 for n in range(steps + 1)]
    bars = [math.cos(angle) ** 2 for angle in angles]
    betas = [min(1 - late / early, 0.999) for early, late in pairwise(bars)]
    return torch.tensor(betas, dtype=dtype, device="cpu")


def _without_terminal_signal(betas: Tensor) -> Tensor:
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    squared = ((root - last) * (first / (first - last))) ** 2
    ratios = squared[1:] / squared[:-1]
    return 1 - torch.cat([squared[:1], ratios])


class DiscreteVP(VariancePreserving):
    """A table of betas read as a continuous schedule on ``1/T <= t <= 1``, step ``n`` at ``t = n/T``.

    Between the steps ``log alpha`` is linear in t, on the last step to ``abar_T = 0`` alpha itself is. ``schedules.DDPM`` is
    the special case of linear betas in float64.

    >>> schedule = DiscreteVP(Betas("linear", double=True))
    >>> from scoreexp.schedules import DDPM
    >>> abs(schedule.at(0.5)[0] - DDPM().at(0.5)[0]) < 1e-12, DiscreteVP(Betas("linear", zero_terminal_snr=True)).at(1.0)
    (True, (0.0, 1.0))

    Args:
        betas: the table.
    """

    @checked
    def __init__(self, betas: Betas) -> None:
        super().__init__(t_min=1 / betas.steps, t_max=1.0)
        self.steps = betas.steps
        start = torch.zeros(1, dtype=torch.float64, device="cpu")
        self._knots = torch.cat([start, 0.5 * betas.cumulative.log()])
        self._ends_without_signal = bool(betas.cumulative[-1] == 0)

    def _alpha(self, t: Tensor) -> Tensor:
        return self._to_zero(t, self._log_alpha(t).exp())

    def _log_alpha(self, t: Tensor) -> Tensor:
        n = self._step(t)
        rest = self.steps * t - n
        slope = self._knots[n] - self._knots[n - 1]
        if not self._ends_without_signal:
            return self._knots[n] + rest * slope
        last = n == self.steps
        within = self._knots[n - 1] + (rest + 1) * torch.where(last, 0.0, slope)
        return torch.where(last, self._knots[-2] + (-rest).clamp(0, 1).log(), within)

    def _to_zero(self, t: Tensor, alpha: Tensor) -> Tensor:
        if not self._ends_without_signal:
            return alpha
        n = self._step(t)
        linear = self._knots[-2].exp() * (n - self.steps * t).clamp(0, 1)
        return torch.where(n == self.steps, linear, alpha)

    def _drift(self, t: Tensor) -> Tensor:
        n = self._step(t)
        slope = self.steps * (self._knots[n] - self._knots[n - 1]) + 0 * t
        if not self._ends_without_signal:
            return slope
        return torch.where(n == self.steps, -self.steps / (n - self.steps * t).clamp(0, 1), slope)

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        n = torch.searchsorted(-self._knots, -log_alpha).clamp(1, self.steps)
        slope = self._knots[n] - self._knots[n - 1]
        within = (log_alpha - self._knots[n - 1]) / slope
        if self._ends_without_signal:
            within = torch.where(n == self.steps, 1 - (log_alpha - self._knots[-2]).exp(), within)
        return (n - 1 + within) / self.steps

    def _step(self, t: Tensor) -> Tensor:
        return torch.ceil(self.steps * t.detach() - _TOLERANCE).long().clamp(1, self.steps)


class TimestepGrid(TimeGrid):
    """The steps that diffusers' schedulers visit, of a model trained with T of them.

    With ``linspace`` and ``trailing`` spacing and a number of steps that does not divide T, diffusers' DDIM takes each state
    ``T // steps`` back, which is not where its next step begins, and noise stays in the image. Here a step ends where the
    next one begins.

    Reference: S. Lin, B. Liu, J. Li, X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024,
    https://arxiv.org/abs/2305.08891, table 2.

    >>> TimestepGrid(4, spacing="trailing", total_steps=8)(DiscreteVP(Betas("linear", 8)))
    tensor([1.0000, 0.7500, 0.5000, 0.2500], dtype=torch.float64)

    Args:
        steps: number of times, >= 1 and at most ``total_steps``.
        spacing: ``leading`` from the first step on, ``trailing`` from the last one down, ``linspace`` with both ends.
        offset: added to the steps of ``leading``.
        total_steps: ``T``.

    Raises:
        ValueError: there are more steps than T, or an offset leads beyond the last.
    """

    @checked
    def __init__(
        self,
        steps: PositiveInt = 50,
        spacing: Literal["leading", "trailing", "linspace"] = "leading",
        offset: NonNegativeInt = 0,
        total_steps: Annotated[AtLeastTwo, "1000 as a rule"] = 1000,
    ) -> None:
        super().__init__(steps)
        if steps > total_steps:
            raise ValueError(f"steps={steps} of total_steps={total_steps}: choose at most that many")
        self.spacing, self.offset, self.total_steps = spacing, offset, total_steps

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> Tensor:
        total = self.total_steps
        if self.spacing == "linspace":
            indices: np.ndarray = np.linspace(0, total - 1, self.steps).round()[::-1]
        elif self.spacing == "leading":
            indices = (np.arange(self.steps) * (total // self.steps))[::-1] + self.offset
        else:
            indices = np.round(np.arange(total, 0, -total / self.steps)) - 1
        if indices[0] > total - 1:
            raise ValueError(
                f"offset={self.offset} leads to step {indices[0]:.0f} of {total}: choose a smaller one"
            )
        times = schedule.t_max * torch.from_numpy((indices + 1) / total)
        if t_start is not None:
            times = torch.cat([times.new_tensor([t_start]), times[times < t_start * (1 - 1e-9)]])
        schedule.alpha(times)  # raises where a time is outside the schedule's range
        return times
