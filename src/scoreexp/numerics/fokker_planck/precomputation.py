"""Initial density and Fokker-Planck solve of a batch of images with one set of parameters."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveFloat, PositiveInt
from scoreexp.numerics.fokker_planck.auto import fastest
from scoreexp.numerics.fokker_planck.field import ScoreField
from scoreexp.numerics.fokker_planck.grid import Array
from scoreexp.numerics.fokker_planck.initial import initial_log_densities, initial_log_density
from scoreexp.numerics.fokker_planck.problem import Boundary, Drift, Problem, Solver, StageClock
from scoreexp.numerics.fokker_planck.solve import (
    SolverName,
    TimeSlice,
    iterate_log_density,
    make_solver,
    solve_log_density,
)


class GeometricDiffusion:
    """g(t) = sigma^t, whose variance is int_0^t g^2 = (sigma^(2t) - 1) / (2 ln sigma).

    >>> GeometricDiffusion(25.0)(0.5)
    5.0
    """

    @checked
    def __init__(self, sigma: FinitePositiveFloat = 5.0) -> None:
        self.sigma = float(sigma)

    def __call__(self, t: float) -> float:
        return self.sigma**t


class ScorePrecomputation:
    """Score fields of images: ``initial_log_density`` of each, then one ``solve_log_density`` for all.

    >>> import numpy as np
    >>> precompute = ScorePrecomputation(g=0.5, horizon=0.2, steps=4)
    >>> field = precompute(np.random.default_rng(0).random((2, 8, 8, 3)), keep=[-1])
    >>> field.times, field.score.shape
    (array([0.2]), (1, 2, 2, 8, 8))

    Args:
        g: diffusion coefficient, a number or a callable of t.
        horizon: last time T; the steps are T / steps.
        steps: number of time steps N.
        initial_density: how an image is read as a density.
        boundary, solver, tol, max_iter: as for ``solve_log_density``.
        solver_options: the parameters of a solver that is given by its name.
        spacing: grid step; None puts the image on the unit square.
        drift: f(points, t), or None.
    """

    @checked
    def __init__(
        self,
        *,
        g: PositiveFloat | Callable[[float], float] = 0.5,
        horizon: FinitePositiveFloat = 1.0,
        steps: PositiveInt = 100,
        initial_density: Literal["smoothed", "sampled_kde", "value_pairs"] = "smoothed",
        boundary: Literal["neumann", "zero"] = "neumann",
        solver: Literal["auto", "spectral", "factorised", "direct", "bicgstab", "gmres", "krylov_projection"]
        | Solver = "spectral",
        solver_options: dict[str, Any] | None = None,
        tol: PositiveFloat = 1e-6,
        max_iter: PositiveInt = 5,
        spacing: PositiveFloat | None = None,
        drift: Drift | None = None,
    ) -> None:
        self.g = g
        self.times = np.linspace(0.0, horizon, steps + 1)
        self.initial_density = initial_density
        self.boundary: Boundary = boundary
        if solver_options and (solver == "auto" or not isinstance(solver, str)):
            raise ValueError(f"solver_options={solver_options} need a named solver other than 'auto'")
        self.solver: SolverName | Solver
        if solver == "auto" or not isinstance(solver, str):
            self.solver = solver
        else:
            self.solver = make_solver(solver, **(solver_options or {}))
        self.tol = tol
        self.max_iter = max_iter
        self.spacing = spacing
        self.drift = drift

    def initial(self, images: ArrayLike, rng: np.random.Generator | None = None) -> Array:
        """Starting log-densities [B, H, W] (``value_pairs``: [B, C, H, W]) of images[B, H, W, C]."""
        images = np.asarray(images)
        if images.ndim != 4 or not len(images):
            raise ValueError(f"images have shape {images.shape}: give [B, H, W, C] with at least one image")
        if self.initial_density == "sampled_kde":
            return np.stack([initial_log_density(image, "sampled_kde", rng=rng) for image in images])
        return initial_log_densities(images, self.initial_density)

    @property
    def cheap(self) -> bool:
        """Whether a solution costs less than to keep it: each time in closed form, from a density that is not sampled."""
        solver = fastest(self.boundary, self.drift) if self.solver == "auto" else self.solver
        return getattr(solver, "exact_in_time", False) and self.initial_density != "sampled_kde"

    def slices(self, images: ArrayLike, *, keep: Iterable[int] | None = None) -> Iterator[TimeSlice]:
        """The solution for images[B, H, W, C] at one kept time after the other, in float64.

        For starting densities that are not drawn. Arguments and errors as for a call.
        """
        problem = Problem(
            self.initial(images),
            g=self.g,
            times=self.times,
            drift=self.drift,
            boundary=self.boundary,
            tol=self.tol,
            max_iter=self.max_iter,
            spacing=self.spacing,
            keep=keep,
        )
        return iterate_log_density(problem, self.solver)

    def __call__(
        self,
        images: ArrayLike,
        *,
        keep: Iterable[int] | None = None,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = np.float64,
    ) -> ScoreField:
        """ScoreField of images[B, H, W, C] in [0, 1]; its seconds include ``initial_density``.

        Args:
            images: [B, H, W, C], values in [0, 1].
            keep: indices of the times to keep; None keeps all N + 1.
            rng: generator of the positions of ``sampled_kde``.
            dtype: of the stored fields.

        Raises ValueError for bad images and the errors of ``solve_log_density``.
        """
        clock = StageClock()
        with clock("initial_density"):
            log_p0 = self.initial(images, rng)
        field = solve_log_density(
            log_p0,
            g=self.g,
            times=self.times,
            drift=self.drift,
            boundary=self.boundary,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            spacing=self.spacing,
            keep=keep,
            dtype=dtype,
        )
        field.seconds.update(clock.seconds)
        return field
