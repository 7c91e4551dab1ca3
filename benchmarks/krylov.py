"""Solvers for many images at once: ``python -m benchmarks.krylov [--quick] [--json [PATH]]``

Solver x grid x number of images on crops of the photographs bundled with scikit-image: g = 0.5, 100 steps on [0, 1],
no flux, Picard tolerance 1e-8 (at most 30 iterations) and linear tolerance 1e-8 for the iterative solvers, in one
process. Seconds are CPU seconds (run with OMP_NUM_THREADS=1), per image and step. Large cases are timed on the first
steps only, the same for all solvers of a case, and ``direct`` on fewer images: it shares nothing but the ordering
between them, so its seconds per image do not depend on their number.

The second part looks into the projection: along time, how far the matrices of the images differ, how near the
residuals lie to the seed's, by what factor the projection lowers the residual, and what iterations that saves.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fokker_planck import describe_machine, log_densities
from scoreexp.numerics.fokker_planck import (
    GMRES,
    BiCGSTAB,
    Direct,
    Factorised,
    KrylovProjection,
    Problem,
    ScoreField,
    Solver,
    Spectral,
    solve_log_density,
)
from scoreexp.numerics.fokker_planck.krylov import SharedPreconditioner, nearest_to_mean, project
from scoreexp.numerics.fokker_planck.picard import Linearisation
from scoreexp.numerics.linalg import arnoldi, bicgstab, inner

RESULT = Path(__file__).parent / "results" / "krylov.json"
DIFFUSION, TOLERANCE, MAX_ITER = 0.5, 1e-8, 30
TIMES = np.linspace(0, 1, 101)

SOLVERS: dict[str, Solver] = {
    "direct": Direct(),
    "bicgstab, no preconditioner": BiCGSTAB("jacobi", linear_tol=TOLERANCE),
    "bicgstab, shared ILU": BiCGSTAB("ilu", linear_tol=TOLERANCE),
    "bicgstab, shared LU": BiCGSTAB("lu", linear_tol=TOLERANCE),
    "gmres, shared LU": GMRES("lu", linear_tol=TOLERANCE),
    "projection, no preconditioner": KrylovProjection(preconditioner="jacobi", linear_tol=TOLERANCE),
    "projection, shared LU": KrylovProjection(preconditioner="lu", linear_tol=TOLERANCE),
    "projection enriched, shared LU": KrylovProjection(
        basis_size=5, enrich=5, preconditioner="lu", linear_tol=TOLERANCE
    ),
    "factorised": Factorised(),
    "spectral": Spectral(),
}
# (side, images): (steps, images timed for direct)
FULL = {
    (32, 4): (100, 4),
    (32, 16): (25, 4),
    (32, 64): (10, 4),
    (64, 4): (50, 2),
    (64, 16): (20, 2),
    (64, 64): (5, 2),
    (128, 4): (10, 1),
    (128, 16): (5, 1),
    (128, 64): (2, 1),
}
QUICK = {(16, 2): (3, 1), (16, 4): (3, 2)}


def timed(solver: Solver, log_p0: np.ndarray, steps: int) -> tuple[float, ScoreField]:
    """CPU seconds of one solve per image and step, and its result at the last time."""
    start = time.process_time()
    field = solve_log_density(
        log_p0,
        g=DIFFUSION,
        times=TIMES[: steps + 1],
        solver=solver,
        tol=TOLERANCE,
        max_iter=MAX_ITER,
        keep=[-1],
    )
    return (time.process_time() - start) / len(log_p0) / steps, field


def compare(side: int, images: int, steps: int, direct_images: int) -> list[dict[str, Any]]:
    """All solvers on one case."""
    log_p0 = log_densities(side, images)
    for solver in SOLVERS.values():
        timed(solver, log_p0[:1], 1)
    rows: list[dict[str, Any]] = []
    for name, solver in SOLVERS.items():
        count = direct_images if name == "direct" else images
        seconds, field = timed(solver, log_p0[:count], steps)
        if name == "direct":
            reference, direct_seconds = field.log_p, seconds
        stages = sum(field.seconds.values())
        rows.append(
            {
                "solver": name,
                "side": side,
                "images": images,
                "images_timed": count,
                "steps": steps,
                "seconds": seconds,
                "reduction": 1 - seconds / direct_seconds,
                "picard_iterations": float(field.iterations.mean()),
                "linear_iterations": float(field.linear_iterations.mean()),
                "largest_residual": float(field.final_residuals.max()),
                "difference_from_direct": float(abs(field.log_p[:, :direct_images] - reference).max()),
                "shares": {stage: value / stages for stage, value in field.seconds.items()},
            }
        )
    return rows


def projection_along_time(
    side: int, images: int, indices: list[int], sizes: list[int]
) -> list[dict[str, Any]]:
    """What the projection meets in the first Picard iteration of some steps, with and without preconditioner."""
    log_p0 = log_densities(side, images)
    field = solve_log_density(
        log_p0,
        g=DIFFUSION,
        times=TIMES[: max(indices)],
        solver=SOLVERS["bicgstab, shared LU"],
        tol=TOLERANCE,
        max_iter=MAX_ITER,
        keep=[index - 1 for index in indices],
    )
    rows = []
    for kind in ("jacobi", "lu"):
        for m, index in zip(field.log_p, indices):
            problem = Problem(m, g=DIFFUSION, times=TIMES, tol=TOLERANCE, max_iter=MAX_ITER)
            step = Linearisation(problem, index)
            inverse = SharedPreconditioner(kind, problem).at(step)
            system = step.system(m, m)
            residual = system.rhs - system.matvec(m)
            seed = nearest_to_mean(m)
            targets = np.delete(np.arange(images), seed)
            entries = np.concatenate([np.full_like(m, step.diagonal)[None], system.coefficients])
            size = np.sqrt((entries[:, seed] ** 2).sum())
            difference = np.sqrt(((entries[:, targets] - entries[:, [seed]]) ** 2).sum(axis=(0, 2, 3)))
            norms = np.sqrt(inner(residual, residual))
            cosine = inner(residual[targets], residual[[seed] * len(targets)]) / norms[targets] / norms[seed]
            one = system.select(slice(seed, seed + 1))
            warm = bicgstab(system.matvec, system.rhs, m, tol=TOLERANCE, precondition=inverse)
            row: dict[str, Any] = {
                "preconditioner": kind,
                "time": float(TIMES[index]),
                "matrix_difference": float((difference / size).mean()),
                "residual_cosine": float(abs(cosine).mean()),
                "residual": float((norms / np.sqrt(inner(system.rhs, system.rhs))).mean()),
                "warm_iterations": float(warm.iterations[targets].mean()),
                "projected": [],
            }
            for basis_size in sizes:
                basis, _ = arnoldi(lambda v: one.matvec(inverse(v[None]))[0], residual[seed], basis_size)  # noqa: B023
                start = project(system, m, residual, inverse(basis[:basis_size]))
                after = system.rhs - system.matvec(start)
                result = bicgstab(system.matvec, system.rhs, start, tol=TOLERANCE, precondition=inverse)
                row["projected"].append(
                    {
                        "basis_size": basis_size,
                        "residual_factor": float((np.sqrt(inner(after, after)) / norms)[targets].mean()),
                        "seed_residual_factor": float(np.sqrt(inner(after, after))[seed] / norms[seed]),
                        "iterations": float(result.iterations[targets].mean()),
                    }
                )
            rows.append(row)
    return rows


def run(quick: bool) -> dict[str, Any]:
    """Both parts."""
    cases = QUICK if quick else FULL
    rows = [row for (side, images), counts in cases.items() for row in compare(side, images, *counts)]
    analysis = (16, 3, [1, 3], [3]) if quick else (64, 8, [1, 2, 3, 5, 10, 20, 50, 100], [5, 10, 20])
    return {"machine": describe_machine(), "rows": rows, "projection": projection_along_time(*analysis)}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        "side  images  steps  solver                          ms/image/step  reduction  Picard  linear  "
        "residual   |m - direct|"
    ]
    lines += [
        f"{row['side']:4}  {row['images']:6}  {row['steps']:5}  {row['solver']:30}  {1e3 * row['seconds']:13.3f}  "
        f"{row['reduction']:9.1%}  {row['picard_iterations']:6.2f}  {row['linear_iterations']:6.1f}  "
        f"{row['largest_residual']:8.1e}  {row['difference_from_direct']:8.1e}"
        for row in result["rows"]
    ]
    lines.append("")
    lines.append(
        "preconditioner  time  matrices differ  |cos(r_j, r_seed)|  warm start  basis: |r| factor, iterations"
    )
    lines += [
        f"{row['preconditioner']:14}  {row['time']:.2f}  {row['matrix_difference']:15.1e}  "
        f"{row['residual_cosine']:18.2f}  {row['warm_iterations']:10.1f}  "
        + "  ".join(
            f"{each['basis_size']}: {each['residual_factor']:.2f}, {each['iterations']:.1f}"
            for each in row["projected"]
        )
        for row in result["projection"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases, as a smoke test")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    arguments = parser.parse_args()
    result = run(arguments.quick)
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
