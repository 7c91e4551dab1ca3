"""How long a user waits: for the first answer, a run of one step, a sweep of such runs: ``python -m benchmarks.startup``.

Each command is a process of its own. The first answers have limits, and the command fails where one is passed; the least of
several runs counts, which a busy machine disturbs least. The runs are compared with those of other trees, which take turns:

    git worktree add /tmp/b7eb0f7 b7eb0f7
    python -m benchmarks.startup --against /tmp/b7eb0f7

Ratios of wall time are the answer on an idle machine; where others work too, those of processor time (user and system) are.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from scoreexp.system.json_files import write_json
from scoreexp.system.machine import processor

HERE = Path(__file__).parents[1]
RUNS = 7
TRAIN = ("-m", "scoreexp.train")
LIMITS = {  # command: seconds
    "import scoreexp": (("-c", "import scoreexp"), 0.15),
    "the whole configuration (--cfg job)": ((*TRAIN, "--cfg", "job"), 0.6),
    "a misspelt key": ((*TRAIN, "sede=1"), 1.5),
    "a missing picture": ((*TRAIN, "data.path=missing.png"), 1.5),
    "a missing data set": ((*TRAIN, "experiment=celeba64_ours", "data.root=missing"), 1.5),
}
ONE_STEP = ("experiment=photo32_ddpm", "trainer.max_steps=1")


class Taken(NamedTuple):
    """Seconds of a command with all of its processes: on the wall, and of processors."""

    wall: float
    processor: float


def taken(arguments: tuple[str, ...], tree: Path = HERE, *, fails: bool = False) -> Taken:
    """What ``python ARGUMENTS`` takes with the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], capture_output=True, cwd=tree, env=environment, check=not fails
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def first_answers() -> int:
    """Print how long each takes; returns how many pass their limit."""
    late = 0
    for name, (arguments, limit) in LIMITS.items():
        least = min(taken(arguments, fails=True).wall for _ in range(RUNS))
        late += least > limit
        print(f"{name:<40}{least:6.2f} s, at most {limit:g}{'' if least <= limit else ': TOO LATE'}")
    return late


def compare_runs(trees: dict[str, Path], jobs: int, repeats: int) -> dict[str, list[Taken]]:
    """Seconds of a run of one step, or of a sweep of ``jobs`` of them, two at once, by tree, which take turns."""
    sweep = (
        ("-m", f"seed={','.join(map(str, range(jobs)))}", "hydra.launcher.n_parallel=2") if jobs > 1 else ()
    )
    found: dict[str, list[Taken]] = {name: [] for name in trees}
    for _ in range(repeats):
        for name, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(taken((*TRAIN, *sweep, *ONE_STEP, f"run_dir={folder}/run"), tree))
    what = f"a sweep of {jobs} runs of one step" if jobs > 1 else "a run of one step"
    print(f"\n{what}, median of {repeats}: seconds, and their ratio to those beside them in the same turn")
    for name in trees:
        print(f"{name:<44}", end="")
        for unit in Taken._fields:
            own = [getattr(seconds, unit) for seconds in found[name]]
            ratios = [b / a for a, b in zip(own, (getattr(s, unit) for s in found["this tree"]))]
            print(
                f"{unit:>12} {statistics.median(own):7.2f}  this/it {statistics.median(ratios):5.2f}", end=""
            )
        print()
    return found


def main() -> int:
    """Print the tables; returns 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="working trees of other commits")
    parser.add_argument("--repeats", type=int, default=5, help="of the runs of one step")
    parser.add_argument("--jobs", type=int, default=20, help="of a sweep, 0 for none")
    parser.add_argument("--sweeps", type=int, default=1, help="repeats of the sweep")
    parser.add_argument("--only-runs", action="store_true", help="without the first answers")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    asked = parser.parse_args()
    late = 0 if asked.only_runs else first_answers()
    trees = {**{tree.name: tree.resolve() for tree in asked.against}, "this tree": HERE}
    figures = {"one run": compare_runs(trees, 1, asked.repeats)}
    if asked.jobs:
        figures[f"sweep of {asked.jobs}"] = compare_runs(trees, asked.jobs, asked.sweeps)
    if asked.output is not None:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        write_json(asked.output, {"processor": processor(), **versions, "seconds": figures})
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
