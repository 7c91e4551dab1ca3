"""Fokker-Planck evolution of an image read as a density on the image plane, and its score.

``initial_log_density`` turns an image into m_0 = log p_0, ``solve_log_density`` evolves it under dx = f dt +
g dW and returns a ``ScoreField`` with grad m at the times asked for. Needs numpy and scipy only.

This image-plane score is a two-component field per pixel. It is not the pixel-space score grad_x log p_t(x)
that a diffusion network learns.
"""

from scoreexp.numerics.fokker_planck.direct import Direct
from scoreexp.numerics.fokker_planck.factorised import Factorised
from scoreexp.numerics.fokker_planck.field import ScoreField
from scoreexp.numerics.fokker_planck.grid import Grid, mass
from scoreexp.numerics.fokker_planck.initial import initial_log_density, sample_positions
from scoreexp.numerics.fokker_planck.krylov import GMRES, BiCGSTAB, KrylovProjection
from scoreexp.numerics.fokker_planck.precomputation import GeometricDiffusion, ScorePrecomputation
from scoreexp.numerics.fokker_planck.problem import (
    LinearSolverFailure,
    PicardDivergence,
    Problem,
    Solver,
    SolverError,
    Step,
)
from scoreexp.numerics.fokker_planck.solve import (
    SOLVERS,
    TimeSlice,
    iterate_log_density,
    make_solver,
    solve_log_density,
)
from scoreexp.numerics.fokker_planck.spectral import Spectral, laplacian_eigenvalues

VERSION = 1  # of the schemes: raise it with every change of their results, for stored fields are found by it

__all__ = [
    "GMRES",
    "SOLVERS",
    "VERSION",
    "BiCGSTAB",
    "Direct",
    "Factorised",
    "GeometricDiffusion",
    "Grid",
    "KrylovProjection",
    "LinearSolverFailure",
    "PicardDivergence",
    "Problem",
    "ScoreField",
    "ScorePrecomputation",
    "Solver",
    "SolverError",
    "Spectral",
    "Step",
    "TimeSlice",
    "initial_log_density",
    "iterate_log_density",
    "laplacian_eigenvalues",
    "make_solver",
    "mass",
    "sample_positions",
    "solve_log_density",
]
