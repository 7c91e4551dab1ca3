"""Exact solution by the cosine transform, for pure diffusion without flux through the border.

The Cole-Hopf substitution p = exp(m) makes the log-density equation linear, p_t = (g^2/2) lap p. Without
drift and with reflecting borders the cosine transform of type I diagonalises the Laplacian of the
vertex-centred grid:

    p(t) = IDCT[ exp(lambda_kl int_0^t g^2/2) DCT[p_0] ],    m = log p,

exact in time; every time is independent of the others. The transform is applied as one matrix per axis: for
image sizes that is faster than an FFT, whose length 2 (H - 1) is twice a prime for sides such as 128, and
the decay factor, a product over the axes, costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from scoreexp.core.checked import checked
from scoreexp.numerics.fokker_planck.grid import Array, Grid
from scoreexp.numerics.fokker_planck.problem import Boundary, Problem, StageClock, Step

Eigenvalues = Literal["grid", "continuum"]

DECAYED = -50.0  # exponent of a mode that is left out: e^-50 times the number of modes is below round-off


def laplacian_eigenvalues(grid: Grid, kind: Eigenvalues = "grid") -> tuple[Array, Array]:
    """Eigenvalues of the reflecting second difference along the rows [H] and columns [W]; lambda_kl is their
    sum.

    ``grid``: those of the three-point stencil, -(4/h^2) sin^2(pi k / (2 (H - 1))); ``continuum``: -(pi k /
    L)^2 with L = (H - 1) h. The modes are cos(pi k i / (H - 1)).

    >>> from scoreexp.numerics.fokker_planck import Grid
    >>> rows, columns = laplacian_eigenvalues(Grid.of((3, 5)))
    >>> (-rows).round(6)
    array([ 0.,  8., 16.])
    """
    axes = []
    for n, h in zip(grid.shape, grid.spacing):
        angle = np.pi * np.arange(n) / (n - 1)
        axes.append(-((angle / h) ** 2) if kind == "continuum" else -((2 / h * np.sin(angle / 2)) ** 2))
    return axes[0], axes[1]


def cosine_transform(n: int) -> tuple[Array, Array]:
    """Matrices (forward, inverse) of the type-I cosine transform x_i = sum_k c_k cos(pi i k / (n - 1))."""
    k = np.arange(n)
    inverse = np.cos(np.pi * (np.outer(k, k) % (2 * n - 2)) / (n - 1))
    ends = np.ones(n)
    ends[[0, -1]] = 0.5
    return 2 / (n - 1) * np.outer(ends, ends) * inverse, inverse


def decayed(modes: Array, exponents: Array) -> Array:
    """Columns of ``modes`` times exp(exponents), which decrease, without those below round-off."""
    kept = int((exponents > DECAYED).sum())
    return modes[:, :kept] * np.exp(exponents[:kept])


@checked
@dataclass(frozen=True)
class Spectral:
    """Exact-in-time cosine-transform solver (see the module docstring).

    With ``eigenvalues="grid"`` the solution is that of the five-point scheme for p in the limit of small time
    steps (the scheme for log p has a spatial error of its own), and the extreme values of p_0 bound p at all
    times. Round-off is held to that: p is raised to at
    least max(min p_0, 4 eps max p_0), so log-densities more than 34.6 below an image's maximum are floored
    there, and the result is finite for every finite start. Mass under the trapezoid weights is conserved to
    round-off.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> p0 = 1 + 0.5 * np.cos(np.pi * np.linspace(0, 1, 9))[:, None] * np.ones(9)
    >>> field = solve_log_density(np.log(p0), g=1.0, times=[0.0, 0.1], solver=Spectral("continuum"))
    >>> exact = 1 + (p0 - 1) * np.exp(-(np.pi**2) * 0.1 / 2)
    >>> np.allclose(np.exp(field.log_p[-1]), exact)
    True
    """

    eigenvalues: Eigenvalues = "grid"

    name: ClassVar[str] = "spectral"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann",)
    supports_drift: ClassVar[bool] = False
    exact_in_time: ClassVar[bool] = True

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        with clock("solve"):
            row_decay, col_decay = laplacian_eigenvalues(problem.grid, self.eigenvalues)
            (row_forward, row_inverse), (col_forward, col_inverse) = map(cosine_transform, problem.grid.shape)
            half_variance = np.concatenate([[0.0], np.cumsum(problem.variances)]) / 2
            peak = problem.log_p0.max(axis=(1, 2), keepdims=True)
            density = np.exp(problem.log_p0 - peak)
            floor = np.maximum(density.min(axis=(1, 2), keepdims=True), 4 * np.finfo(float).eps)
            modes = row_forward @ density @ col_forward.T
            lines = np.empty_like(modes)
        for index in sorted(problem.wanted - {0}):
            with clock("solve"):
                row = decayed(row_inverse, row_decay * half_variance[index])
                # products with a transposed matrix take twice the time
                col = np.ascontiguousarray(decayed(col_inverse, col_decay * half_variance[index]).T)
                kept = modes[:, : row.shape[1], : len(col)]
                p = row @ np.matmul(kept, col, out=lines[:, : row.shape[1]])
                np.maximum(p, floor, out=p)
                np.log(p, out=p)
                p += peak
            yield Step(index, p)
