"""Seconds until a photograph is denoised to the target: with and without score embedding, and by DDPM.

``python -m benchmarks.time_to_target [--seeds 0 1 2] [--threads 2] [--against TREE] [--json [PATH]] [--doc]``

Each run is ``python -m scoreexp.train`` with ``experiment=photo32_ours``, the same with ``embedding=none``, or
``experiment=photo32_ddpm_tuned``, in a process of its own, one after the other. The first two have the same network,
optimiser, noise levels, seed, metric and sampler. Time to target is pre-computation and training; evaluation is given
beside it. ``--against`` runs the package of another tree in turn with this one: the ratio of the times is the answer, since
both share whatever else the machine does. CPU seconds, steps and the load average are recorded too. ``--doc`` writes the
table and the figure of an existing result into docs/score_embedding.md.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pages import STYLE, shrink, write_table
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "time_to_target.json"
PAGE = ROOT / "docs" / "score_embedding.md"
FIGURE = ROOT / "docs" / "figures" / "time_to_target.png"
METHODS = {
    "spectral": ("experiment=photo32_ours", "embedding.cache=null"),
    "none": ("experiment=photo32_ours", "embedding=none"),
    "DDPM tuned": ("experiment=photo32_ddpm_tuned",),
}
AFTER = ("train", "evaluate")
NOW = "now"


def run(method: str, seed: int, threads: int, version: str, tree: Path) -> dict[str, Any]:
    """One training run with the package of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*METHODS[method], f"seed={seed}", f"run_dir={folder}/run"]
        before, load = resource.getrusage(resource.RUSAGE_CHILDREN), os.getloadavg()
        threading = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        subprocess.run(
            [sys.executable, "-m", "scoreexp.train", *overrides], check=True, cwd=tree, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, **threading, "PYTHONPATH": str(tree / "src")},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads(Path(folder, "run", "metrics.json").read_text())
        with Path(folder, "run", "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val/ssim_global"]]
    seconds = result["seconds"]
    return {
        "version": version,
        "method": method,
        "seed": seed,
        "reached": "reached the target" in result["status"],
        "steps": result["step"],
        "ssim_global_confirmed": result["metrics"]["val/ssim_global_confirmed"],
        "seconds": seconds,
        "time_to_target": sum(value for stage, value in seconds.items() if stage != "evaluate"),
        "cpu_seconds_of_the_process": sum(
            getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime")
        ),
        "load_average_before": load[0],
        "load_average_after": os.getloadavg()[0],
        "curve": [
            {
                "step": int(row["step"]),
                "seconds": float(row["time/total"]) - float(row["time/evaluate"]),
                "ssim_global": float(row["val/ssim_global"]),
            }
            for row in rows
        ],
    }


def measure(seeds: list[int], threads: int, against: Path | None) -> dict[str, Any]:
    """All runs: of a method and a seed, the versions in turn."""
    trees = {NOW: ROOT}
    if against is not None:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=against, check=True, capture_output=True, text=True
        )
        trees = {commit.stdout.strip(): against, **trees}
    rows = []
    for seed in seeds:
        for method in METHODS:
            for version, tree in trees.items():
                rows.append(run(method, seed, threads, version, tree))
                print(line(rows[-1]), flush=True)
    return {
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": threads},
        "versions": list(trees),
        "rows": rows,
    }


def median(result: dict[str, Any], version: str, method: str, value: str) -> float:
    """Of a value, over the seeds."""
    rows = [row for row in result["rows"] if (row["version"], row["method"]) == (version, method)]
    return statistics.median(row[value] for row in rows)


def line(row: dict[str, Any]) -> str:
    """One run as text."""
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in row["seconds"].items())
    return (
        f"{row['version']:8} {row['method']:10} seed {row['seed']}: {'reached' if row['reached'] else 'NOT reached'} after "
        f"{row['steps']} steps, {row['time_to_target']:.1f} s ({stages}); CPU {row['cpu_seconds_of_the_process']:.0f} s, "
        f"load {row['load_average_before']:.1f}"
    )


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: every run, and the medians."""
    machine = result["machine"]
    lines = [
        f"{machine['threads']} of {machine['cores']} cores, {machine['cpu']}. Seconds; target: global SSIM 0.99 "
        "twice in a row.",
        "",
        "| version | method | seed | target | steps | pre-computation | training | **to target** | evaluation "
        "| CPU (whole process) | load before |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    versions, order = result["versions"], list(METHODS)
    for row in sorted(
        result["rows"], key=lambda r: (versions.index(r["version"]), order.index(r["method"]), r["seed"])
    ):
        before = sum(value for stage, value in row["seconds"].items() if stage not in AFTER)
        lines.append(
            f"| {row['version']} | {row['method']} | {row['seed']} | {'confirmed' if row['reached'] else 'not reached'} "
            f"| {row['steps']} | {before:.2f} | {row['seconds']['train']:.1f} | **{row['time_to_target']:.1f}** "
            f"| {row['seconds']['evaluate']:.1f} | {row['cpu_seconds_of_the_process']:.0f} "
            f"| {row['load_average_before']:.1f} |"
        )
    earlier = [version for version in versions if version != NOW]
    compared = "".join(f" {version} | ratio |" for version in earlier)
    lines += [
        "",
        f"| median | steps | seconds to target |{compared}",
        f"| --- | --- | --- |{'---|---|' * len(earlier)}",
    ]
    for method in METHODS:
        now = median(result, NOW, method, "time_to_target")
        then = [median(result, version, method, "time_to_target") for version in earlier]
        lines.append(
            f"| {method} | {median(result, NOW, method, 'steps'):.0f} | **{now:.1f}** |"
            + "".join(f" {value:.1f} | {now / value:.2f} |" for value in then)
        )
    return "\n".join(lines)


def write_doc(result: dict[str, Any]) -> None:
    """Put the table between its markers in the page, and draw the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    write_table(PAGE, "time_to_target", table(result))
    plt.rcParams.update(STYLE)
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for row in [row for row in result["rows"] if row["version"] == NOW]:
        steps, values = zip(*((point["step"], point["ssim_global"]) for point in row["curve"]))
        first = row["seed"] == result["rows"][0]["seed"]
        colour = f"C{list(METHODS).index(row['method'])}"
        label = row["method"] if first else None
        axis.plot(steps, values, color=colour, ls="-", marker=".", ms=3, lw=1, label=label)
    axis.axhline(0.99, color="gray", lw=0.8, ls="--", label="target 0.99")
    axis.set(xlabel="step", ylabel="global SSIM of the denoised photograph")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=90)
    plt.close(figure)
    shrink(FIGURE)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against", type=Path, metavar="TREE", help="a worktree of another commit")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument(
        "--doc", action="store_true", help="put the stored result into the page; measure nothing"
    )
    arguments = parser.parse_args()
    if arguments.doc:
        write_doc(json.loads(RESULT.read_text()))
        return
    result = measure(arguments.seeds, arguments.threads, arguments.against)
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
