"""What a solver is given and what it gives back.

A solver is a frozen dataclass whose fields are its own parameters and whose call is a generator:
``solver(problem, clock)`` yields one ``Step`` per time in increasing order. It declares which boundaries and
whether a drift are supported; ``solve.py`` lists the solvers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.polynomial.legendre import leggauss

from scoreexp.numerics.fokker_planck.grid import Array, Grid

Boundary = Literal["neumann", "zero"]
Diffusion = float | Callable[[float], float]
Drift = Callable[[Array, float], Array]
"""f(points[2, ...], t) -> [2, ...]: drift at (row, column) coordinates; it must not depend on the image."""

QUADRATURE_NODES = 16


class SolverError(ArithmeticError):
    """A solve failed; ``image`` is the index over the leading axes, ``residual`` the last one."""

    def __init__(
        self, what: str, *, image: tuple[int, ...], time: float, residual: float, remedy: str
    ) -> None:
        super().__init__(f"{what} at image {image}, time {time:.6g}, residual {residual:.3g}: {remedy}")
        self.image = image
        self.time = time
        self.residual = residual


class PicardDivergence(SolverError):
    """The fixed-point iteration runs away instead of contracting."""


class LinearSolverFailure(SolverError):
    """A linear system is singular, or an iterative solver did not reach its tolerance."""


class StageClock:
    """Seconds per stage, ``seconds[stage]``, of code run under ``with clock(stage):``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Problem:
    """m_t = -div f + (g^2/2) lap m - f . grad m + (g^2/2) |grad m|^2 for a batch of starts."""

    log_p0: Array  # [B, H, W]
    batch_shape: tuple[int, ...]  # the leading axes that B flattens
    grid: Grid
    times: Array  # [N + 1]
    diffusion: Callable[[float], float]  # g(t)
    drift: Drift | None
    boundary: Boundary
    tol: float
    max_iter: int
    wanted: frozenset[int]  # indices of the times whose fields are asked for

    @cached_property
    def variances(self) -> Array:
        """int g^2 over each step, [N], by Gauss-Legendre quadrature with 16 nodes per step."""
        nodes, weights = leggauss(QUADRATURE_NODES)
        steps = np.diff(self.times)
        t = self.times[:-1, None] + steps[:, None] * (nodes + 1) / 2
        g_squared = np.array([[self.diffusion(float(s)) ** 2 for s in row] for row in t])
        return steps * (g_squared @ weights) / 2

    def image_index(self, flat: int) -> tuple[int, ...]:
        """Index over the leading axes of the flat batch index."""
        return tuple(int(i) for i in np.unravel_index(flat, self.batch_shape)) if self.batch_shape else ()


@dataclass(frozen=True)
class Step:
    """Solution at ``times[index]``; the arrays besides log_p are empty for solvers that do not iterate."""

    index: int
    log_p: Array  # [B, H, W]
    residuals: Array = field(
        default_factory=lambda: np.empty((0, 0))
    )  # [iterations, B], NaN where an image had stopped
    linear_iterations: Array | None = (
        None  # [B] iterations of the linear solver, summed over the Picard iterations
    )


class Solver(Protocol):
    """See the module docstring."""

    name: ClassVar[str]
    boundaries: ClassVar[tuple[Boundary, ...]]
    supports_drift: ClassVar[bool]

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        """Yield the steps; ``index >= 1``, increasing; at least the wanted ones."""
        ...
