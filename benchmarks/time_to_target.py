"""Seconds until a photograph is denoised to the target, with and without score embedding.

``python -m benchmarks.time_to_target [--seeds 0 1 2] [--threads 2] [--json [PATH]] [--doc]``

Each run is ``python -m scoreexp.train experiment=photo32_ours seed=S embedding=E embedding.cache=null`` in a process of
its own, with and without the embedding in turn: the same network, optimiser, noise levels, seed, metric and sampler.
Time to target is pre-computation and training; evaluation is given beside it. On a machine that other jobs share,
seconds say little: CPU seconds, steps and the load average are recorded too. ``--doc`` writes the table and the figure of
an existing result into docs/score_embedding.md.
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
import time
from pathlib import Path
from typing import Any

from benchmarks.pages import STYLE, shrink, write_table
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "time_to_target.json"
PAGE = ROOT / "docs" / "score_embedding.md"
FIGURE = ROOT / "docs" / "figures" / "time_to_target.png"
EMBEDDINGS = ("spectral", "none")
AFTER = ("train", "evaluate")


def run(embedding: str, seed: int, threads: int, experiment: str) -> dict[str, Any]:
    """One training run."""
    arguments = [f"experiment={experiment}", f"seed={seed}", f"embedding={embedding}"]
    arguments += ["embedding.cache=null"] if embedding != "none" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scoreexp.train", *arguments, f"run_dir={folder}/run"]
        before, load, start = (
            resource.getrusage(resource.RUSAGE_CHILDREN),
            os.getloadavg(),
            time.perf_counter(),
        )
        subprocess.run(
            command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )  # fmt: skip
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads(Path(folder, "run", "metrics.json").read_text())
        with Path(folder, "run", "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val/ssim_global"]]
    seconds = result["seconds"]
    return {
        "embedding": embedding,
        "seed": seed,
        "reached": "reached the target" in result["status"],
        "steps": result["step"],
        "ssim_global_confirmed": result["metrics"]["val/ssim_global_confirmed"],
        "seconds": seconds,
        "time_to_target": sum(value for stage, value in seconds.items() if stage != "evaluate"),
        "wall_seconds_of_the_process": wall,
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


def measure(seeds: list[int], threads: int, experiment: str) -> dict[str, Any]:
    """All runs, with and without embedding in turn."""
    rows = []
    for seed in seeds:
        for embedding in EMBEDDINGS:
            rows.append(run(embedding, seed, threads, experiment))
            print(line(rows[-1]), flush=True)
    return {
        "experiment": experiment,
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": threads},
        "rows": rows,
        "median": {
            name: {
                "time_to_target": statistics.median(
                    r["time_to_target"] for r in rows if r["embedding"] == name
                ),
                "steps": statistics.median(r["steps"] for r in rows if r["embedding"] == name),
            }
            for name in EMBEDDINGS
        },
    }


def line(row: dict[str, Any]) -> str:
    """One run as text."""
    stages = ", ".join(f"{stage} {value:.2f}" for stage, value in row["seconds"].items())
    return (
        f"{row['embedding']:9} seed {row['seed']}: {'reached' if row['reached'] else 'NOT reached'} after "
        f"{row['steps']} steps, {row['time_to_target']:.1f} s ({stages}); CPU {row['cpu_seconds_of_the_process']:.0f} s, "
        f"load {row['load_average_before']:.1f}"
    )


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    machine = result["machine"]
    lines = [
        f"`{result['experiment']}`, {machine['threads']} threads of {machine['cores']} cores, {machine['cpu']}. Seconds; "
        "target: global SSIM 0.99 twice in a row.",
        "",
        "| embedding | seed | target | steps | pre-computation | training | **to target** | evaluation "
        "| CPU (whole process) | load before |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda r: (EMBEDDINGS.index(r["embedding"]), r["seed"])):
        before = sum(value for stage, value in row["seconds"].items() if stage not in AFTER)
        lines.append(
            f"| {row['embedding']} | {row['seed']} | {'confirmed' if row['reached'] else 'not reached'} | {row['steps']} "
            f"| {before:.2f} | {row['seconds']['train']:.1f} | **{row['time_to_target']:.1f}** "
            f"| {row['seconds']['evaluate']:.1f} | {row['cpu_seconds_of_the_process']:.0f} "
            f"| {row['load_average_before']:.1f} |"
        )
    for name, median in result["median"].items():
        lines.append(
            f"| {name} | median | | {median['steps']:.0f} | | | **{median['time_to_target']:.1f}** | | | |"
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
    for row in result["rows"]:
        steps, values = zip(*((point["step"], point["ssim_global"]) for point in row["curve"]))
        first = row["seed"] == result["rows"][0]["seed"]
        colour = f"C{EMBEDDINGS.index(row['embedding'])}"
        label = f"embedding={row['embedding']}" if first else None
        axis.plot(steps, values, color=colour, marker=".", ms=3, lw=1, label=label)
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
    parser.add_argument("--experiment", default="photo32_ours")
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
    result = measure(arguments.seeds, arguments.threads, arguments.experiment)
    print(table(result))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
