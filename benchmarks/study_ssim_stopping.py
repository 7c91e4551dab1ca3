"""Does early stopping on SSIM stop where the error on the population is least?
``python -m benchmarks.study_ssim_stopping --root FOLDER [--data mnist cifar10] [--sizes 100 1000 10000] [--json [PATH]]``

One network for each data set, size and seed is trained past its best and evaluated at spaced steps: SSIM of denoised
held-out images, SSIM of denoised training images (what single-image experiments can measure), and the bits per dimension of
held-out images, which differ from the population error of the score by a constant (``diagnostics.likelihood_levels``). The
steps of the best of each are compared. Noise is the same at each evaluation; the error of a difference of two evaluations is
therefore that of paired samples.

A cell is a data set, a size and a seed. Those that the file of results holds are not run again; ``--table`` writes the table
of docs/diagnostics.md.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoreexp as se
from benchmarks.cells import add_cell_options, cells_of
from benchmarks.small_images import (
    DATA,
    Images,
    add_model_options,
    make_model,
    objective_of,
    read_images,
    train,
)
from scoreexp.core.ranges import to_unit
from scoreexp.diagnostics.fields import denoised, noisy
from scoreexp.diagnostics.likelihood_levels import likelihood_by_level
from scoreexp.diagnostics.stopping import compare_stopping
from scoreexp.lit.callbacks.population import EDGES
from scoreexp.metrics import ssim

RESULT = Path(__file__).parent / "results" / "ssim_stopping.json"
TABLE = "benchmarks.study_ssim_stopping"
SIGMA = 1.0  # of the noise in [-1, 1]: 0.5 in [0, 1], as in the default callbacks


@torch.no_grad()
def ssim_of(model: se.denoisers.Denoiser, x: Tensor) -> float:
    """Mean SSIM of the posterior mean of noisy images."""
    restored = torch.cat([denoised(model, part, SIGMA) for part in noisy(x, SIGMA, 0).split(64)])
    return float(ssim(to_unit(restored).clamp(0, 1), to_unit(x)).mean())


def cell(images: Images, size: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The curves of one run, and the steps of their best values."""
    x, held_out = images.train[:size], images.held_out[: options.n]
    model = make_model(tuple(x.shape[1:]), options, seed)
    spaced = (
        torch.logspace(1, math.log10(options.steps), options.evaluations).round().long().unique().tolist()
    )
    rows, began = [], time.process_time()
    for step in train(
        model,
        x,
        objective_of(options.target, size),
        steps=options.steps,
        batch=options.batch,
        lr=options.lr,
        seed=seed,
        decay=False,
    ):
        if step in spaced:
            bits = likelihood_by_level(model, held_out, EDGES, batch=64).total
            seen = ssim_of(model, x[: options.n])
            rows.append(
                {"step": step, "bits": bits.value, "ssim": ssim_of(model, held_out), "ssim_training": seen}
            )
    steps, bits = [row["step"] for row in rows], [row["bits"] for row in rows]
    found = {
        name: compare_stopping(steps, [row[name] for row in rows], bits) for name in ("ssim", "ssim_training")
    }
    return {
        "images": size,
        "least error at step": found["ssim"].least,
        "best SSIM of held-out images at step": found["ssim"].stopped,
        "its excess in bits per dimension": found["ssim"].excess,
        "best SSIM of training images at step": found["ssim_training"].stopped,
        "excess of that": found["ssim_training"].excess,
        "excess of the last step": bits[-1] - min(bits),
        "curve": rows,
        "processor seconds": round(time.process_time() - began, 1),
    }


def table(rows: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| data | images | seed | least population error at step | best SSIM, held out | costs, bits/dim | best SSIM, "
        "training images | costs | last step costs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in sorted(rows.items(), key=lambda item: (item[0].split()[0], item[1]["images"], item[0])):
        data, _, seed = name.split(" ")
        lines.append(
            f"| {data} | {row['images']:,} | {seed} | {row['least error at step']:,} | "
            f"{row['best SSIM of held-out images at step']:,} | {row['its excess in bits per dimension']:.3f} | "
            f"{row['best SSIM of training images at step']:,} | {row['excess of that']:.3f} | "
            f"{row['excess of the last step']:.3f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_cell_options(parser, RESULT, "diagnostics.md")
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=["mnist", "cifar10"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target", choices=("plain", "stable"), default="plain")
    add_model_options(parser)
    parser.add_argument("--evaluations", type=int, default=40, help="at steps spaced by equal factors")
    parser.add_argument("--n", type=int, default=512, help="held-out images")
    options = parser.parse_args(arguments)
    cells = cells_of(parser, options, ("data", "sizes", "seeds"), ("diagnostics.md", TABLE, table))
    if cells is None:
        return
    for data in options.data:
        images = read_images(data, options.root, options.pool)
        for size in options.sizes:
            for seed in options.seeds:
                key = f"{data} {size} {seed}"
                cells.measured(key, partial(cell, images, size, seed, options))


if __name__ == "__main__":
    main()
