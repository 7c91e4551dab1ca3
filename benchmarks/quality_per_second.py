"""Validation loss after so many processor seconds: ``python -m benchmarks.quality_per_second --photos A --validation B``

U-Nets of scoreexp (``network=`` of conf/network, with overrides: ``unet_fast_1m:network.gate=0.3``) and of other
packages (``unet_peers``) learn the same thing on one thread: the EDM loss of 32 x 32 crops of photographs under EDM's
preconditioning and noise levels, batch 16, the same crops and noise for all networks of a seed. Validation is the same
loss on fixed crops of other photographs at fixed noise levels, one of each quantile of the training law. Seconds are
those of the processor in the training steps alone (forward, backward, optimiser, average); drawing the batch and
validation are not counted. All networks of a seed live in one process, and the one that has used the least seconds goes on
next, so that what other jobs do to the machine befalls all alike.

A recipe is an optimiser of conf/optimizer with what goes with it: ``adam``, or as in
``adam:warmup=10,ema=0.9,precision=bf16-mixed``. Results are stored at each mark; finished cells (network, recipe,
learning rate, seed) are not run again. Photographs of more than 960 pixels a side are reduced by averaging. Published
figures: CBSD68 for training, Kodak24 for validation.

``--memory`` instead measures, each network in a process of its own, the peak resident memory in 20 steps less that
before the first. ``--table`` prints what is stored and ``--doc`` writes it into docs/networks.md.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import Tensor, nn

from benchmarks.network_cost import composed
from benchmarks.pages import DOCS, write_table
from benchmarks.unet_peers import PEERS, build_peer
from scoreexp.core.batch import Batch
from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, EDMPrediction
from scoreexp.lit.ema import EMA
from scoreexp.objectives import DenoisingScoreMatching, EDMWeighting, LogNormalNoise
from scoreexp.schedules import EDM
from scoreexp.system.machine import processor

RESULT = Path(__file__).parent / "results" / "quality_per_second.json"
SIDE, BATCH, LONGEST, VALIDATION = 32, 16, 960, 128
MARKS = {"1m": (20, 35, 50, 70, 100), "9m": (60, 105, 150, 210, 300)}
SLICE = 0.5  # seconds that a network keeps the processor
OBJECTIVE, SCHEDULE, LAW = DenoisingScoreMatching(EDMWeighting()), EDM(), LogNormalNoise()


class Photographs:
    """Random crops of the photographs in a folder.

    Args:
        folder: holds png or jpg files.
    """

    def __init__(self, folder: Path) -> None:
        self.images, digest = [], hashlib.sha256()
        for path in sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg")):
            image = Image.open(path).convert("RGB")
            shrink = min(1.0, LONGEST / max(image.size))
            image = image.resize(
                (round(image.width * shrink), round(image.height * shrink)), Image.Resampling.BOX
            )
            pixels = np.asarray(image)
            digest.update(pixels.tobytes())
            self.images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
        if not self.images:
            raise SystemExit(f"{folder} holds no .png or .jpg: give a folder of photographs")
        self.digest = digest.hexdigest()[:16]

    def crops(self, n: int, draws: torch.Generator) -> Tensor:
        """``[n, 3, 32, 32]`` in [-1, 1], half of them mirrored; each photograph equally often."""

        def one() -> Tensor:
            image = self.images[_integer(len(self.images), draws)]
            top, left = (_integer(size - SIDE + 1, draws) for size in image.shape[1:])
            crop = image[:, top : top + SIDE, left : left + SIDE]
            return crop.flip(2) if _integer(2, draws) else crop

        return torch.stack([one() for _ in range(n)]).float() / 127.5 - 1


def _integer(below: int, draws: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=draws))


class Validation:
    """The loss on fixed crops at fixed noise levels, the quantiles of the training law.

    Args:
        photographs: others than those of training.
    """

    def __init__(self, photographs: Photographs) -> None:
        draws = generator("validation")
        self.x = photographs.crops(VALIDATION, draws)
        self.noise = torch.randn(self.x.shape, generator=draws)
        quantiles = (torch.randperm(VALIDATION, generator=draws).double() + 0.5) / VALIDATION
        self.t = torch.distributions.Normal(LAW.mean, LAW.std).icdf(quantiles).exp()

    @torch.no_grad()
    def __call__(self, model: Denoiser) -> float:
        model.eval()
        chunks = [slice(i, i + BATCH) for i in range(0, VALIDATION, BATCH)]
        losses = [OBJECTIVE(model, Batch(x=self.x[c]), self.t[c], self.noise[c]) for c in chunks]
        model.train()
        return float(torch.cat(losses).mean())


class Recipe(NamedTuple):
    """How a network is trained, beside its learning rate."""

    optimizer: str
    warmup: int = 0
    ema: float | None = None
    precision: str = "32-true"

    @classmethod
    def parse(cls, text: str) -> "Recipe":
        """``adam`` or ``adam:warmup=10,ema=0.9,precision=bf16-mixed``."""
        optimizer, _, rest = text.partition(":")
        given = dict(part.split("=") for part in rest.split(",") if part)
        kinds = {"warmup": int, "ema": float, "precision": str}
        return cls(optimizer, **{name: kinds[name](value) for name, value in given.items()})


def build(name: str, size: str) -> nn.Module:
    """A peer, or ``network=<name>`` with the overrides after a colon, for 32 x 32 colour images."""
    if name in PEERS:
        return build_peer(name, size)
    config, _, overrides = name.partition(":")
    chosen = composed(f"network={config}", *(f"network.{part}" for part in overrides.split(";") if part))
    return instantiate(chosen.network, event_shape=(3, SIDE, SIDE), num_classes=None)


class Training:
    """One network in training: a cell of the table."""

    def __init__(self, network: str, recipe: str, lr: float, seed: int, size: str) -> None:
        torch.manual_seed(seed)
        self.name, self.recipe_text, self.recipe, self.lr, self.seed = (
            network,
            recipe,
            Recipe.parse(recipe),
            lr,
            seed,
        )
        self.model = Denoiser(build(network, size), EDMPrediction(), SCHEDULE)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.average = None if self.recipe.ema is None else EMA(decay=self.recipe.ema)
        self.averaged = deepcopy(self.model).requires_grad_(False) if self.average is not None else self.model
        chosen = composed(f"optimizer={self.recipe.optimizer}", f"optimizer.lr={lr}")
        self.optimizer = instantiate(chosen.optimizer)(self.model.parameters())
        ramp = max(1, self.recipe.warmup)
        self.warmup = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: min(1.0, (n + 1) / ramp))
        self.seconds, self.steps, self.finite = 0.0, 0, True
        self.marks: dict[str, float | None] = {}

    def step(self, photographs: Photographs) -> None:
        draws = generator(self.seed, "step", self.steps)
        x, t = photographs.crops(BATCH, draws), LAW.sample(BATCH, SCHEDULE, draws)
        noise = torch.randn(x.shape, generator=draws)
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16-mixed"):
            loss = OBJECTIVE(self.model, Batch(x=x), t, noise).mean()
        loss.backward()
        self.optimizer.step()
        self.warmup.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.averaged, self.model, self.steps + 1)
        self.seconds += time.process_time() - start
        self.steps += 1
        self.finite = math.isfinite(loss.item())

    def until(self, seconds: float, photographs: Photographs) -> None:
        while self.finite and self.seconds < seconds:
            self.step(photographs)

    def mark(self, seconds: float, validation: Validation) -> None:
        loss = validation(self.averaged) if self.finite else math.nan
        self.marks[f"{seconds:g}"] = round(loss, 4) if math.isfinite(loss) else None

    @property
    def cell(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "recipe": self.recipe_text,
            "lr": self.lr,
            "seed": self.seed,
            "parameters": self.parameters,
            "steps": self.steps,
            "loss": self.marks,
        }


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["network"], cell["recipe"], cell["lr"], cell["seed"]


def train(
    cells: list[Training],
    marks: Sequence[float],
    photographs: Photographs,
    validation: Validation,
    keep: Callable[[], None],
) -> None:
    """Train all cells, one slice of time at a time, up to each mark in turn, and call ``keep`` there."""
    for cell in cells:
        cell.mark(0, validation)
    for mark in marks:
        going = list(cells)
        while going:
            cell = min(going, key=lambda c: c.seconds)
            cell.until(min(mark, cell.seconds + SLICE), photographs)
            going = [c for c in going if c.finite and c.seconds < mark]
        for cell in cells:
            cell.mark(mark, validation)
            name = f"{cell.name} {cell.recipe_text} lr {cell.lr:g} seed {cell.seed}"
            print(f"{mark:5g} s  {name}: {cell.steps} steps, loss {cell.marks[f'{mark:g}']}", flush=True)
        keep()


def peak_memory(name: str, size: str) -> float:
    """MiB of peak resident memory in 20 steps less that before the first, in a process of its own."""
    torch.set_num_threads(1)
    cell = Training(name, "adam", 1e-4, 0, size)
    draws = generator("memory")
    x, noise = torch.randn(2, BATCH, 3, SIDE, SIDE, generator=draws)
    t = LAW.sample(BATCH, SCHEDULE, draws)
    before = _resident_peak()
    for _ in range(20):
        OBJECTIVE(cell.model, Batch(x=x), t, noise).mean().backward()
        cell.optimizer.step()
        cell.optimizer.zero_grad(set_to_none=True)
    return (_resident_peak() - before) / 1024


def _resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def seconds_to(loss: float, marks: list[str], losses: list[float]) -> float | None:
    """When a curve reaches ``loss``, between two marks along a straight line of the logarithm of the loss; None if never.

    >>> seconds_to(0.2, ["0", "10", "20"], [0.8, 0.4, 0.1])
    15.0
    """
    for i, now in enumerate(losses):
        if now <= loss:
            if i == 0:
                return float(marks[0])
            share = math.log(losses[i - 1] / loss) / math.log(losses[i - 1] / now)
            return round(float(marks[i - 1]) + share * (float(marks[i]) - float(marks[i - 1])), 6)
    return None


def table(stored: dict[str, Any]) -> str:
    """A row for each network, recipe and learning rate, mean and standard deviation over seeds, best first.

    The last column: after how many seconds it has the loss that the best peer of its recipe has at the last mark.
    """
    marks = [f"{m:g}" for m in (0, *stored["settings"]["marks"])]
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in stored["cells"]:
        rows.setdefault(key(cell)[:3], []).append(cell)
    curves = {}
    for name, cells in rows.items():
        common = [m for m in marks if all(m in cell["loss"] for cell in cells)]
        values = {m: [cell["loss"][m] for cell in cells] for m in common}
        curves[name] = {m: losses for m, losses in values.items() if None not in losses}  # None: diverged
    peers = [(curve, max(curve, key=float)) for name, curve in curves.items() if name[0] in PEERS]
    last = max((mark for _, mark in peers), key=float, default="0")
    best_peers = {
        recipe: min(
            (
                mean(curves[name][last])
                for name in curves
                if name[0] in PEERS and name[1] == recipe and last in curves[name]
            ),
            default=math.nan,
        )
        for recipe in {name[1] for name in curves}
    }
    lines = [
        f"| network | recipe | learning rate | parameters | seeds | steps | {' | '.join(f'{m} s' for m in marks)} | "
        f"loss of the recipe's best peer at {last} s after |",
        f"| --- | --- | --- | ---: | ---: | ---: | {' | '.join('---:' for _ in marks)} | ---: |",
    ]
    for name, cells in sorted(rows.items(), key=lambda row: mean(list(curves[row[0]].values())[-1])):
        network, recipe, lr = name
        curve = curves[name]
        reached = seconds_to(best_peers[recipe], list(curve), [mean(values) for values in curve.values()])
        shown = [_mean_and_spread(curve[m]) if m in curve else "–" for m in marks]
        lines.append(
            f"| `{network}` | {recipe} | {lr:g} | {cells[0]['parameters']:,} | {len(cells)} | "
            f"{mean(cell['steps'] for cell in cells):,.0f} | {' | '.join(shown)} | "
            f"{'–' if reached is None else f'{reached:.0f} s'} |"
        )
    return "\n".join(lines)


def _mean_and_spread(losses: list[float]) -> str:
    form = ".3f" if mean(losses) < 100 else ".1e"
    return f"{mean(losses):{form}}" + (f" ± {stdev(losses):{form}}" if len(losses) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of photographs to train on")
    parser.add_argument("--validation", type=Path, help="folder of other photographs")
    parser.add_argument(
        "--size", choices=MARKS, default="1m", help="of the peers, and part of the result's name"
    )
    parser.add_argument("--networks", nargs="+", help="default: unet_<size>, unet_fast_<size> and all peers")
    parser.add_argument("--recipes", nargs="+", default=["adam"], help="default: adam")
    parser.add_argument("--lrs", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one round after another")
    parser.add_argument(
        "--marks", nargs="+", type=float, help="processor seconds; default: those of the size"
    )
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--table", action="store_true", help="print what is stored, measure nothing")
    parser.add_argument("--doc", action="store_true", help="write what is stored into docs/networks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)

    results = json.loads(options.json.read_text()) if options.json.exists() else {}
    networks = options.networks or [f"unet_{options.size}", f"unet_fast_{options.size}", *PEERS]
    if options.memory:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for name in networks:
                mib = pool.apply(peak_memory, (name, options.size))
                results.setdefault("memory", {})[name] = round(mib)
                print(f"{name}: {mib:.0f} MiB", flush=True)
        _store(options.json, results)
    elif not (options.table or options.doc):
        if options.photos is None or options.validation is None:
            parser.error("give --photos and --validation, two folders of different photographs")
        photographs, others = Photographs(options.photos), Photographs(options.validation)
        settings = {
            "marks": list(options.marks or MARKS[options.size]),
            "batch": BATCH,
            "photographs": photographs.digest,
            "validation": others.digest,
            "torch": torch.__version__,
            "processor": processor(),
        }
        stored = results.setdefault(options.size, {"settings": settings, "cells": []})
        if stored["settings"] != settings:
            parser.error(
                f"{options.json} holds results of other settings {stored['settings']}: choose another --json"
            )
        validation, done = (
            Validation(others),
            {key(c) for c in stored["cells"] if len(c["loss"]) > len(settings["marks"])},
        )
        for seed in options.seeds:
            wanted = [(n, r, lr, seed) for n in networks for r in options.recipes for lr in options.lrs]
            cells = [Training(*cell, options.size) for cell in wanted if cell not in done]
            others_kept = [c for c in stored["cells"] if key(c) not in {key(cell.cell) for cell in cells}]

            def keep(cells: list[Training] = cells, kept: list[dict[str, Any]] = others_kept) -> None:
                stored["cells"] = kept + [cell.cell for cell in cells]
                _store(options.json, results)

            train(cells, settings["marks"], photographs, validation, keep)
    for size in MARKS:
        if size in results:
            print(f"\n{table(results[size])}")
            if options.doc:
                write_table(
                    DOCS / "networks.md", f"benchmarks.quality_per_second {size}", table(results[size])
                )
    if options.doc and "memory" in results:
        rows = [f"| `{name}` | {mib:,} |" for name, mib in results["memory"].items()]
        lines = ["| network | peak memory of 20 steps, batch 16, MiB |", "| --- | ---: |", *rows]
        write_table(DOCS / "networks.md", "benchmarks.quality_per_second memory", "\n".join(lines))


def _store(path: Path, results: dict[str, Any]) -> None:
    """Write beside the old file and put it in its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
