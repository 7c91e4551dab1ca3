"""The published scheme with a sparse direct solve (SuperLU) for every Picard iteration of every image.

The fill-reducing ordering depends only on the stencil, so it is computed once and built into the sparse
pattern.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import SuperLU, splu

from scoreexp.numerics.fokker_planck.grid import Array
from scoreexp.numerics.fokker_planck.picard import Linearisation, SparsePattern, System, picard_steps
from scoreexp.numerics.fokker_planck.problem import Boundary, LinearSolverFailure, Problem, StageClock, Step

PIVOT_THRESHOLD = (
    0.1  # leave the diagonal only for a pivot ten times larger: keeps the ordering, stays stable
)


@dataclass(frozen=True)
class Direct:
    """Picard iteration (see ``picard.py``) with one sparse LU factorisation per image and iteration.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> field = solve_log_density(np.zeros((8, 8)), g=0.5, times=[0.0, 0.1], boundary="zero", solver=Direct())
    >>> field.solver, field.converged.tolist()
    ('direct', [True])
    """

    name: ClassVar[str] = "direct"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann", "zero")
    supports_drift: ClassVar[bool] = True

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        with clock("assembly"):
            pattern = SparsePattern(problem.grid, fill_reducing_order(problem))

        def solve(
            step: Linearisation, system: System, start: Array, images: NDArray[np.intp]
        ) -> tuple[Array, NDArray[np.intp]]:
            solution = np.empty_like(start)
            for i, image in enumerate(images):
                with clock("assembly"):
                    matrix = pattern.matrix(system, i)
                with clock("solve"):
                    try:
                        lu = factorise(matrix)
                    except RuntimeError as error:
                        raise LinearSolverFailure(
                            "the Picard matrix is singular",
                            image=problem.image_index(int(image)),
                            time=step.time,
                            residual=np.inf,
                            remedy="take smaller time steps",
                        ) from error
                    solution[i] = pattern.solve(lu, system.rhs[i])
            return solution, np.zeros(len(images), dtype=int)

        yield from picard_steps(problem, clock, solve)


def fill_reducing_order(problem: Problem) -> NDArray[np.intp]:
    """Minimum-degree ordering of the five-point pattern: new index of each node."""
    start = problem.log_p0[:1] * 0.0
    matrix = SparsePattern(problem.grid).matrix(Linearisation(problem, 1).system(start, start), 0)
    return splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}).perm_c.astype(np.intp)


def factorise(matrix: object) -> SuperLU:
    """LU factors of a matrix whose pattern is already ordered."""
    return splu(
        matrix, permc_spec="NATURAL", diag_pivot_thresh=PIVOT_THRESHOLD, options={"SymmetricMode": True}
    )


def same_matrix(a: Array, b: Array) -> bool:
    """Whether the entries agree up to the round-off of equal time steps, so that one factorisation serves both."""
    return bool(np.allclose(a, b, rtol=1e-12, atol=0))
