"""Throughput of the pre-computation: ``python -m benchmarks.precompute [--before COMMIT] [--cifar10 FOLDER] [--json]``

How many images a second one thread brings to where training can read them: score fields of 1000 crops of the bundled
photographs, 32 x 32 pixels with 3 channels, and the images embedded along them. Three tasks:

* ``until training can read them``: what ``scoreexp.precompute`` does where fields are stored; where they are solved on
  demand nothing is stored, and the row is the whole embedding from nothing, paths in memory, which is more work;
* ``embed, paths in memory`` and ``embed, paths in a file``: the start of a training run, fields stored beforehand where
  the product stores them.

Seconds are of the clock and of the processor (``cpu``), which other jobs on the machine disturb less; memory is the
growth of the peak over the same work on 16 images. Reading the photographs and cutting the crops is not counted.
``--before`` measures another commit in the same run, version by version in turn, and prints the ratios. ``--cifar10``
times the command and the embedding of the 50,000 training images in FOLDER (``cifar-10-batches-bin``).
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "precompute.json"
IMAGES, QUICK, SMALL, SIDE = 1000, 64, 16, 32
# the field per image of the project's own embedding, and the field per channel of arXiv 2404.06661
CASES = {
    "one field per image, 10 times": ["experiment=photo32_ours"],
    "one field per channel, 20 times": [
        "experiment=photo32_ours_ve",
        "embedding.precomputation.solver=spectral",
        "embedding.precomputation.boundary=neumann",
    ],
}
READABLE, MEMORY, FILE = "until training can read them", "embed, paths in memory", "embed, paths in a file"
TORCH = "fokker_planck@embedding.precomputation=spectral_torch"
CROPS = ["data.name=[astronaut,chelsea,coffee,rocket]", "data.crop=random", f"data.size={SIDE}"]


def measure(overrides: list[str], task: str) -> dict[str, float]:
    """Seconds, and the peak of the resident memory in MiB."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from scoreexp.app.commands import precompute as precomputing
    from scoreexp.app.conf_dir import conf_dir

    torch.set_num_threads(1)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides)
    data, embedding = instantiate(cfg.data), instantiate(cfg.embedding)
    data.setup("fit")
    if task == FILE:
        precomputing._HELD_BYTES = 0
    stores = not getattr(embedding, "on_demand", False)
    start, cpu = time.perf_counter(), time.process_time()
    if task == READABLE and stores:
        precomputing.precompute(cfg)
    else:
        precomputing.embed_training_images(data, embedding, 0, None)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "cpu": cpu, "mib": peak}


def measure_apart(tree: Path, overrides: list[str], task: str) -> dict[str, float]:
    """``measure`` with the package of ``tree`` in a fresh process of one thread."""
    # the tree's own package, but the benchmarks of this one
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / "src"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "benchmarks.precompute", "--measure", json.dumps([overrides, task])]
    answer = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    print(tree.name, task, measured, file=sys.stderr, flush=True)
    return measured


def measured_once(tree: Path, case: list[str], images: int) -> dict[str, dict[str, float]]:
    """By task: the seconds for ``images``, and the growth of memory over few."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for task in (READABLE, MEMORY, FILE):
            many, few = (
                measure_apart(
                    tree, [*case, *CROPS, f"data.crops={-(-n // 4)}", f"embedding.cache={folder}/{n}"], task
                )
                for n in (images, SMALL)
            )
            files = sum(path.stat().st_size for path in Path(folder, str(images)).rglob("*.npz"))
            rows[task] = {
                "images_per_second": images / many["seconds"],
                "images_per_cpu_second": images / many["cpu"],
                "growth_mib": many["mib"] - few["mib"],
                "kib_on_disk_per_image": files / images / 1024,
            }
    return rows


def cifar10(folder: str) -> dict[str, float]:
    """Seconds of the whole command, and of the embedding with its paths in a file, for the 50,000 training images."""
    overrides = ["experiment=photo32_ours", "data=cifar10", f"data.root={folder}", "data.augment=false"]
    overrides += ["data.batch_size=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as cache:
        overrides += [f"embedding.cache={cache}", f"data.cache={cache}/data"]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "scoreexp.precompute", *overrides], env=environment, check=True)
        seconds = time.perf_counter() - start
        embedded = measure_apart(ROOT, overrides, FILE)
    return {
        "images": 50_000,
        "command_seconds": seconds,
        "embed_seconds": embedded["seconds"],
        "embed_cpu_seconds": embedded["cpu"],
        "embed_peak_mib": embedded["mib"],
    }


def run(images: int, rounds: int, before: str | None) -> dict[str, Any]:
    """All measurements; the median over the rounds."""
    import torch

    from benchmarks.fokker_planck import describe_machine

    cases = dict(CASES)
    if torch.cuda.is_available():
        cases["one field per image, 10 times, CUDA"] = [*CASES["one field per image, 10 times"], TORCH]
    trees = {"now": ROOT}
    measured: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as other:
        if before is not None:
            git = ["git", "-C", str(ROOT)]
            subprocess.run([*git, "worktree", "add", "--detach", f"{other}/tree", before], check=True)
            trees = {"before": Path(other, "tree"), **trees}
        try:
            for _ in range(rounds):
                for case, overrides in cases.items():
                    for version, tree in trees.items():
                        for task, row in measured_once(tree, overrides, images).items():
                            measured.setdefault((case, task, version), []).append(row)
        finally:
            if before is not None:
                shutil.rmtree(trees["before"])
                subprocess.run([*git, "worktree", "prune"], check=True)
    rows = []
    for (case, task, version), found in measured.items():
        medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
        rows.append({"case": case, "task": task, "version": version, "images": images, **medians})
        if version == "now" and before is not None:
            old = next(r for r in rows if (r["case"], r["task"], r["version"]) == (case, task, "before"))
            for rate in ("images_per_second", "images_per_cpu_second"):
                rows[-1][f"ratio_{rate}"] = medians[rate] / old[rate]
        print(json.dumps(rows[-1]), flush=True)
    return {
        "machine": describe_machine(),
        "load": os.getloadavg()[0],
        "before": before,
        "rounds": rounds,
        "side": SIDE,
        "channels": 3,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| fields | work | version | images/s | per processor second | memory beyond few images' | on disk per image |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        version = "now" if row["version"] == "now" else result["before"]
        cells = [row["case"], row["task"], version]
        for rate in ("images_per_second", "images_per_cpu_second"):
            ratio = row.get(f"ratio_{rate}")
            cells.append(f"{row[rate]:,.0f}" + ("" if ratio is None else f" ({ratio:.1f} x)"))
        cells += [f"{row['growth_mib']:.0f} MiB", f"{row['kib_on_disk_per_image']:.0f} KiB"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} images, as a smoke test")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"how many (default {IMAGES})")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (default 3)")
    parser.add_argument("--before", metavar="COMMIT", help="measure this commit as well, in turn")
    parser.add_argument(
        "--cifar10", metavar="FOLDER", help="also the 50,000 images of CIFAR-10 in this folder"
    )
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument("--doc", action="store_true", help="put the stored result into docs/solvers.md")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(*json.loads(arguments.measure))), flush=True)
        return
    if arguments.doc:
        # not at the top: another version of the package may lack what it imports
        from benchmarks.pages import DOCS, write_table

        write_table(DOCS / "solvers.md", "benchmarks.precompute", table(json.loads(RESULT.read_text())))
        return
    result = run(QUICK if arguments.quick else arguments.images, arguments.rounds, arguments.before)
    if arguments.cifar10 is not None:
        result["cifar10"] = cifar10(arguments.cifar10)
        print(json.dumps(result["cifar10"]), flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
