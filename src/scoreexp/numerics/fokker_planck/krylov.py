"""The published scheme with iterative solves of its linear systems, all images of the batch together.

Every system starts from the solution of the previous Picard iteration (at first: of the previous time), which the
small steps in time put close to the answer. ``KrylovProjection`` improves that start by cross-matrix projection:
from one seed image it builds an orthonormal Krylov basis V of (A_seed M^-1, r_seed), and for every image j it takes
the point of x_0 + span(M^-1 V) that minimises |r_j - A_j M^-1 V y|. The iterative solver then goes on to the same
tolerance.

The preconditioner M is shared by all images: their matrices differ only in the velocity -(g^2/2) grad m~, so M is
the matrix without it, factorised once as long as g, dt and the drift stay the same. The diagonal of these matrices is
a constant, which makes ``jacobi`` a mere scaling.

Reference: Lau, Na, Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov Projection",
2025, https://arxiv.org/abs/2511.17634.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import spilu

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeInt, PositiveFloat, PositiveInt
from scoreexp.numerics.fokker_planck.direct import factorise, fill_reducing_order, same_matrix
from scoreexp.numerics.fokker_planck.grid import Array
from scoreexp.numerics.fokker_planck.picard import Linearisation, SparsePattern, System, picard_steps
from scoreexp.numerics.fokker_planck.problem import Boundary, LinearSolverFailure, Problem, StageClock, Step
from scoreexp.numerics.linalg import KrylovResult, Operator, arnoldi, bicgstab, gmres, inner

PreconditionerName = Literal["jacobi", "ilu", "lu"]
Start = Callable[[Linearisation, System, Array, Operator], Array]
IterativeSolve = Callable[[System, Array, Operator, float], KrylovResult]

CHUNK_BYTES = 2**18  # size of one batched vector: the dozen vectors of a solve stay in cache
ILU_DROP, ILU_FILL = 1e-3, 5


class SharedPreconditioner:
    """M^-1 for all images; factorised anew only when the matrix without the velocity of an image changes."""

    def __init__(self, kind: PreconditionerName, problem: Problem) -> None:
        self.kind = kind
        self.zero = np.zeros((1, *problem.grid.shape))
        self.factorised: Array | None = None
        if kind != "jacobi":
            self.pattern = SparsePattern(problem.grid, fill_reducing_order(problem))

    def at(self, step: Linearisation) -> Operator:
        """M^-1 of one time step."""
        if self.kind == "jacobi":
            return lambda x: x / step.diagonal
        matrix = self.pattern.matrix(step.system(self.zero, self.zero), 0)
        if self.factorised is None or not same_matrix(matrix.data, self.factorised):
            self.factorised = matrix.data
            if self.kind == "lu":
                self.lu = factorise(matrix)
            else:
                self.lu = spilu(matrix, drop_tol=ILU_DROP, fill_factor=ILU_FILL, permc_spec="NATURAL")
        return lambda x: self.pattern.solve(self.lu, x)


def march(
    problem: Problem,
    clock: StageClock,
    preconditioner: PreconditionerName,
    linear_tol: float | None,
    iterate: IterativeSolve,
    start: Start | None = None,
) -> Iterator[Step]:
    """Picard iteration whose systems are solved by ``iterate`` from where ``start`` moves the warm start to.

    Raises LinearSolverFailure where an image does not reach the tolerance.
    """
    if linear_tol is None:
        linear_tol = problem.tol / 10
    elif not linear_tol <= problem.tol:
        raise ValueError(f"linear_tol={linear_tol} must be at most the Picard tolerance tol={problem.tol}")
    tol = linear_tol
    chunk = max(1, CHUNK_BYTES // problem.log_p0[0].nbytes)
    with clock("preconditioner"):
        shared = SharedPreconditioner(preconditioner, problem)

    def solve(
        step: Linearisation, system: System, warm: Array, images: NDArray[np.intp]
    ) -> tuple[Array, NDArray[np.intp]]:
        with clock("preconditioner"):
            inverse = shared.at(step)
        if start is not None:
            with clock("projection"):
                warm = start(step, system, warm, inverse)
        solution = np.empty_like(warm)
        iterations = np.empty(len(images), dtype=np.intp)
        for first in range(0, len(images), chunk):
            part = slice(first, first + chunk)
            with clock("solve"):
                result = iterate(system.select(part), warm[part], inverse, tol)
            if not result.converged.all():
                worst = int(np.argmin(result.converged))
                raise LinearSolverFailure(
                    f"the linear solver stopped after {result.iterations[worst]} iterations above {tol:g}",
                    image=problem.image_index(int(images[first + worst])),
                    time=step.time,
                    residual=float(result.residuals[worst]),
                    remedy="raise linear_max_iter, use preconditioner='lu', or take smaller time steps",
                )
            solution[part], iterations[part] = result.x, result.iterations
        return solution, iterations

    yield from picard_steps(problem, clock, solve)


@checked
@dataclass(frozen=True)
class BiCGSTAB:
    """Picard iteration with BiCGSTAB for all images together.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> log_p0 = -8 * np.linspace(-1, 1, 9)[:, None] ** 2 * np.ones(9)
    >>> solver = BiCGSTAB(preconditioner="jacobi")
    >>> field = solve_log_density(log_p0, g=0.5, times=[0.0, 0.01], max_iter=20, solver=solver)
    >>> field.solver, field.converged.all().item()
    ('bicgstab', True)

    Args:
        preconditioner: "jacobi" (a scaling here), "ilu" or "lu" of the matrix that the images share.
        linear_tol: relative residual |b - A x| / |b| at which a linear solve stops, at most the Picard tolerance;
            None is a tenth of that.
        linear_max_iter: most iterations of one linear solve.
    """

    preconditioner: PreconditionerName = "lu"
    linear_tol: PositiveFloat | None = None
    linear_max_iter: PositiveInt = 1000

    name: ClassVar[str] = "bicgstab"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann", "zero")
    supports_drift: ClassVar[bool] = True

    def iterate(self, system: System, start: Array, inverse: Operator, tol: float) -> KrylovResult:
        """Solve a batch of systems from ``start``."""
        return bicgstab(
            system.matvec, system.rhs, start, tol=tol, max_iter=self.linear_max_iter, precondition=inverse
        )

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        return march(problem, clock, self.preconditioner, self.linear_tol, self.iterate)


@checked
@dataclass(frozen=True)
class GMRES:
    """Picard iteration with restarted GMRES for all images together; arguments as for ``BiCGSTAB``, and ``restart``.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> log_p0 = -8 * np.linspace(-1, 1, 9)[:, None] ** 2 * np.ones(9)
    >>> field = solve_log_density(log_p0, g=0.5, times=[0.0, 0.01], max_iter=20, solver=GMRES(restart=10))
    >>> field.solver, field.converged.all().item()
    ('gmres', True)
    """

    preconditioner: PreconditionerName = "lu"
    linear_tol: PositiveFloat | None = None
    linear_max_iter: PositiveInt = 1000
    restart: PositiveInt = 20

    name: ClassVar[str] = "gmres"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann", "zero")
    supports_drift: ClassVar[bool] = True

    def iterate(self, system: System, start: Array, inverse: Operator, tol: float) -> KrylovResult:
        """Solve a batch of systems from ``start``."""
        return gmres(
            system.matvec,
            system.rhs,
            start,
            tol=tol,
            max_iter=self.linear_max_iter,
            restart=self.restart,
            precondition=inverse,
        )

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        return march(problem, clock, self.preconditioner, self.linear_tol, self.iterate)


@checked
@dataclass(frozen=True)
class KrylovProjection:
    """Cross-matrix Krylov projection (see the module docstring), then the iterative solver to the same tolerance.

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> images = -np.array([4.0, 6.0, 8.0])[:, None, None] * np.linspace(-1, 1, 9)[:, None] ** 2 * np.ones(9)
    >>> solver = KrylovProjection(basis_size=5, enrich=2)
    >>> field = solve_log_density(images, g=0.5, times=[0.0, 0.01], max_iter=20, solver=solver)
    >>> field.solver, field.converged.all().item()
    ('krylov_projection', True)

    Args:
        seed: the image that the basis is built from: "first", or "mean", the one nearest the mean log-density.
        basis_size: dimension of the Krylov space.
        refresh: time steps after which the basis is built anew.
        enrich: number of corrections (solution minus start) of solved images, the latest ones, that join the basis.
        every_iteration: project in every Picard iteration instead of the first of each time step only.
        solver: the iterative solver that finishes; the remaining parameters are its own.
    """

    seed: Literal["first", "mean"] = "mean"
    basis_size: PositiveInt = 10
    refresh: PositiveInt = 1
    enrich: NonNegativeInt = 0
    every_iteration: bool = False
    solver: Literal["bicgstab", "gmres"] = "bicgstab"
    preconditioner: PreconditionerName = "lu"
    linear_tol: PositiveFloat | None = None
    linear_max_iter: PositiveInt = 1000

    name: ClassVar[str] = "krylov_projection"
    boundaries: ClassVar[tuple[Boundary, ...]] = ("neumann", "zero")
    supports_drift: ClassVar[bool] = True

    def __call__(self, problem: Problem, clock: StageClock) -> Iterator[Step]:
        method = BiCGSTAB if self.solver == "bicgstab" else GMRES
        finish = method(self.preconditioner, self.linear_tol, self.linear_max_iter)
        yield from march(
            problem, clock, self.preconditioner, self.linear_tol, finish.iterate, Projector(self).start
        )


class Projector:
    """The basis of one run: built from the seed, enriched by solved images, projected on."""

    def __init__(self, parameters: KrylovProjection) -> None:
        self.parameters = parameters
        self.steps = 0
        self.time: float | None = None
        self.krylov = self.basis = np.empty(0)
        self.start_of_step = np.empty(0)

    def start(self, step: Linearisation, system: System, warm: Array, inverse: Operator) -> Array:
        """Best start for every system; the warm start itself where the projection would not improve on it."""
        first_iteration = step.time != self.time
        residual = system.rhs - system.matvec(warm)
        if first_iteration:
            self._renew(system, warm, residual, inverse)
            self.time = step.time
        elif not self.parameters.every_iteration:
            return warm
        return project(system, warm, residual, self.basis) if len(self.basis) else warm

    def _renew(self, system: System, warm: Array, residual: Array, inverse: Operator) -> None:
        if self.steps % self.parameters.refresh == 0:
            self.krylov = self._krylov_space(system, warm, residual, inverse)
        basis = self.krylov
        if self.parameters.enrich and self.steps:
            # all images are unconverged at the start of a step: the change over the last one is its correction
            corrections = (warm - self.start_of_step)[-self.parameters.enrich :]
            basis = np.concatenate([basis.reshape(-1, *warm.shape[1:]), corrections])
            basis = np.linalg.qr(basis.reshape(len(basis), -1).T)[0].T.reshape(basis.shape)
        self.basis = basis
        self.start_of_step = warm
        self.steps += 1

    def _krylov_space(self, system: System, warm: Array, residual: Array, inverse: Operator) -> Array:
        """Directions M^-1 V [k, H, W]; none where the seed is solved already."""
        image = 0 if self.parameters.seed == "first" else nearest_to_mean(warm)
        if not residual[image].any():
            return np.empty((0, *warm.shape[1:]))
        seed = system.select(slice(image, image + 1))
        basis, hessenberg = arnoldi(
            lambda v: seed.matvec(inverse(v[None]))[0], residual[image], self.parameters.basis_size
        )
        return inverse(basis[: hessenberg.shape[1]])


def nearest_to_mean(m: Array) -> int:
    """Index of the image of m[B, H, W] nearest the mean."""
    offset = m - m.mean(axis=0)
    return int(np.argmin(inner(offset, offset)))


def project(system: System, warm: Array, residual: Array, basis: Array) -> Array:
    """Per image the point of warm + span(basis) of least residual, basis [k, H, W].

    The least-squares problem is solved by its normal equations, whose round-off only costs iterations later; an image
    whose residual would not shrink keeps its warm start.
    """
    out = warm.copy()
    for i in range(len(warm)):
        one = system.select(slice(i, i + 1))
        images = np.stack([one.matvec(z[None])[0] for z in basis]).reshape(len(basis), -1)
        r = residual[i].reshape(-1)
        y = np.linalg.lstsq(images @ images.T, images @ r, rcond=None)[0]
        if np.linalg.norm(r - y @ images) < np.linalg.norm(r):
            out[i] += np.tensordot(y, basis, 1)
    return out
