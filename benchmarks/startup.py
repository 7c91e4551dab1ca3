"""How long a user waits: for the first answer, a run of one step, a sweep of such runs: ``python -m benchmarks.startup``.

Each command is a process of its own. The first answers have limits, and the command fails where one is passed; the least of
several runs counts, which a busy machine disturbs least. The runs are compared with those of other trees, which take turns:

    git worktree add /tmp/b7eb0f7 b7eb0f7
    python -m benchmarks.startup --against /tmp/b7eb0f7

Ratios of wall time are the answer on an idle machine; where others work too, those of processor time (user and system) are.
``--profile`` instead says in which packages the imports of a run of one step spend their time (``python -X importtime``);
``--doc`` writes that table into docs/sweeps.md.
"""

import argparse
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.pages import DOCS, write_table
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


def imports(tree: Path = HERE) -> dict[str, float]:
    """Seconds by package, most first, that a run of one step spends in its modules themselves, without what they import."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-X", "importtime", *TRAIN, *ONE_STEP, f"run_dir={folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tree, env=environment, check=True)
    seconds: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if found := re.fullmatch(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)\S*", line):
            package = found[2]
            seconds["standard library" if package in sys.stdlib_module_names else package] += (
                int(found[1]) / 1e6
            )
    return dict(seconds.most_common())


def profile_table(profiles: dict[str, dict[str, float]], shown: int = 8) -> str:
    """Packages by tree, most of this tree first."""
    here = profiles["this tree"]
    rest = {
        name: sum(own.values()) - sum(own.get(p, 0.0) for p in list(here)[:shown])
        for name, own in profiles.items()
    }
    rows = [(package, [own.get(package, 0.0) for own in profiles.values()]) for package in list(here)[:shown]]
    rows += [("all others", list(rest.values())), ("all", [sum(own.values()) for own in profiles.values()])]
    lines = [
        f"| seconds of imports in modules of | {' | '.join(profiles)} |",
        "| --- " + "| ---: " * len(profiles) + "|",
    ]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(f'{s:.2f}' for s in row)} |" for name, row in rows)])


def main() -> int:
    """Print the tables; returns 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, nargs="*", default=[], help="working trees of other commits")
    parser.add_argument("--repeats", type=int, default=5, help="of the runs of one step")
    parser.add_argument("--jobs", type=int, default=20, help="of a sweep, 0 for none")
    parser.add_argument("--sweeps", type=int, default=1, help="repeats of the sweep")
    parser.add_argument("--only-runs", action="store_true", help="without the first answers")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    parser.add_argument(
        "--profile", action="store_true", help="where the time of the imports goes, and nothing else"
    )
    parser.add_argument("--doc", action="store_true", help="write that profile into docs/sweeps.md")
    asked = parser.parse_args()
    trees = {**{tree.name: tree.resolve() for tree in asked.against}, "this tree": HERE}
    if asked.profile:
        found = [{name: imports(tree) for name, tree in trees.items()} for _ in range(asked.repeats)]
        profiles = {
            name: min((each[name] for each in found), key=lambda own: sum(own.values())) for name in trees
        }
        print(profile_table(profiles))
        if asked.doc:
            write_table(DOCS / "sweeps.md", "benchmarks.startup", profile_table(profiles))
        return 0
    late = 0 if asked.only_runs else first_answers()
    figures = {"one run": compare_runs(trees, 1, asked.repeats)}
    if asked.jobs:
        figures[f"sweep of {asked.jobs}"] = compare_runs(trees, asked.jobs, asked.sweeps)
    if asked.output is not None:
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        write_json(asked.output, {"processor": processor(), **versions, "seconds": figures})
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
