r"""Explicit Runge-Kutta solvers of ``dy/dt = f(t, y)`` for a batch of independent initial values.

The equations of a batch have nothing to do with each other, so every sample has its own time and, in the adaptive
solver, its own step size and error control: a sample's result does not depend on the others in its batch, only the
number of evaluations that the batch needs does (a finished sample waits for the slowest).

References:
    J. R. Dormand, P. J. Prince, "A family of embedded Runge-Kutta formulae", 1980,
    https://doi.org/10.1016/0771-050X(80)90013-3;
    E. Hairer, S. P. Norsett, G. Wanner, "Solving Ordinary Differential Equations I", 1993, section II.4,
    https://doi.org/10.1007/978-3-540-78862-1.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveFloat, PositiveInt

Derivative = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]


class OdeSolution(NamedTuple):
    """What a solver returns.

    Attributes:
        y: the solution at the end ``[B, *]``.
        evaluations: number of evaluations of ``f`` on the whole batch.
        accepted: number of steps of each sample ``[B]``.
        rejected: number of steps of each sample that were tried and given up ``[B]``.
        step_size: what the next step of each sample would be ``[B]``, > 0, float64; None from a fixed-step solver.
    """

    y: Tensor
    evaluations: int
    accepted: Tensor
    rejected: Tensor
    step_size: Tensor | None


def rms(y: Tensor) -> Tensor:
    """Root of the mean square over the event: ``[B, *] -> [B]``."""
    return mean_per_sample(y**2).sqrt()


class OdeSolver(ABC):
    """A solver of ``dy/dt = f(t, y)``.

    >>> import torch
    >>> from scoreexp.numerics.ode import OdeSolution, OdeSolver, rms
    >>> class Midpoint(OdeSolver):
    ...     '''One step of the midpoint rule.'''
    ...     def __call__(self, f, y, start, end, *, step_size=None, norm=rms):
    ...         t, h = torch.full((len(y),), start, dtype=torch.float64), end - start
    ...         y = y + h * f(t + h / 2, y + h / 2 * f(t, y))
    ...         return OdeSolution(y, 2, torch.ones(len(y)), torch.zeros(len(y)), None)
    >>> Midpoint()(lambda t, y: -y, torch.ones(1, 2), 0.0, 0.5).y  # exp(-1/2) is 0.607
    tensor([[0.6250, 0.6250]])
    """

    @abstractmethod
    def __call__(
        self,
        f: Derivative,
        y: Tensor,
        start: float,
        end: float,
        *,
        step_size: Tensor | None = None,
        norm: Norm = rms,
    ) -> OdeSolution:
        """Integrate from ``start`` to ``end``, in either direction.

        Args:
            f: ``f(t[B], y[B, *]) -> [B, *]``, with ``t`` in float64 on the CPU.
            y: the values at ``start``, ``[B, *]``.
            start: the first time.
            end: the last time.
            step_size: the first step of each sample to try ``[B]``, > 0, as a previous solution returned it; by
                default it is estimated. Without effect on a fixed-step solver.
            norm: size of a scaled error ``[B, *] -> [B]``. Without effect on a fixed-step solver.
        """


# offset of each stage as a part of h, which is also the weight of the previous stage in it; weights of the sum
_TABLEAUS = {
    "euler": ((0.0,), (1.0,)),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2)),
    "rk4": ((0.0, 1 / 2, 1 / 2, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class RungeKutta(OdeSolver):
    r"""One step of a classical method from ``start`` to ``end``.

    With ``h = end - start``: ``euler`` (order 1) is ``y + h f(t, y)``, ``heun`` (order 2) the trapezoidal rule on an
    Euler prediction, ``rk4`` (order 4) the classical method of Kutta.

    >>> import torch
    >>> RungeKutta("rk4")(lambda t, y: -y, torch.ones(1, 2), 0.0, 0.5).y  # exp(-1/2)
    tensor([[0.6068, 0.6068]])

    Args:
        method: ``euler``, ``heun`` or ``rk4``: 1, 2 or 4 evaluations.

    Raises:
        ValueError: if ``method`` is none of them.
    """

    @checked
    def __init__(self, method: Literal["euler", "heun", "rk4"] = "rk4") -> None:
        self.method = method

    def __call__(
        self,
        f: Derivative,
        y: Tensor,
        start: float,
        end: float,
        *,
        step_size: Tensor | None = None,
        norm: Norm = rms,
    ) -> OdeSolution:
        offsets, weights = _TABLEAUS[self.method]
        h = end - start
        times = torch.full((y.shape[0],), start, dtype=torch.float64)
        k, total = torch.zeros_like(y), torch.zeros_like(y)
        for c, b in zip(offsets, weights):
            k = f(times + c * h, y + c * h * k)
            total = total + b * k
        count = torch.ones(y.shape[0], dtype=torch.long)
        return OdeSolution(y + h * total, len(offsets), count, 0 * count, None)


def _weighted_sum(h: Tensor, weights: Sequence[float], stages: Sequence[Tensor]) -> Tensor:
    """``h sum_i w_i k_i`` for step sizes ``h [B]`` and stages ``k_i [B, *]``."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages):
        if weight != 0:
            total = total + expand_to(weight * h, stage) * stage
    return total


# Dormand and Prince's pair of orders 5 and 4: the stages at t + c h, their weights a, the weights b of the solution
# (the last stage is f of the solution, hence the first of the next step) and e of the difference to order 4.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SAFETY, _SMALLEST_FACTOR, _LARGEST_FACTOR = 0.9, 0.2, 10.0


class RK45(OdeSolver):
    r"""Adaptive Dormand-Prince steps of order 5 with an error estimate of order 4, for each sample by itself.

    A step is accepted if the norm of ``error / (atol + rtol max(|y_old|, |y_new|))`` is at most 1; the next is
    ``0.9 norm^{-1/5}`` times as long, by a factor within [0.2, 10], and not longer after a rejection. The first step is
    that of Hairer, Norsett, Wanner, section II.4. Six evaluations per step, one at the start and one for the first
    step size.

    >>> import torch
    >>> solution = RK45(rtol=1e-5, atol=1e-5)(lambda t, y: -y, torch.ones(1, 2), 0.0, 5.0)
    >>> bool((solution.y - torch.tensor(-5.0).exp()).abs().max() < 1e-4)
    True

    Args:
        rtol: relative tolerance of one step, > 0.
        atol: absolute tolerance of one step, > 0, in the units of ``y``.
        max_steps: the largest number of steps tried in one call.

    Raises:
        ValueError: if a parameter is outside its domain.
        FloatingPointError: (on a call) if the solution is not finite.
        RuntimeError: (on a call) if ``max_steps`` do not reach the end, or steps fall below the rounding of time.
    """

    @checked
    def __init__(
        self,
        rtol: Annotated[PositiveFloat, "1e-3 is common for samples"] = 1e-3,
        atol: PositiveFloat = 1e-3,
        max_steps: PositiveInt = 10_000,
    ) -> None:
        self.rtol = rtol
        self.atol = atol
        self.max_steps = max_steps

    def __call__(
        self,
        f: Derivative,
        y: Tensor,
        start: float,
        end: float,
        *,
        step_size: Tensor | None = None,
        norm: Norm = rms,
    ) -> OdeSolution:
        sign = 1.0 if end >= start else -1.0
        t = torch.full((y.shape[0],), start, dtype=torch.float64)
        accepted, rejected = torch.zeros_like(t, dtype=torch.long), torch.zeros_like(t, dtype=torch.long)
        smallest = 16 * torch.finfo(torch.float64).eps * max(abs(start), abs(end))
        if start == end:
            return OdeSolution(y, 0, accepted, rejected, step_size)

        first = f(t, y)  # the first stage of the next step
        evaluations = 1
        if step_size is None:
            step_size = self._first_step(f, y, first, t, sign, abs(end - start), norm)
            evaluations += 1
        limit = torch.full_like(t, _LARGEST_FACTOR)  # of the growth of the next step
        for step in range(1, self.max_steps + 1):
            left = sign * (end - t)
            h = torch.minimum(step_size, left)  # 0 for a finished sample
            stages = [first]
            for c, weights in zip(_C[1:], _A[1:]):
                y_new = y + _weighted_sum(sign * h, weights, stages)
                stages.append(f(t + sign * c * h, y_new))
            evaluations += 6

            error = _weighted_sum(h, _E, stages)
            size = self._size(error, torch.maximum(y.abs(), y_new.abs()), norm)
            if not size.isfinite().all():
                at = t[~size.isfinite()][0].item()
                raise FloatingPointError(
                    f"the solution is not finite in step {step}, at {at:.6g}: the derivative is not finite there"
                )
            active, good = left > 0, size <= 1
            factor = (_SAFETY * size.clamp(min=1e-10) ** -0.2).clamp(min=_SMALLEST_FACTOR)
            # a step cut short by the end says nothing about a longer one
            proposed = torch.where(good & (h < step_size), step_size, h * torch.minimum(factor, limit))
            step_size = torch.where(active, proposed, step_size)
            limit = torch.where(good, _LARGEST_FACTOR, 1.0)
            accepted += active & good
            rejected += active & ~good

            moved = expand_to(good, y).bool()
            y, first = torch.where(moved, y_new, y), torch.where(moved, stages[-1], first)
            t = torch.where(good, torch.where(h == left, end, t + sign * h), t)
            if (t == end).all():
                return OdeSolution(y, evaluations, accepted, rejected, step_size)
            if (step_size < smallest).any():
                break
        behind = (sign * (end - t)).argmax()
        raise RuntimeError(
            f"{step} steps from {start:.6g} reached {t[behind].item():.6g}, not {end:.6g}, with steps of "
            f"{step_size[behind].item():.3g}: choose larger tolerances than rtol={self.rtol:g}, atol={self.atol:g}, "
            f"float64, or more than max_steps={self.max_steps}"
        )

    def _size(self, error: Tensor, magnitude: Tensor, norm: Norm) -> Tensor:
        """The norm of an error on the scale of the tolerances, ``[B]``, float64 on the CPU."""
        return norm(error / (self.atol + self.rtol * magnitude)).to(device="cpu", dtype=torch.float64)

    def _first_step(
        self, f: Derivative, y: Tensor, first: Tensor, t: Tensor, sign: float, span: float, norm: Norm
    ) -> Tensor:
        """A step whose explicit Euler error is small, from the sizes of ``y`` and its first two derivatives."""
        magnitude = y.abs()
        d0, d1 = self._size(y, magnitude, norm), self._size(first, magnitude, norm)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=span)
        second = f(t + sign * h0, y + expand_to(sign * h0, y) * first)
        d2 = self._size(second - first, magnitude, norm) / h0
        largest = torch.maximum(d1, d2)
        h1 = torch.where(largest <= 1e-15, (1e-3 * h0).clamp(min=1e-6), (0.01 / largest) ** 0.2)
        return torch.minimum(100 * h0, h1).clamp(max=span)
