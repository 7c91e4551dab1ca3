"""The published scheme: implicit Euler for m = log p with a fixed-point iteration for the quadratic term.

One factor of |grad m|^2 is frozen at the previous iterate m~, which leaves an advection-diffusion equation
with velocity v = f - (g^2/2) grad m~. On the five-point stencil with step dt, A m^n = b has per axis of
spacing h

    diagonal       1/dt + g^2/h_row^2 + g^2/h_col^2
    next node      (1/(2h)) (-g^2/h + v)
    previous node  (1/(2h)) (-g^2/h - v)
    b              m^(n-1)/dt - div f

with g = g(t_n), and the iteration starts at m^(n-1) and stops when |m - m~| / (|m~| + 1e-8) < tol.

Border: ``zero`` drops neighbours outside the grid, as published; it pins m = 0, that is p = 1, there, so mass is not kept.
``neumann`` is no flux, f p - (g^2/2) grad p = 0 along the normal, hence dm/dn = 2 f_n / g^2: the ghost node
is the mirror image plus that slope, and v_n = 0. In both, velocities use one-sided differences where the
border has no central one.

Reference: Lau, Na, Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
Projection", 2025, https://arxiv.org/abs/2511.17634.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array
from scipy.sparse.linalg import SuperLU

from scoreexp.numerics.fokker_planck.grid import Array, Grid
from scoreexp.numerics.fokker_planck.problem import PicardDivergence, Problem, StageClock, Step

NEIGHBOURS = (
    (0, 1),
    (0, -1),
    (1, 1),
    (1, -1),
)  # (axis, direction) of the off-diagonal coefficients, in storage order


@dataclass(frozen=True)
class System:
    """A batch of linear systems on the stencil: (A x)_ij = diagonal x_ij + sum of coefficient * neighbour.

    ``coefficients`` [4, B, H, W] follow NEIGHBOURS and are zero where there is no neighbour.
    """

    diagonal: float
    coefficients: Array
    rhs: Array  # [B, H, W]

    def matvec(self, x: Array) -> Array:
        """A x for x[B, H, W], each image by its own matrix."""
        row_next, row_prev, col_next, col_prev = self.coefficients
        out = self.diagonal * x
        out[:, :-1] += row_next[:, :-1] * x[:, 1:]
        out[:, 1:] += row_prev[:, 1:] * x[:, :-1]
        out[:, :, :-1] += col_next[:, :, :-1] * x[:, :, 1:]
        out[:, :, 1:] += col_prev[:, :, 1:] * x[:, :, :-1]
        return out

    def select(self, images: slice) -> "System":
        """The systems of some of the images."""
        return System(self.diagonal, self.coefficients[:, images], self.rhs[images])


class Linearisation:
    """Everything of one time step that does not depend on the iterate."""

    def __init__(self, problem: Problem, index: int) -> None:
        self.grid, self.boundary = problem.grid, problem.boundary
        self.time = float(problem.times[index])
        self.dt = self.time - float(problem.times[index - 1])
        self.half_g2 = problem.diffusion(self.time) ** 2 / 2
        self.diagonal = 1 / self.dt + sum(2 * self.half_g2 / h**2 for h in self.grid.spacing)
        self.drift = (
            None if problem.drift is None else evaluate_drift(problem.drift, self.grid.points, self.time)
        )

    @cached_property
    def source(self) -> Array | float:
        """-div f, and under no flux the slope of the ghost nodes."""
        if self.drift is None:
            return 0.0
        gradients = self.grid.gradient(self.drift, edge_order=1)
        source = -(gradients[0, 0] + gradients[1, 1])
        if self.boundary == "neumann":
            for axis, h in enumerate(self.grid.spacing):
                first, last = border(axis)
                # ghost = mirror + 2h dm/dn with dm/dn = 2 f_n / g^2, times its coefficient g^2/(2 h^2)
                source[first] -= 2 * self.drift[axis][first] / h
                source[last] += 2 * self.drift[axis][last] / h
        return source

    def system(self, m: Array, previous: Array) -> System:
        """A(m) and b for iterates m[B, H, W] after the previous time's solution."""
        velocity = self.grid.gradient(m, edge_order=1)
        velocity *= -self.half_g2
        if self.drift is not None:
            velocity += self.drift
        coefficients = np.empty((4, *m.shape))
        for slot, (axis, direction) in enumerate(NEIGHBOURS):
            h = self.grid.spacing[axis]
            first, last = border(axis)
            outward = last if direction == 1 else first
            np.multiply(velocity[:, axis], direction / (2 * h), out=coefficients[slot])
            coefficients[slot] -= self.half_g2 / h**2
            if self.boundary == "neumann":
                inward = first if direction == 1 else last
                coefficients[slot][(slice(None), *inward)] = -2 * self.half_g2 / h**2
            coefficients[slot][(slice(None), *outward)] = 0.0
        return System(self.diagonal, coefficients, previous / self.dt + self.source)


def border(axis: int) -> tuple[tuple[slice | int, ...], tuple[slice | int, ...]]:
    """Indices of the first and last line of nodes along an axis of [H, W]."""
    return ((0, slice(None)), (-1, slice(None))) if axis == 0 else ((slice(None), 0), (slice(None), -1))


def evaluate_drift(drift: Callable[[Array, float], Array], points: Array, t: float) -> Array:
    """f(points, t), checked."""
    f = np.asarray(drift(points, t), dtype=np.float64)
    if f.shape != points.shape or not np.isfinite(f).all():
        raise ValueError(
            f"drift gave shape {f.shape} at time {t:.6g}: return finite values of shape {points.shape}"
        )
    return f


class SparsePattern:
    """The five-point pattern in compressed columns, computed once: a matrix is a gather of the stencil's
    coefficients.

    ``order``: new index of each node, a fill-reducing ordering applied to rows and columns alike.
    """

    def __init__(self, grid: Grid, order: NDArray[np.intp] | None = None) -> None:
        nodes = np.arange(grid.shape[0] * grid.shape[1])
        self.order = nodes if order is None else order
        self.inverse = np.argsort(self.order)
        index = self.order.reshape(grid.shape)
        rows, cols = [self.order], [self.order]
        sources = [nodes]
        slots = nodes.reshape(grid.shape)
        for slot, (axis, direction) in enumerate(NEIGHBOURS, start=1):
            here = [slice(None), slice(None)]
            there = [slice(None), slice(None)]
            here[axis], there[axis] = (slice(-1), slice(1, None))[::direction]
            rows.append(index[tuple(here)].ravel())
            cols.append(index[tuple(there)].ravel())
            sources.append(slots[tuple(here)].ravel() + slot * nodes.size)
        row, col, source = (np.concatenate(parts) for parts in (rows, cols, sources))
        by_column = np.lexsort((row, col))
        self.gather = source[by_column]
        self.indices = row[by_column].astype(np.int32)
        self.indptr = np.searchsorted(col[by_column], np.arange(nodes.size + 1)).astype(np.int32)
        self.entries = np.empty(5 * nodes.size)

    def matrix(self, system: System, image: int) -> csc_array:
        """Sparse matrix of one image of the batch."""
        size = self.order.size
        self.entries[:size] = system.diagonal
        self.entries[size:] = system.coefficients[:, image].reshape(-1)
        return csc_array((self.entries[self.gather], self.indices, self.indptr), shape=(size, size))

    def solve(self, lu: SuperLU, rhs: Array) -> Array:
        """Solution [..., H, W] for rhs[..., H, W], from the factors of the reordered matrix."""
        flat = rhs.reshape(-1, self.order.size)
        return lu.solve(flat[:, self.inverse].T)[self.order].T.reshape(rhs.shape)


LinearSolve = Callable[[Linearisation, System, Array, NDArray[np.intp]], tuple[Array, NDArray[np.intp]]]
"""(linearisation, systems, starts[b, H, W], images[b]) -> (solutions[b, H, W], linear iterations[b])"""


def picard_steps(problem: Problem, clock: StageClock, solve: LinearSolve) -> Iterator[Step]:
    """March in time; per step iterate all unconverged images together, each linear system by ``solve``.

    Raises PicardDivergence where an iterate is not finite or the relative change exceeds both 1 and its first
    value.
    """
    previous = problem.log_p0
    batch = len(previous)
    for index in range(1, len(problem.times)):
        with clock("assembly"):
            linearisation = Linearisation(problem, index)
        m = previous.copy()
        residuals = np.full((problem.max_iter, batch), np.nan)
        linear_iterations = np.zeros(batch, dtype=int)
        active = np.arange(batch)
        for iteration in range(problem.max_iter):
            with clock("assembly"):
                system = linearisation.system(m[active], previous[active])
            solution, count = solve(linearisation, system, m[active], active)
            change = norm(solution - m[active]) / (norm(m[active]) + 1e-8)
            residuals[iteration, active] = change
            linear_iterations[active] += count
            images = active
            if not np.isfinite(change).all():
                worst = int(np.argmin(np.isfinite(change)))
                raise _divergence(problem, index, int(images[worst]), float(change[worst]))
            m[images] = solution
            active = images[change >= problem.tol]
            if not active.size:
                break
        if active.size and iteration > 0 and change.max() > 1:
            raise _divergence(problem, index, int(images[change.argmax()]), float(change.max()))
        yield Step(index, m, residuals, linear_iterations)
        previous = m


def norm(x: Array) -> Array:
    """Euclidean norm over the grid, [B, H, W] -> [B]."""
    return np.sqrt(np.einsum("bij,bij->b", x, x))


def _divergence(problem: Problem, index: int, image: int, residual: float) -> PicardDivergence:
    return PicardDivergence(
        f"the Picard iteration diverges within {problem.max_iter} iterations",
        image=problem.image_index(image),
        time=float(problem.times[index]),
        residual=residual,
        remedy="take smaller time steps or a solver of the linear equation (spectral, factorised)",
    )
