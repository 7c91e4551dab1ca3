"""Does score embedding help where there is more than one image? 1 to 1,000 images of CIFAR-10, embedding on and off.

``python -m benchmarks.study_embedding_size --data FOLDER [--sizes 1 3 10 100 1000] [--settings own published]
[--seconds 600] [--seeds N] [--work FOLDER] [--json [PATH]]``

A pair of runs is one number of images, one of the two settings (``photo32_ours``: the project's; ``photo32_ours_published``:
those of arXiv 2511.17634) and one seed: the same network, optimiser, noise levels, images and noise, ``embedding`` on or
off, for the same seconds of pre-computation and training. Seed k takes the images from k N to k N + N - 1 of the training
set, so that an interval over seeds is one over images too. Measured, at sigma = 0.506 of [0, 1]:

- *to target*: seconds until the global SSIM of (at most 8 of) the images trained on is 0.99 in two evaluations in a row;
- *trained on*: their PSNR at the end;
- *held out*: PSNR of 64 images of the test set, by ``scoreexp.evaluate``.

Each pair is a comparison (``sweep=embedding_size``) in a folder of its own: what is finished is not run again, and more
seeds or sizes are added by asking for them. Intervals are those of Student's t over the pairs. ``--json`` writes the
result and the table of docs/results.md.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import half_interval
from benchmarks.pages import DOCS, write_table
from benchmarks.study_claims import contribution, time_to
from scoreexp.runs.reporting import find_runs
from scoreexp.system.json_files import write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "embedding_size.json"
WORK = ROOT / "outputs" / "study_embedding_size"
PAGE = DOCS / "results.md"
SEEDS = {1: 5, 3: 5, 10: 5, 100: 3, 1000: 3}
SETTINGS = {"own": "project's", "published": "published"}
TARGET, HELD_OUT = "0.99", 64


def command(
    data: Path,
    size: int,
    seed: int,
    settings: Sequence[str],
    seconds: float,
    folder: Path,
    further: Sequence[str],
) -> list[str]:
    """The comparison of one number of images and one seed."""
    indices = ",".join(str(i) for i in range(seed * size, (seed + 1) * size))
    overrides = [f"data.root={data}", f"data.indices=[{indices}]", *further]
    methods = [f"{name}_{word}" for name in settings for word in ("with", "without")]
    return [
        sys.executable, "-m", "scoreexp.compare", "sweep=embedding_size", f"sweep.seconds={seconds:g}",
        f"sweep.seeds=[{seed}]", f"methods=[{','.join(methods)}]", f"overrides={json.dumps(overrides)}", f"run_dir={folder}",
    ]  # fmt: skip


def measure(
    data: Path,
    sizes: Sequence[int],
    settings: Sequence[str],
    seconds: float,
    seeds: int | None,
    work: Path,
    further: Sequence[str] = (),
) -> dict[str, Any]:
    """All pairs that are asked for, one seed of all sizes after the other; finished runs are only read."""
    rows = []
    for seed in range(max(seeds or SEEDS.get(size, 3) for size in sizes)):
        for size in sizes:
            if seed >= (seeds or SEEDS.get(size, 3)):
                continue
            folder = work / f"{seconds:g}_seconds" / f"{size}_images" / f"seed_{seed}"
            load = os.getloadavg()[0]
            subprocess.run(
                command(data, size, seed, settings, seconds, folder, further), check=True, cwd=ROOT
            )
            _evaluate(folder)
            rows += [row | {"load_average": load} for row in _read(folder, size, seed)]
    return {"machine": {"cpu": processor(), "cores": os.cpu_count()}, "seconds": seconds, "rows": rows}


def _evaluate(folder: Path) -> None:
    """Measure what the runs below a folder do with images that they have not seen."""
    for run in find_runs([folder])[0]:
        if run.state != "done" or run.evaluation:
            continue
        words = [f"ckpt={run.folder / 'checkpoints' / 'last.ckpt'}", "metrics=[psnr,ssim_global]"]
        words += ["+data.validate_on=val", f"+data.num_val={HELD_OUT}"]
        subprocess.run([sys.executable, "-m", "scoreexp.evaluate", *words], check=True, cwd=ROOT)


def _read(folder: Path, size: int, seed: int) -> list[dict[str, Any]]:
    rows = []
    for run in find_runs([folder])[0]:
        if run.state == "done":
            row = {
                "images": size,
                "seed": seed,
                "method": run.method,
                "steps": run.steps,
                "seconds": run.cost,
            }
            row |= {"precompute": run.precompute, "interval": run.config["trainer"]["val_check_interval"]}
            row |= {"reached": {TARGET: time_to(run, float(TARGET), 2)}, "trained_on": run.last("val/psnr")}
            rows.append(row | {"held_out": run.evaluation.get("values", {}).get("psnr")})
    return rows


def difference(rows: Sequence[dict[str, Any]], settings: str, value: str) -> tuple[float, float, int] | None:
    """Mean over seeds of (with - without the embedding), half the 95 % interval of Student's t, and the pairs."""
    by = {(row["method"], row["seed"]): row[value] for row in rows if row[value] is not None}
    seeds = sorted({seed for _, seed in by})
    pairs = [[by.get((f"{settings}_{word}", seed)) for word in ("with", "without")] for seed in seeds]
    found = [a - b for a, b in pairs if a is not None and b is not None]
    if not found:
        return None
    if len(found) == 1:
        return found[0], math.inf, 1
    return statistics.mean(found), half_interval(found), len(found)


def verdict(found: tuple[float, float, int] | None) -> str:
    """In favour of the side on which the whole interval lies, or undecided."""
    if found is None:
        return "not measured"
    mean, half, _ = found
    if mean - half > 0:
        return "helps"
    return "harms" if mean + half < 0 else "undecided"


def table(result: dict[str, Any]) -> str:
    """One line per settings and number of images."""
    rows = result["rows"]
    loads = [row["load_average"] for row in rows]
    lines = [
        f"{result['seconds']:g} s of pre-computation and training a run; {result['machine']['cpu']}, load average "
        f"{min(loads):.0f} to {max(loads):.0f}. Differences are with minus without the embedding, mean over the pairs with "
        "the 95 % interval; the verdict is on held-out images.",
        "",
        "| settings | images | pairs | steps with / without | runs at 0.99 with / without | seconds to 0.99, without / with "
        "| PSNR trained on, dB | PSNR held out, dB | verdict |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- |",
    ]
    for settings, title in SETTINGS.items():
        for size in sorted({row["images"] for row in rows}):
            chosen = [
                row for row in rows if row["images"] == size and row["method"].startswith(f"{settings}_")
            ]
            if not chosen:
                continue
            sides = [
                [row for row in chosen if row["method"] == f"{settings}_{w}"] for w in ("with", "without")
            ]
            steps = " / ".join(f"{statistics.median([row['steps'] for row in s] or [0]):,.0f}" for s in sides)
            hits = " / ".join(f"{sum(bool(row['reached'][TARGET]) for row in s)} of {len(s)}" for s in sides)
            time = contribution(chosen, f"{settings}_with", f"{settings}_without", TARGET, 1)
            seen, held = (difference(chosen, settings, value) for value in ("trained_on", "held_out"))
            lines.append(
                f"| {title} | {size:,} | {seen[2] if seen else 0} | {steps} | {hits} | {time} | {_shown(seen)} | "
                f"{_shown(held)} | {verdict(held)} |"
            )
    return "\n".join(lines)


def _shown(found: tuple[float, float, int] | None) -> str:
    if found is None:
        return "–"
    mean, half, pairs = found
    return f"{mean:+.2f}" + (" (one pair)" if pairs == 1 else f" ± {half:.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds CIFAR-10")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SEEDS), help="numbers of images")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seconds", type=float, default=600.0, help="of a run (default 600)")
    parser.add_argument("--seeds", type=int, help="of each size (default 5 up to 10 images, 3 above)")
    parser.add_argument("--override", nargs="*", default=[], help="further overrides of every run")
    parser.add_argument("--work", type=Path, default=WORK, help=f"the runs (default {WORK})")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="of the table that --json writes too")
    given = parser.parse_args(arguments)
    result = measure(
        given.data.absolute(),
        given.sizes,
        given.settings,
        given.seconds,
        given.seeds,
        given.work.absolute(),
        given.override,
    )
    print(table(result))
    if given.json:
        write_json(given.json, result)
        write_table(given.page, "embedding_size", table(result))


if __name__ == "__main__":
    main()
