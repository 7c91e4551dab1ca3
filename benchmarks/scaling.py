"""Memory, throughput and cost of large runs: ``python -m benchmarks.scaling [--only PART ...] [--json [PATH]] [--doc]``

* ``processes``: images/s of ``photo32_ddpm`` with one and with two processes (DDP over gloo, one thread each), the same
  global batch, in turn.
* ``memory``: bytes of a step, ``20 P + B a + c``: 4 bytes each for P weights, gradients, two moments and average; a bytes
  of activations per image of the batch B and c once (casts of the weights), both counted by ``benchmarks.network_cost``.
* ``precompute``: CPU seconds per image of every solver on a few 64 x 64 crops, one thread, and bytes on disk.
* ``experiments``: hours on 1, 8 and 64 GPUs from the counted FLOPs of ``benchmarks/results/network_cost.json``, and the
  time that the gradients take on the interconnect. Nothing is measured on a GPU.

Parts that are not named keep their stored result; ``--doc`` writes the tables of docs/scaling.md and measures nothing.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fokker_planck import PHOTOGRAPHS, describe_machine
from benchmarks.pages import DOCS, write_table

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "scaling.json"
COSTS = ROOT / "benchmarks" / "results" / "network_cost.json"
PAGE = DOCS / "scaling.md"
GB = 1e9
CARDS = (8, 16, 24, 80)  # GB
USABLE = 0.9  # of a card, after fragmentation and buffers
RESERVED = 1.0  # GB of a card for the CUDA context and the workspaces of convolutions
NETWORKS = ("unet_1m", "unet_9m", "unet_35m")
EXPERIMENTS = (
    "photo32_ddpm",
    "photo32_ours_published",
    "celeba64_ours",
    "celeba64_ours_ve",
    "cifar10_ours_ve",
    "cifar10_ddpmpp",
)
PUBLISHED = (
    "photo32_ours_published", "celeba64_ours", "celeba128_ours", "celeba64_ours_ve", "cifar10_ours", "cifar10_ours_ve",
    "cifar10_ddpmpp", "mnist_ddpm", "ffhq256_ncsnpp",
)  # fmt: skip
SETS = {"CelebA": 202_599, "ImageNet-64": 1_281_167}
SIDE = 64
# name: (embedding, overrides of its precomputation); images are few for the slow ones
SOLVERS = {
    "spectral, 10 times": ("spectral", {}, 16),
    "factorised, 10 steps": ("spectral", {"solver": "factorised"}, 16),
    "direct, 10 of 100 steps (arXiv 2511.17634)": ("published", {"initial_density": "smoothed"}, 2),
    "bicgstab, the same": ("published", {"initial_density": "smoothed", "solver": "bicgstab"}, 8),
    "gmres, the same": ("published", {"initial_density": "smoothed", "solver": "gmres"}, 8),
    "krylov_projection, the same": (
        "published",
        {"initial_density": "smoothed", "solver": "krylov_projection"},
        8,
    ),
    "direct, 10 steps per channel (arXiv 2404.06661)": ("published_ve_celeba", {}, 2),
}
CORES = 64
# per GPU and direction: NVLink 3 inside of a machine of 8; one InfiniBand HDR (200 Gbit/s) per GPU between machines
LINKS = {8: 300e9, 64: 25e9}


def processes(steps: int) -> dict[str, Any]:
    """Images/s with one and two processes, the median over the logged intervals after the first ones."""
    rows = []
    for turn in range(2):
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                arguments = [
                    "experiment=photo32_ddpm", "trainer=ddp" if count > 1 else "trainer=cpu", f"trainer.devices={count}",
                    "trainer.accelerator=cpu", f"trainer.max_steps={steps}", "trainer.val_check_interval=1000",
                    "trainer.log_every_n_steps=2", f"run_dir={folder}/run", "data.num_val=1",
                ]  # fmt: skip
                subprocess.run(
                    [sys.executable, "-m", "scoreexp.train", *arguments],
                    cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                )  # fmt: skip
                with Path(folder, "run", "metrics.csv").open(newline="") as file:
                    points = [
                        (int(r["step"]), float(r["time/train"]))
                        for r in csv.DictReader(file)
                        if r["train/loss"]
                    ]
            rates = [16 * (b[0] - a[0]) / (b[1] - a[1]) for a, b in itertools.pairwise(points[2:-1])]
            rows.append({"processes": count, "turn": turn, "images_per_second": statistics.median(rates)})
            print(rows[-1], flush=True)
    return {
        "batch": 16,
        "rows": rows,
        "load_average": os.getloadavg()[0],
        "speed_up": statistics.median(r["images_per_second"] for r in rows if r["processes"] == 2)
        / statistics.median(r["images_per_second"] for r in rows if r["processes"] == 1),
    }


def memory() -> list[dict[str, Any]]:
    """Bytes of every network and experiment, and the batch that fits on cards."""
    from hydra.utils import instantiate

    from benchmarks.network_cost import composed, cost

    rows = []
    for name in (*NETWORKS, *EXPERIMENTS):
        if name in NETWORKS:
            config, shape, classes = composed(f"network={name}").network, (3, 32, 32), None
        else:
            cfg = composed(f"experiment={name}")
            data = instantiate(cfg.data)
            config, shape, classes = cfg.network, data.event_shape, data.num_classes
        for precision in ("32-true", "bf16-mixed"):
            c = cost(config, shape, classes, precision)
            state = 20 * c.parameters
            room = {gb: USABLE * gb * GB - RESERVED * GB - state - c.constant_bytes for gb in CARDS}
            rows.append(
                {
                    "name": name,
                    "event_shape": list(shape),
                    "precision": precision,
                    "parameters": c.parameters,
                    "state_mb": state / 1e6,
                    "activation_mb_per_image": c.activation_bytes / 1e6,
                    "constant_mb": c.constant_bytes / 1e6,
                    "batch": {str(gb): max(0, int(free / c.activation_bytes)) for gb, free in room.items()},
                }
            )
            print(rows[-1], flush=True)
    return rows


def crops(count: int) -> np.ndarray:
    """Random crops [count, 64, 64, 3] of the bundled photographs, in [0, 1]."""
    from skimage import data
    from skimage.transform import resize

    rng = np.random.default_rng(0)
    images = []
    for k in range(count):
        photograph = getattr(data, PHOTOGRAPHS[k % len(PHOTOGRAPHS)])() / 255.0
        side = int(rng.integers(128, min(photograph.shape[:2]) + 1))
        row, column = (int(rng.integers(0, n - side + 1)) for n in photograph.shape[:2])
        images.append(
            resize(photograph[row : row + side, column : column + side], (SIDE, SIDE), anti_aliasing=True)
        )
    return np.clip(np.stack(images), 0, 1)


def precompute() -> list[dict[str, Any]]:
    """CPU seconds and bytes per image of each solver."""
    import torch
    from hydra.utils import instantiate

    from benchmarks.network_cost import composed

    torch.set_num_threads(1)
    rows = []
    for name, (embedding, changes, count) in SOLVERS.items():
        overrides = [f"embedding.precomputation.{key}={value}" for key, value in changes.items()]
        images = crops(count)
        made = instantiate(
            composed("experiment=photo32_ours", f"embedding={embedding}", *overrides).embedding
        )
        start = time.process_time()
        field = made.precomputation(images, keep=made.kept, dtype=np.float32)
        seconds = (time.process_time() - start) / count
        stored = (field.log_p.nbytes + field.score.nbytes) / count
        rows.append(
            {"solver": name, "images": count, "seconds_per_image": seconds, "bytes_per_image": stored}
        )
        print(rows[-1], flush=True)
    return rows


def experiments() -> list[dict[str, Any]]:
    """Hours and communication of the published recipes."""
    costs = json.loads(COSTS.read_text())
    rows = []
    for cost in costs["experiments"]:
        if cost["experiment"] not in PUBLISHED:
            continue
        rate = costs["assumed_share_of_peak"] * costs["peak_flop_per_s"][cost["precision"]]
        batch, gradient = cost["batch"], 4 * cost["parameters"]
        total = 1e15 * (cost["training_pflop"] + cost["evaluation_pflop"])
        row: dict[str, Any] = {
            "experiment": cost["experiment"],
            "batch": batch,
            "steps": cost["steps"],
            "precision": cost["precision"],
            "pflop": total / 1e15,
            "gradient_mb": gradient / 1e6,
            "hours": {"1": total / rate / 3600},
            "step_ms": {"1": 1e3 * batch * cost["training_gflop_per_image"] * 1e9 / rate},
            "communication_ms": {},
        }
        for gpus, link in LINKS.items():
            if batch % gpus:
                continue
            compute = row["step_ms"]["1"] / gpus
            transfer = 1e3 * 2 * (gpus - 1) / gpus * gradient / link
            longest = max(compute, transfer)
            row["step_ms"][str(gpus)], row["communication_ms"][str(gpus)] = compute, transfer
            row["hours"][str(gpus)] = (
                cost["steps"] * longest / 3.6e6 + 1e15 * cost["evaluation_pflop"] / rate / gpus / 3600
            )
        rows.append(row)
    return rows


PARTS = {
    "processes": lambda: processes(24),
    "memory": memory,
    "precompute": precompute,
    "experiments": experiments,
}


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Markdown by part."""
    written = {}
    if "processes" in result:
        part = result["processes"]
        lines = ["| processes x threads | global batch | images/s (turns) |", "| --- | ---: | ---: |"]
        for count in (1, 2):
            rates = ", ".join(
                f"{r['images_per_second']:.1f}" for r in part["rows"] if r["processes"] == count
            )
            lines.append(f"| {count} x 1 | {part['batch']} | {rates} |")
        lines += [
            "",
            f"Two processes: {part['speed_up']:.2f} times one; load average {part['load_average']:.1f} on 2 cores.",
        ]
        written["processes"] = "\n".join(lines)
    if "memory" in result:
        lines = [
            "| network or experiment | image | precision | P, millions | 20 P, MB | a, MB/image | c, MB | "
            + " | ".join(f"{gb} GB" for gb in CARDS)
            + " |",
            "| --- | --- | --- |" + " ---: |" * (4 + len(CARDS)),
        ]
        for r in result["memory"]:
            fits = " | ".join(f"{r['batch'][str(gb)]:,}" for gb in CARDS)
            lines.append(
                f"| `{r['name']}` | {'x'.join(map(str, r['event_shape']))} | {r['precision']} | {r['parameters'] / 1e6:.2f} "
                f"| {r['state_mb']:.0f} | {r['activation_mb_per_image']:.2f} | {r['constant_mb']:.1f} | {fits} |"
            )
        written["memory"] = "\n".join(lines)
    if "precompute" in result:
        heads = " | ".join(f"{name}: core hours | on {CORES} cores | GB on disk" for name in SETS)
        lines = [f"| solver | s/image | {heads} |", "| --- |" + " ---: |" * (1 + 3 * len(SETS))]
        for r in result["precompute"]:
            cells = []
            for count in SETS.values():
                hours = r["seconds_per_image"] * count / 3600
                shared = f"{60 * hours / CORES:.1f} min" if hours < CORES else f"{hours / CORES:.1f} h"
                cells += [f"{hours:,.1f}", shared, f"{r['bytes_per_image'] * count / GB:,.0f}"]
            lines.append(f"| {r['solver']} | {r['seconds_per_image']:.3g} | " + " | ".join(cells) + " |")
        written["precompute"] = "\n".join(lines)
    if "experiments" in result:
        lines = [
            "| experiment | batch | steps | precision | PFLOP | hours on 1, 8, 64 GPUs | ms/step of compute on 1, 8, 64 "
            "| gradient, MB | ms/step of communication on 8, 64 |",
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for r in result["experiments"]:
            hours, steps = (
                ", ".join(f"{r[key][n]:.2g}" if n in r[key] else "–" for n in ("1", "8", "64"))
                for key in ("hours", "step_ms")
            )
            sent = ", ".join(
                f"{r['communication_ms'][n]:.2g}" if n in r["communication_ms"] else "–" for n in ("8", "64")
            )
            lines.append(
                f"| `{r['experiment']}` | {r['batch']} | {r['steps']:,} | {r['precision']} | {r['pflop']:.3g} | {hours} "
                f"| {steps} | {r['gradient_mb']:.0f} | {sent} |"
            )
        written["experiments"] = "\n".join(lines)
    return written


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument("--doc", action="store_true", help="tables of the stored result; measure nothing")
    options = parser.parse_args()
    path = options.json or RESULT
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not options.doc:
        result["machine"] = describe_machine()
        for part in options.only:
            result[part] = PARTS[part]()
            if options.json:  # after each part, so that what was measured is not lost
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=2) + "\n")
    for part, table in tables(result).items():
        if options.doc:
            write_table(PAGE, f"benchmarks.scaling {part}", table)
        else:
            print(f"\n{table}")


if __name__ == "__main__":
    main()
