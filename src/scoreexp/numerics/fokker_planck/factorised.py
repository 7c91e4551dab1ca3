"""The linear equation for p, whose matrix is the same for every image: one factorisation serves them all.

With p = exp(m) the log-density equation is p_t = div((g^2/2) grad p - f p). On the cells of the vertex-centred grid
(half cells at the border, no flux through it) the Scharfetter-Gummel flux between neighbours a and b at distance h is

    F = (D/h) (B(-q) p_a - B(q) p_b),    D = g^2/2,    q = f h / D,    B(q) = q / (e^q - 1),

the exact one for a constant drift between the two nodes: centred for small q, upwind for large. B is positive, so
W - dt L (cell areas W, L p the net inflow) has a positive diagonal, no positive entry off it, and columns that sum to
the cell areas: an M-matrix, whose inverse is not negative, for any time step. Implicit Euler,

    (W - dt L) p^n = W p^(n-1),

therefore keeps p positive and the mass sum w p constant. (The triangular factors of an M-matrix without pivoting are
M-matrices too, so the substitutions only add numbers of one sign and round-off keeps p positive as well.) The scheme is
of first order in time and second in space; D is the mean of g^2/2 over the step, f is taken at its end. No Runge-Kutta
or multistep method of higher order keeps p positive for every time step, so none is offered: take more steps.

References: Scharfetter, Gummel, "Large-signal analysis of a silicon Read diode oscillator", 1969,
https://doi.org/10.1109/T-ED.1969.16566 (flux); Bolley, Crouzeix, "Conservation de la positivite lors de la
discretisation des problemes d'evolution paraboliques", 1978, https://doi.org/10.1051/m2an/1978120302371 (order barrier).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csc_array
from scipy.sparse.linalg import splu

from scoreexp.numerics.fokker_planck.direct import same_matrix
from scoreexp.numerics.fokker_planck.grid import Array, Grid
from scoreexp.numerics.fokker_planck.picard import evaluate_drift
from scoreexp.numerics.fokker_planck.problem import Boundary, Drift, Problem, StageClock, Step

FLOOR = 1e-300


def bernoulli(q: Array) -> Array:
    """B(q) = q / (e^q - 1), with B(0) = 1.

    >>> import numpy as np
    >>> bernoulli(np.array([0.0, np.log(2)])).round(4)
    array([1.    , 0.6931])
    """
    tiny = abs(q) < 1e-8
    safe = np.where(tiny, 1.0, q)
    return np.where(tiny, 1 - q / 2, safe / np.expm1(np.minimum(safe, 700)))  # e^710 overflows


@dataclass(frozen=True)
class Faces:
    """The faces between neighbouring cells: nodes ``a`` and ``b`` of each, in order of the axis across the face."""

    grid: Grid

    @cached_property
    def pairs(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp], Array]]:
        """Per axis: nodes a, nodes b, face lengths."""
        nodes = np.arange(np.prod(self.grid.shape), dtype=np.intp).reshape(self.grid.shape)
        row, col = self.grid.widths
        return [
            (nodes[:-1].ravel(), nodes[1:].ravel(), np.tile(col, len(row) - 1)),
            (nodes[:, :-1].ravel(), nodes[:, 1:].ravel(), np.repeat(row, len(col) - 1)),
        ]

    def rates(self, diffusivity: float, drift: Drift | None, t: float) -> Array:
        """Flow from a to b per density at a, and from b to a per density at b: [2, faces of both axes]."""
        points = self.grid.points.reshape(2, -1)
        rates = []
        for axis, (a, b, length) in enumerate(self.pairs):
            h = self.grid.spacing[axis]
            if drift is None:
                peclet = np.zeros(len(a))
            else:
                peclet = evaluate_drift(drift, (points[:, a] + points[:, b]) / 2, t)[axis] * h / diffusivity
            rates.append(length * diffusivity / h * np.stack([bernoulli(-peclet), bernoulli(peclet)]))
        return np.concatenate(rates, axis=1)

    def implicit_matrix(self, scaled_rates: Array) -> csc_array:
        """W - dt L, from the rates times dt."""
        a, b = (np.concatenate([pair[k] for pair in self.pairs]) for k in (0, 1))
        from_a, from_b = scaled_rates
        cells = np.arange(self.grid.weights.size)
        values = np.concatenate([self.grid.weights.ravel(), from_a, -from_a, from_b, -from_b])
        rows, cols = np.concatenate([cells, a, b, b, a]), np.concatenate([cells, a, a, b, b])
        return coo_array((values, (rows, cols)), shape=(cells.size, cells.size)).tocsc()


@dataclass(frozen=True)
class Factorised:
    """Linear solver for p with one sparse LU per distinct matrix (see the module docstring).

    Densities below 1e-300 of an image's maximum are floored there, so that log p stays finite.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import mass, solve_log_density
    >>> def to_the_centre(points, t):
    ...     return 0.5 - points
    >>> field = solve_log_density(np.zeros((9, 9)), g=0.5, times=[0.0, 0.1], drift=to_the_centre, solver=Factorised())
    >>> mass(field.log_p).round(6), int(field.log_p[-1].argmax())  # pixel (4, 4)
    (array([1., 1.]), 40)
    """

    name: ClassVar[str] = "factorised"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann",)
    supports_drift: ClassVar[bool] = True

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        faces = Faces(problem.grid)
        weights = problem.grid.weights.reshape(-1, 1)
        peak = problem.log_p0.max(axis=(1, 2), keepdims=True)
        p = np.exp(problem.log_p0 - peak).reshape(len(peak), -1).T
        factorised: Array | None = None
        for index, dt in enumerate(np.diff(problem.times), start=1):
            with clock("assembly"):
                diffusivity = float(problem.variances[index - 1] / dt / 2)
                rates = dt * faces.rates(diffusivity, problem.drift, float(problem.times[index]))
            if factorised is None or not same_matrix(rates, factorised):
                with clock("assembly"):
                    matrix = faces.implicit_matrix(rates)
                with clock("factorise"):
                    lu = splu(
                        matrix,
                        permc_spec="MMD_AT_PLUS_A",
                        diag_pivot_thresh=0.0,
                        options={"SymmetricMode": True},
                    )
                factorised = rates
            with clock("solve"):
                p = np.maximum(lu.solve(weights * p), FLOOR)
                log_p = np.log(p.T).reshape(problem.log_p0.shape) + peak
            yield Step(index, log_p)
