"""Time and memory of the Fokker-Planck solvers: ``python -m benchmarks.fokker_planck [--quick] [--json [PATH]]``

Images are crops of the photographs bundled with scikit-image; 100 steps on [0, 1], g = 0.5, no flux, every time
kept, published tolerance 1e-6 and 5 Picard iterations. Seconds are CPU seconds of one thread, so that other jobs on
the machine count little. Each measurement runs in a process of its own, whose growth in resident memory is the peak
reported.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from skimage import data
from skimage.transform import resize

from scoreexp.numerics.fokker_planck import initial_log_density, solve_log_density
from scoreexp.numerics.fokker_planck.solve import SolverName
from scoreexp.system.machine import processor

RESULT = Path(__file__).parent / "results" / "fokker_planck.json"
DIFFUSION = 0.5
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
# side: (images for spectral, images for direct)
FULL = {32: (16, 4), 64: (16, 4), 128: (8, 1), 256: (4, 1)}
QUICK = {16: (2, 1), 32: (2, 1)}


def describe_machine() -> dict[str, str | int | None]:
    """Processor and versions."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def log_densities(side: int, count: int, seed: int = 0) -> np.ndarray:
    """Starting log-densities [count, side, side] of random square crops of the bundled photographs."""
    rng = np.random.default_rng(seed)
    densities = []
    for k in range(count):
        photograph = getattr(data, PHOTOGRAPHS[k % len(PHOTOGRAPHS)])() / 255.0
        crop = int(rng.integers(128, min(photograph.shape[:2]) + 1))
        row, col = (int(rng.integers(0, n - crop + 1)) for n in photograph.shape[:2])
        image = resize(photograph[row : row + crop, col : col + crop], (side, side), anti_aliasing=True)
        densities.append(initial_log_density(np.clip(image, 0, 1)))
    return np.stack(densities)


def measure(solver: SolverName, side: int, images: int, steps: int, repeats: int) -> dict[str, Any]:
    """One solver on one grid: the fastest of ``repeats`` runs after a warm-up on two steps."""
    times = np.linspace(0, 1, steps + 1)
    log_p0 = log_densities(side, images)
    solve_log_density(log_p0, g=DIFFUSION, times=times[:3], solver=solver)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        field = solve_log_density(log_p0, g=DIFFUSION, times=times, solver=solver)
        seconds = time.process_time() - start
        if seconds < best:
            best, stages = seconds, field.seconds
        iterations, unmet = field.iterations.mean(), (~field.converged).sum()
        held = field.log_p.nbytes + field.score.nbytes
        del field
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "solver": solver,
        "side": side,
        "images": images,
        "steps": steps,
        "seconds_per_image": best / images,
        "share_of_assembly": stages.get("assembly", 0.0) / sum(stages.values()),
        "picard_iterations_per_step": float(iterations),
        "steps_above_tolerance": int(unmet),
        "peak_mib": (after - before) / 1024,
        "result_mib": held / 2**20,
    }


def measure_apart(*args: Any) -> dict[str, Any]:
    """``measure`` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *args).result()


def run(sizes: dict[int, tuple[int, int]], steps: int) -> dict[str, Any]:
    """All measurements and the figures drawn from them."""
    rows = []
    for side, (spectral_images, direct_images) in sizes.items():
        rows.append(measure_apart("spectral", side, spectral_images, steps, 3))
        rows.append(measure_apart("direct", side, direct_images, steps, 1))
    seconds = {(row["solver"], row["side"]): row["seconds_per_image"] for row in rows}
    work = {side: side**2 * math.log(side**2) for side in sizes}
    smallest = min(sizes)
    return {
        "machine": describe_machine(),
        "rows": rows,
        "speed_up": {side: seconds["direct", side] / seconds["spectral", side] for side in sizes},
        "spectral_growth_over_n_log_n": {
            side: seconds["spectral", side] / seconds["spectral", smallest] * work[smallest] / work[side]
            for side in sizes
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = ["solver    side  images  s/image  assembly  iterations/step  unmet  peak MiB  result MiB"]
    lines += [
        f"{row['solver']:9} {row['side']:4}  {row['images']:6}  {row['seconds_per_image']:7.4f}  "
        f"{row['share_of_assembly']:8.1%}  {row['picard_iterations_per_step']:15.2f}  "
        f"{row['steps_above_tolerance']:5}  {row['peak_mib']:8.1f}  {row['result_mib']:10.1f}"
        for row in result["rows"]
    ]
    for side, ratio in result["speed_up"].items():
        growth = result["spectral_growth_over_n_log_n"][side]
        lines.append(
            f"{side}: spectral {ratio:.0f} times faster; seconds / (N log N) {growth:.2f} of the smallest"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by the processes that measure
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small grids and ten steps, as a smoke test")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    arguments = parser.parse_args()
    result = run(QUICK, 10) if arguments.quick else run(FULL, 100)
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
