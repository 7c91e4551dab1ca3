"""The result of a Fokker-Planck solve."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scoreexp.numerics.fokker_planck.grid import Array


@dataclass(frozen=True)
class ScoreField:
    """Log-density and image-plane score of images over time, with the solver's diagnostics.

    The score grad m is a two-component field per pixel on the image plane (d/d row, d/d column), not the
    pixel-space score of a diffusion model. ``...`` are the leading axes of the starting log-density (images,
    channels). K is the number of kept times, N the number of steps, I the number of Picard iterations allowed
    (0 for the solvers of the linear equation, which do not iterate).

    >>> import numpy as np
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> field = solve_log_density(np.zeros((3, 8, 8)), g=0.5, times=[0.0, 0.1, 0.2], keep=[0, -1])
    >>> field.times, field.log_p.shape, field.score.shape, field.convergence_warning()
    (array([0. , 0.2]), (2, 3, 8, 8), (2, 3, 2, 8, 8), None)
    """

    times: Array  # [K]
    log_p: Array  # [K, ..., H, W]
    score: Array  # [K, ..., 2, H, W]
    kept: NDArray[np.intp]  # [K] indices of these times among the N + 1 that were given
    solver: str
    boundary: str
    tol: float
    step_times: Array  # [N] times of the steps 1..N
    iterations: NDArray[np.intp]  # [N, ...] Picard iterations done
    residuals: (
        Array  # [N, I, ...] relative change per Picard iteration, NaN where an image had already stopped
    )
    linear_iterations: NDArray[
        np.intp
    ]  # [N, ...] iterations of the linear solver, summed over the Picard iterations
    seconds: dict[str, float] = field(default_factory=dict)  # per stage: assembly, solve, score, ...

    @property
    def final_residuals(self) -> Array:
        """Last relative change of each step, [N, ...]; 0 for the solvers that do not iterate."""
        if not self.residuals.shape[1]:
            return np.zeros(self.iterations.shape)
        last = np.maximum(self.iterations - 1, 0)[:, None]
        return np.take_along_axis(self.residuals, last, axis=1)[:, 0]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each step met the tolerance, [N, ...]."""
        return self.final_residuals < self.tol

    def convergence_warning(self) -> str | None:
        """One line that says how far the solver stayed from its tolerance; None if all steps met it."""
        failed = ~self.converged
        if not failed.any():
            return None
        residuals = self.final_residuals
        worst = np.unravel_index(int(np.argmax(residuals)), residuals.shape)
        return (
            f"{self.solver}: {failed.sum()} of {failed.size} steps stopped after {self.residuals.shape[1]} "
            f"iterations above tol={self.tol:g}; largest residual {residuals[worst]:.2e} at image "
            f"{tuple(map(int, worst[1:]))}, time {self.step_times[worst[0]]:.4g}: "
            "raise max_iter or take smaller steps"
        )
