"""``solve_log_density``: check the input, run a solver, collect its steps."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scoreexp.numerics.fokker_planck.auto import fastest
from scoreexp.numerics.fokker_planck.direct import Direct
from scoreexp.numerics.fokker_planck.factorised import Factorised
from scoreexp.numerics.fokker_planck.field import ScoreField
from scoreexp.numerics.fokker_planck.grid import Array
from scoreexp.numerics.fokker_planck.krylov import GMRES, BiCGSTAB, KrylovProjection
from scoreexp.numerics.fokker_planck.problem import (
    Boundary,
    Diffusion,
    Drift,
    Problem,
    Solver,
    StageClock,
    Step,
)
from scoreexp.numerics.fokker_planck.spectral import Spectral

SolverName = Literal["auto", "spectral", "factorised", "direct", "bicgstab", "gmres", "krylov_projection"]
SOLVERS: dict[str, type[Any]] = {
    solver.name: solver for solver in (Spectral, Factorised, Direct, BiCGSTAB, GMRES, KrylovProjection)
}


@dataclass(frozen=True)
class TimeSlice:
    """One kept time of a solve: ``index`` among the given times, log_p [..., H, W], score [..., 2, H, W].

    >>> import numpy as np
    >>> problem = Problem(np.zeros((3, 8, 8)), g=0.5, times=[0.0, 0.1])
    >>> [(piece.index, piece.time, piece.score.shape) for piece in iterate_log_density(problem)]
    [(0, 0.0, (3, 2, 8, 8)), (1, 0.1, (3, 2, 8, 8))]
    """

    index: int
    time: float
    log_p: Array
    problem: Problem

    @property
    def score(self) -> Array:
        """Both components, [..., 2, H, W]."""
        return self.problem.grid.gradient(self.log_p, edge_order=_edge_order(self.problem))

    def component(self, which: int) -> Array:
        """One component of the score, d/d row (0) or d/d column (1), [..., H, W]."""
        out, order = np.empty_like(self.log_p), _edge_order(self.problem)
        return self.problem.grid.derivative(self.log_p, which, edge_order=order, out=out)


def solve_log_density(
    log_p0: ArrayLike,
    *,
    g: Diffusion,
    times: ArrayLike,
    drift: Drift | None = None,
    boundary: Boundary = "neumann",
    solver: SolverName | Solver = "spectral",
    tol: float = 1e-6,
    max_iter: int = 5,
    spacing: float | tuple[float, float] | None = None,
    keep: Iterable[int] | None = None,
    dtype: DTypeLike = np.float64,
) -> ScoreField:
    """Solve the log-density Fokker-Planck equation of dx = f dt + g(t) dW from m_0 = log_p0:

        m_t = -div f + (g^2/2) lap m - f . grad m + (g^2/2) |grad m|^2,    score = grad m.

    The score is the central difference of log_p, with one-sided differences at the border: of second order
    for ``neumann``, of first order for ``zero`` as in the published scheme.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import mass
    >>> log_p0 = -8 * np.linspace(-1, 1, 9)[:, None] ** 2 * np.ones(9)
    >>> field = solve_log_density(log_p0, g=0.5, times=[0.0, 0.1, 0.2])
    >>> field.score.shape, np.allclose(mass(field.log_p), mass(log_p0))
    ((3, 2, 9, 9), True)

    Args:
        log_p0: [..., H, W], finite, sides of at least 3; leading axes are batches.
        g: diffusion coefficient, a positive number or a callable of t, smooth within each step.
        times: [N + 1], strictly increasing; log_p0 belongs to the first.
        drift: f(points[2, ...], t) -> [2, ...] in (row, column) components, or None.
        boundary: "neumann" (no flux through the border; ``spectral`` and ``factorised`` keep the mass to round-off, the
            schemes for log p up to their error) or "zero" (neighbours outside the grid are dropped, as published: it
            pins m = 0, that is p = 1, there, so mass is not kept).
        solver: a name (its defaults), "auto" for the fastest that is valid (the result names it), or an instance
            that carries its own parameters, such as
            ``Spectral("continuum")``.
        tol: relative change at which the Picard iteration of a step stops.
        max_iter: most Picard iterations per step.
        spacing: grid step, or (row, column) steps; None puts the image on the unit square.
        keep: indices of the times to keep (negative ones count from the end); None keeps all.
        dtype: of the stored fields; solvers compute in float64.

    Returns:
        ScoreField; ``convergence_warning()`` tells whether every step met the tolerance.

    Raises:
        ValueError: bad input, or a solver that does not support the boundary or the drift.
        PicardDivergence: the fixed-point iteration diverges (time steps too large).
        LinearSolverFailure: a linear system is singular or its iterative solver failed.
    """
    clock = StageClock()
    problem = Problem(
        np.asarray(log_p0),
        g=g,
        times=np.asarray(times),
        drift=drift,
        boundary=boundary,
        tol=tol,
        max_iter=max_iter,
        spacing=spacing,
        keep=keep,
    )
    method = _resolved(solver, problem)
    kept = np.array(sorted(problem.wanted))
    steps, shape = len(problem.times) - 1, problem.batch_shape
    log_p = np.empty((len(kept), *shape, *problem.grid.shape), dtype)
    score = np.empty((len(kept), *shape, 2, *problem.grid.shape), dtype)
    history = np.empty((steps, 0, len(problem.log_p0)))
    linear_iterations = np.zeros((steps, len(problem.log_p0)), dtype=np.intp)
    position = {int(index): k for k, index in enumerate(kept)}
    for step in _steps(problem, method, clock):
        if step.residuals.size:
            if not history.size:
                history = np.full((steps, *step.residuals.shape), np.nan)
            history[step.index - 1] = step.residuals
        if step.linear_iterations is not None:
            linear_iterations[step.index - 1] = step.linear_iterations
        if step.index in position:
            k = position[step.index]
            log_p[k] = step.log_p.reshape(log_p.shape[1:])
            score[k] = _score(problem, step.log_p, clock)
    residuals = history.reshape(steps, history.shape[1], *shape)
    return ScoreField(
        times=problem.times[kept],
        log_p=log_p,
        score=score,
        kept=kept,
        solver=method.name,
        boundary=boundary,
        tol=tol,
        step_times=problem.times[1:],
        iterations=np.isfinite(residuals).sum(axis=1),
        residuals=residuals,
        linear_iterations=linear_iterations.reshape(steps, *shape),
        seconds=clock.seconds,
    )


def iterate_log_density(problem: Problem, solver: SolverName | Solver = "spectral") -> Iterator[TimeSlice]:
    """The same solve, one kept time after the other, for fields that are too large to hold at all times.

    >>> import numpy as np
    >>> problem = Problem(np.zeros((8, 8)), g=0.5, times=np.linspace(0.0, 1.0, 11), keep=[5, 10])
    >>> [piece.time for piece in iterate_log_density(problem)]
    [0.5, 1.0]

    Args:
        problem: start, equation and the times to keep.
        solver: as for ``solve_log_density``.

    Raises:
        ValueError: a solver that does not support the boundary or the drift; before the first time is asked for.
        PicardDivergence, LinearSolverFailure: as ``solve_log_density``, at the time where it happens.
    """
    method = _resolved(solver, problem)
    shape = (*problem.batch_shape, *problem.grid.shape)
    return (
        TimeSlice(step.index, float(problem.times[step.index]), step.log_p.reshape(shape), problem)
        for step in _steps(problem, method, StageClock())
        if step.index in problem.wanted
    )


def make_solver(name: str, **parameters: Any) -> Solver:
    """A solver by its name (not "auto") with its own parameters; ValueError for an unknown name or parameter.

    >>> make_solver("gmres", restart=10)
    GMRES(preconditioner='lu', linear_tol=None, linear_max_iter=1000, restart=10)
    """
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is unknown: choose one of auto, {', '.join(SOLVERS)}")
    known = [each.name for each in fields(SOLVERS[name])]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        allowed = ", ".join(known) or "none"
        raise ValueError(f"solver {name!r} has no parameter {', '.join(unknown)}: it takes {allowed}")
    return SOLVERS[name](**parameters)


def _steps(problem: Problem, method: Solver, clock: StageClock) -> Iterator[Step]:
    if 0 in problem.wanted:
        yield Step(0, problem.log_p0)
    yield from method(problem, clock)


def _score(problem: Problem, log_p: Array, clock: StageClock) -> Array:
    with clock("score"):
        score = problem.grid.gradient(log_p, edge_order=_edge_order(problem))
    return score.reshape(*problem.batch_shape, 2, *problem.grid.shape)


def _edge_order(problem: Problem) -> int:
    return 2 if problem.boundary == "neumann" else 1


def _resolved(solver: str | Solver, problem: Problem) -> Solver:
    """The solver itself, checked to support the drift and the boundary."""
    boundary, drift = problem.boundary, problem.drift
    if solver == "auto":
        return fastest(boundary, drift)
    method = make_solver(solver) if isinstance(solver, str) else solver

    def supported(by: Solver | type[Any]) -> bool:
        return boundary in by.boundaries and (drift is None or by.supports_drift)

    if not supported(method):
        able = [name for name, other in SOLVERS.items() if supported(other)]
        what = f"boundary={boundary!r}" + ("" if drift is None else " with a drift")
        raise ValueError(f"solver {method.name!r} does not support {what}: choose one of {', '.join(able)}")
    return method
