"""At which size of the training set do models of two halves agree, and what do samples copy?
``python -m benchmarks.study_memorisation --root FOLDER [--data mnist cifar10] [--sizes 100 1000 10000 all] [--json [PATH]]``

For each data set, size ``n`` and target (plain, or stable), two networks are trained on disjoint sets of ``n`` images
from the same first weights. On held-out images: how far the two denoisers are apart relative to their error
(``diagnostics.agreement``), and the error on training images over that on held-out ones. Of samples of the first: the share
of copies (three times nearer to one training image than to the next) and the distance to the nearest training image
relative to that of held-out images. ``all`` is half of the data for each network.

A cell is a data set, a size and a target. Those that the file of results holds with the same settings are not run again, so
an interrupted study goes on where it was; ``--table`` writes the table of docs/diagnostics.md.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import scoreexp as se
from benchmarks.cells import add_cell_options, cells_of
from benchmarks.small_images import (
    DATA,
    TARGETS,
    Images,
    add_model_options,
    make_model,
    objective_of,
    read_images,
    train,
)
from scoreexp.core.tensors import sum_per_sample
from scoreexp.diagnostics.agreement import split_half_disagreement
from scoreexp.diagnostics.estimates import Estimate, mean_of
from scoreexp.diagnostics.fields import denoised, noisy
from scoreexp.metrics.distribution import memorisation
from scoreexp.samplers import Heun, KarrasGrid, draw

RESULT = Path(__file__).parent / "results" / "memorisation.json"
TABLE = "benchmarks.study_memorisation"
LEVELS = (0.2, 0.5, 1.0)


def cell(images: Images, size: int, target: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train the two networks of a cell and measure them."""
    halves = images.train[:size], images.train[size : 2 * size]
    models, began = [], time.process_time()
    for half in halves:
        model = make_model(tuple(half.shape[1:]), options, options.seed)
        objective = objective_of(target, size)
        for _ in train(
            model, half, objective, steps=options.steps, batch=options.batch, lr=options.lr, seed=options.seed
        ):
            pass
        models.append(model)
    seconds = time.process_time() - began
    held_out = images.held_out[: options.n]
    apart = {r: split_half_disagreement(models[0], models[1], held_out, r) for r in LEVELS}
    sampler = Heun(KarrasGrid(options.sampler_steps))
    drawn = torch.cat(
        [draw(models[0], sampler, part.tolist()).x for part in torch.arange(options.samples).split(64)]
    )
    copies = memorisation(
        drawn.flatten(1), halves[0].flatten(1), images.held_out[: max(options.n, 100)].flatten(1)
    )
    assert copies.relative is not None
    return {
        "images": size,
        "disagreement": {f"{r:g}": e._asdict() for r, e in apart.items()},
        "training over held-out error, level 0.5": training_over_held_out(models[0], halves[0], held_out),
        "share of copies": mean_of((copies.ratio < 1 / 3).double())._asdict(),
        "relative distance": mean_of(copies.relative)._asdict(),
        "samples": len(drawn),
        "processor seconds of training": round(seconds, 1),
    }


def training_over_held_out(
    model: se.denoisers.Denoiser, seen: torch.Tensor, held_out: torch.Tensor
) -> dict[str, float]:
    """The denoising error on the images of the training set over that on held-out ones, at level 0.5."""
    errors = []
    with torch.no_grad():
        for x in (seen[: len(held_out)], held_out):
            errors.append(sum_per_sample((denoised(model, noisy(x, 0.5, 0), 0.5) - x).square()))
    mean, other = mean_of(errors[0]), mean_of(errors[1])
    ratio = mean.value / other.value
    error = ratio * ((mean.error / mean.value) ** 2 + (other.error / other.value) ** 2) ** 0.5
    return Estimate(ratio, error, min(mean.n, other.n))._asdict()


def table(rows: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [
        "| data | images | targets | "
        + " | ".join(f"apart at {r:g}" for r in LEVELS)
        + " | training over held-out error | copies | relative distance |",
        "| --- | ---: | --- |" + " ---: |" * (len(LEVELS) + 3),
    ]
    for name, row in sorted(rows.items(), key=lambda item: (item[0].split()[0], item[1]["images"], item[0])):
        data, _, target = name.split(" ")
        values = [row["disagreement"][f"{r:g}"] for r in LEVELS]
        values += [
            row[k]
            for k in ("training over held-out error, level 0.5", "share of copies", "relative distance")
        ]
        shown = " | ".join(f"{v['value']:.2f} ± {v['error']:.2f}" for v in values)
        lines.append(f"| {data} | {row['images']:,} | {target} | {shown} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_cell_options(parser, RESULT, "diagnostics.md")
    parser.add_argument("--data", nargs="+", choices=sorted(DATA), default=["mnist", "cifar10"])
    parser.add_argument("--sizes", nargs="+", default=["100", "1000", "10000", "all"])
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    add_model_options(parser)
    parser.add_argument("--n", type=int, default=512, help="held-out images for each value")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--sampler-steps", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    cells = cells_of(parser, options, ("data", "sizes", "targets"), ("diagnostics.md", TABLE, table))
    if cells is None:
        return
    for data in options.data:
        images = read_images(data, options.root, options.pool)
        for name in options.sizes:
            size = len(images.train) // 2 if name == "all" else int(name)
            for target in options.targets:
                key = f"{data} {name} {target}"
                cells.measured(key, partial(cell, images, size, target, options))


if __name__ == "__main__":
    main()
