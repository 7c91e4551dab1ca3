"""What a solver is given and what it gives back.

A solver is a frozen dataclass whose fields are its own parameters and whose call is a generator:
``solver(problem, clock)`` yields one ``Step`` per time in increasing order. It declares which boundaries and
whether a drift are supported; ``solve.py`` lists the solvers.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.polynomial.legendre import leggauss

from scoreexp.numerics.fokker_planck.grid import Array, Grid

Boundary = Literal["neumann", "zero"]
Diffusion = float | Callable[[float], float]
Drift = Callable[[Array, float], Array]
"""f(points[2, ...], t) -> [2, ...]: drift at (row, column) coordinates; it must not depend on the image."""

QUADRATURE_NODES = 16
_NODES, _WEIGHTS = leggauss(QUADRATURE_NODES)  # once: it takes longer than to solve an image


class SolverError(ArithmeticError):
    """A solve failed; ``image`` is the index over the leading axes, ``residual`` the last one.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import BiCGSTAB, SolverError, solve_log_density
    >>> log_p0 = np.random.default_rng(0).random((2, 9, 9))
    >>> try:
    ...     solve_log_density(log_p0, g=0.5, times=[0.0, 0.1], solver=BiCGSTAB("jacobi", linear_max_iter=1))
    ... except SolverError as error:
    ...     print(type(error).__name__, error.image, error.time)
    LinearSolverFailure (0,) 0.1
    """

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
    """Seconds per stage, ``seconds[stage]``, of code run under ``with clock(stage):``, added to those given.

    >>> clock = StageClock()
    >>> with clock("solve"):
    ...     pass
    >>> list(clock.seconds)
    ['solve']
    """

    def __init__(self, seconds: dict[str, float] | None = None) -> None:
        self.seconds: dict[str, float] = {} if seconds is None else seconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Problem:
    """m_t = -div f + (g^2/2) lap m - f . grad m + (g^2/2) |grad m|^2 from m = ``start``, checked when it is made.

    >>> import numpy as np
    >>> problem = Problem(np.zeros((2, 5, 8, 8)), g=0.5, times=np.array([0.0, 0.1, 0.3]), keep=[-1])
    >>> problem.log_p0.shape, problem.batch_shape, sorted(problem.wanted)
    ((10, 8, 8), (2, 5), [2])

    Args:
        start: log_p at the first time, [..., H, W].
        g, drift, boundary, tol, max_iter, spacing, keep: as for ``solve_log_density``.
        times: [N + 1], strictly increasing.

    Raises:
        ValueError: bad input.
    """

    start: Array
    _: KW_ONLY
    g: Diffusion
    times: Array
    drift: Drift | None = None
    boundary: Boundary = "neumann"
    tol: float = 1e-6
    max_iter: int = 5
    spacing: float | tuple[float, float] | None = None
    keep: Iterable[int] | None = None

    def __post_init__(self) -> None:
        for name in ("start", "times"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        start, times = self.start, self.times
        _ = self.grid  # refuses its shape or spacing here
        if not start.size:
            raise ValueError(f"log_p0 has shape {start.shape}: give at least one image")
        if not np.isfinite(start).all():
            raise ValueError(
                "log_p0 has NaN or infinite values: floor the density before taking its logarithm"
            )
        if times.ndim != 1 or len(times) < 2 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            raise ValueError(
                f"times of shape {times.shape} must be finite and strictly increasing, at least 2 in one axis"
            )
        if self.boundary not in get_args(Boundary):
            allowed = ", ".join(get_args(Boundary))
            raise ValueError(f"boundary {self.boundary!r} is unknown: choose one of {allowed}")
        if not self.tol > 0:
            raise ValueError(f"tol={self.tol} must be positive")
        if self.max_iter < 1:
            raise ValueError(f"max_iter={self.max_iter} must be at least 1")
        for t in times:
            value = self.diffusion(float(t))
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"g({t:.6g})={value} must be positive and finite at every time")
        _ = self.wanted  # refuses indices here

    @cached_property
    def grid(self) -> Grid:
        """The pixels of one start."""
        return Grid.of(self.start.shape[-2:], self.spacing)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes of ``start``, which B flattens."""
        return self.start.shape[:-2]

    @cached_property
    def log_p0(self) -> Array:
        """The starts one after the other, [B, H, W]."""
        return self.start.reshape(-1, *self.grid.shape)

    def diffusion(self, t: float) -> float:
        """g(t)."""
        return self.g(t) if callable(self.g) else float(self.g)

    @cached_property
    def wanted(self) -> frozenset[int]:
        """Indices of the times whose fields are asked for."""
        count = len(self.times)
        if self.keep is None:
            return frozenset(range(count))
        indices = [int(index) for index in self.keep]
        bad = [index for index in indices if not -count <= index < count]
        if bad or not indices:
            raise ValueError(
                f"keep={bad or indices}: give at least one index, each in [{-count}, {count - 1}]"
            )
        return frozenset(index % count for index in indices)

    @cached_property
    def variances(self) -> Array:
        """int g^2 over each step, [N], by Gauss-Legendre quadrature with 16 nodes per step."""
        steps = np.diff(self.times)
        t = self.times[:-1, None] + steps[:, None] * (_NODES + 1) / 2
        g_squared = np.array([[self.diffusion(float(s)) ** 2 for s in row] for row in t])
        return steps * (g_squared @ _WEIGHTS) / 2

    def image_index(self, flat: int) -> tuple[int, ...]:
        """Index over the leading axes of the flat batch index."""
        return tuple(int(i) for i in np.unravel_index(flat, self.batch_shape)) if self.batch_shape else ()


@dataclass(frozen=True)
class Step:
    """Solution at ``times[index]``; the arrays besides log_p are empty for solvers that do not iterate.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import Problem, Spectral
    >>> from scoreexp.numerics.fokker_planck.problem import StageClock
    >>> problem = Problem(np.zeros((3, 8, 8)), g=0.5, times=[0.0, 0.1, 0.2])
    >>> [(step.index, step.log_p.shape) for step in Spectral()(problem, StageClock())]
    [(1, (3, 8, 8)), (2, (3, 8, 8))]
    """

    index: int
    log_p: Array  # [B, H, W]
    # [iterations, B], NaN where an image had stopped
    residuals: Array = field(default_factory=lambda: np.empty((0, 0)))
    # [B] iterations of the linear solver, summed over the Picard iterations
    linear_iterations: Array | None = None


class Solver(Protocol):
    """See the module docstring.

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import Step, solve_log_density
    >>> @dataclass(frozen=True)
    ... class Euler:
    ...     '''Explicit steps of m_t = (g^2/2) |grad m|^2: the noise without its smoothing.'''
    ...     name = "euler"
    ...     boundaries = ("neumann",)
    ...     supports_drift = False
    ...     def __call__(self, problem, clock):
    ...         m = problem.log_p0
    ...         for index, variance in enumerate(problem.variances, start=1):
    ...             with clock("solve"):
    ...                 m = m + variance / 2 * (problem.grid.gradient(m) ** 2).sum(1)
    ...             yield Step(index, m)
    >>> field = solve_log_density(np.zeros((8, 8)), g=0.5, times=[0.0, 0.1], solver=Euler())
    >>> field.solver, field.log_p.shape
    ('euler', (2, 8, 8))
    """

    name: ClassVar[str]
    boundaries: ClassVar[tuple[Boundary, ...]]
    supports_drift: ClassVar[bool]

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        """Yield the steps; ``index >= 1``, increasing; at least the wanted ones."""
        ...
