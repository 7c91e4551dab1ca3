"""What fewer bits cost trained models, by what they are calibrated on, and whether their posterior means are calibrated.
``python -m benchmarks.compression --root FOLDER [--models NAME ...] [--bits 8 6 4] [--json [PATH]] [--table]``

The models are the ``best.ckpt`` of the runs ``python -m scoreexp.train experiment=NAME run_dir=outputs/NAME`` with NAME
``swiss_roll_vp``, ``mnist_cpu`` and ``cifar10_cpu`` (``--runs FOLDER`` if not outputs/). A cell is a model, a number of bits
and a calibration (``diagnostics.compression``), measured for each seed, which names the calibration set and the samples:

- the relative squared error of the score against the model before, at held-out data with noise of each level;
- samples of the run's own sampler, of images those of Heun's method at 8 levels: root mean square difference from those of
  the model before of the same seeds, in units of the data; Frechet distance (``random_conv``, images only) and sliced
  Wasserstein distance from training data;
- bytes of the state relative to the model before, processor seconds of calibration and of a sample.

Distances of small sets are biased, by the same for both models: differences are taken within seeds, with a 95 % interval
over them, beside the standard deviation of the model before over seeds. ``--calibration`` measures
``diagnostics.calibration`` of the same models on held-out data instead. Finished cells are kept and not run again;
``--table`` writes the tables of docs/diagnostics.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from benchmarks.cells import Cells, half_interval
from benchmarks.pages import DOCS, write_table
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_unit
from scoreexp.data import CIFAR10, MNIST, DataModule, SwissRoll
from scoreexp.denoisers import Denoiser
from scoreexp.diagnostics.calibration import calibration
from scoreexp.diagnostics.compression import (
    Mode,
    calibration_set,
    compression_error,
    quantise,
    stored_bytes,
)
from scoreexp.metrics.distribution import sliced_wasserstein
from scoreexp.metrics.features import RandomConvFeatures, as_bytes
from scoreexp.metrics.frechet import FeatureStatistics
from scoreexp.runs.checkpoint_file import read_checkpoint
from scoreexp.runs.model import load
from scoreexp.samplers import Heun, KarrasGrid, draw

RESULT = Path(__file__).parent / "results" / "compression.json"
PAGE = DOCS / "diagnostics.md"
MODELS = {"swiss_roll": "swiss_roll_vp", "mnist": "mnist_cpu", "cifar10": "cifar10_cpu"}
MODES: tuple[str, ...] = ("reverse", "forward", "raw", "random")
LEVELS = (0.05, 0.5, 2.0)
OF_CALIBRATION = (0.05, 0.2, 0.5, 1.0, 2.0)
FAST = Heun(KarrasGrid(8))
REFERENCES = 5000  # training samples that sets are compared with
assert set(MODES) == set(get_args(Mode))


class Subject:
    """A trained model, its data, and what it draws."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        path = options.runs / MODELS[name] / "checkpoints" / "best.ckpt"
        self.model: Denoiser = load(path, device="cpu")
        self.steps = read_checkpoint(path).get("global_step")
        root = str(options.root / name) if options.root else ""
        makers: dict[str, Callable[[], DataModule]] = {
            "swiss_roll": SwissRoll,
            "mnist": partial(MNIST, root=root),
            "cifar10": partial(CIFAR10, root=root),
        }
        data = makers[name]()
        self.train = data.split("train").samples(np.arange(REFERENCES))
        test = data.split("test")
        self.held_out = test.samples(np.arange(min(options.held_out, len(test))))
        self.images = isinstance(kind_of(self.train.shape[1:]), Images)
        self.node = dict(self.model.record["config"]["network"])
        self.own_sampler = instantiate(self.model.record["config"]["sampler"])  # of the reverse chain
        self.features = RandomConvFeatures()
        self.reference = self.statistics(self.train) if self.images else None
        self.samples = options.samples if self.images else 10 * options.samples

    def statistics(self, x: Tensor) -> FeatureStatistics:
        unit = to_unit(x.clamp(-1, 1))
        return FeatureStatistics.of(torch.cat([self.features(as_bytes(part)) for part in unit.split(250)]))

    def drawn(self, model: Denoiser, seed: int) -> tuple[Tensor, float]:
        """Samples, and the processor seconds of one."""
        seeds = range(10_000 * (seed + 1), 10_000 * (seed + 1) + self.samples)
        began = time.process_time()
        sampler = FAST if self.images else self.own_sampler
        parts = [draw(model, sampler, seeds[k : k + 64]).x for k in range(0, len(seeds), 64)]
        return torch.cat(parts), (time.process_time() - began) / len(seeds)

    @cache  # noqa: B019
    def own(self, seed: int) -> tuple[Tensor, float]:
        return self.drawn(self.model, seed)

    def quality(self, x: Tensor) -> dict[str, float]:
        """Distances from the training data."""
        found = {"sliced wasserstein": float(sliced_wasserstein(x, self.train))}
        if self.reference is not None:
            found["frechet"] = float(self.statistics(x).frechet_distance(self.reference))
        return found


def before(subject: Subject, seeds: list[int]) -> dict[str, Any]:
    """The model as it was trained."""
    rows = []
    for seed in seeds:
        x, seconds = subject.own(seed)
        rows.append({"seed": seed, **subject.quality(x), "seconds of a sample": round(seconds, 5)})
    return {
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "steps of training": subject.steps,
        "samples": subject.samples,
        "bytes": stored_bytes(subject.model),
        "seeds": rows,
    }


def cell(subject: Subject, bits: int, mode: Any, seeds: list[int], n: int) -> dict[str, Any]:
    """One way of quantising it."""
    rows = []
    for seed in seeds:
        began = time.process_time()
        pairs = calibration_set(
            subject.model, mode, sampler=subject.own_sampler, data=subject.train, n=n, seed=seed
        )
        small = quantise(subject.model, subject.node, pairs, bits=bits)
        spent = time.process_time() - began
        errors = compression_error(subject.model, small, subject.held_out[:64], LEVELS, seed=seed)
        x, seconds = subject.drawn(small, seed)
        rows.append(
            {
                "seed": seed,
                "score error": {f"{r:g}": e.value for r, e in errors.items()},
                "apart": float((x - subject.own(seed)[0]).square().mean().sqrt()),
                **subject.quality(x),
                "seconds of calibration": round(spent, 2),
                "seconds of a sample": round(seconds, 5),
            }
        )
    return {
        "bits": bits,
        "calibration": mode,
        "bytes over before": stored_bytes(small) / stored_bytes(subject.model),
        "seeds": rows,
    }


def posterior_mean(subject: Subject) -> dict[str, Any]:
    """Calibration of the denoiser at each level, on held-out data."""
    low, high = subject.model.schedule.sigma_range
    found = {
        level: calibration(subject.model, subject.held_out, level)
        for level in OF_CALIBRATION
        if low <= level <= high
    }
    return {
        "held-out samples": len(subject.held_out),
        "levels": {f"{r:g}": {k: e._asdict() for k, e in c._asdict().items()} for r, c in found.items()},
    }


def table(rows: dict[str, Any]) -> str:
    """Fewer bits, in Markdown."""
    errors = " | ".join(f"score error at {r:g}" for r in LEVELS)
    lines = [
        f"| model | bits | calibrated on | {errors} | samples apart, rms | Frechet less before "
        "| sliced Wasserstein less before | bytes | seconds of a sample over before |",
        "| --- | ---: | --- |" + " ---: |" * (len(LEVELS) + 5),
    ]
    for name in MODELS:
        whole = rows.get(f"{name} before")
        if whole is None:
            continue
        own = {row["seed"]: row for row in whole["seeds"]}
        seconds = statistics.mean(row["seconds of a sample"] for row in own.values())
        lines.append(
            f"| {name} | 32 | | | | | | {_own(own, 'frechet')} | {_own(own, 'sliced wasserstein')} | 1 | 1 |"
        )
        cells = [
            row
            for key, row in rows.items()
            if key.split(" ")[0] == name and {"bits", "calibration"} <= row.keys()
        ]
        for row in sorted(cells, key=lambda r: (-r["bits"], MODES.index(r["calibration"]))):
            seeds = row["seeds"]
            at = [statistics.mean(one["score error"][f"{r:g}"] for one in seeds) for r in LEVELS]
            lines.append(
                f"| {name} | {row['bits']} | {row['calibration']} | {' | '.join(f'{v:.2g}' for v in at)} | "
                f"{statistics.mean(one['apart'] for one in seeds):.2g} | {_less(seeds, own, 'frechet')} | "
                f"{_less(seeds, own, 'sliced wasserstein')} | {row['bytes over before']:.3f} | "
                f"{statistics.mean(one['seconds of a sample'] for one in seeds) / seconds:.1f} |"
            )
    return "\n".join(lines)


def _own(own: dict[int, Any], key: str) -> str:
    values = [row[key] for row in own.values() if key in row]
    return f"itself {statistics.mean(values):.4f}, sd {statistics.stdev(values):.4f}" if values else ""


def _less(seeds: list[Any], own: dict[int, Any], key: str) -> str:
    differences = [one[key] - own[one["seed"]][key] for one in seeds if key in one]
    if not differences:
        return ""
    return f"{statistics.mean(differences):+.4f} ± {half_interval(differences):.4f}"


def calibration_table(rows: dict[str, Any]) -> str:
    """The posterior means, in Markdown."""
    lines = [
        "| model | noise level | error over stated variance | variance of the denoised over that of the data "
        "| the same with the stated variance added | variance over what should be left |",
        "| --- |" + " ---: |" * 5,
    ]
    for name in MODELS:
        for level, found in rows.get(f"{name} posterior mean", {"levels": {}})["levels"].items():
            values = [found[k] for k in ("error", "dispersion", "total", "spread")]
            shown = " | ".join(f"{v['value']:.3f} ± {v['error']:.3f}" for v in values)
            lines.append(f"| {name} | {level} | {shown} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder that holds mnist/ and cifar10/")
    parser.add_argument("--runs", type=Path, default=Path("outputs"), help="folder that holds the runs")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=64, help="pairs of the calibration set")
    parser.add_argument(
        "--samples", type=int, default=128, help="images for each seed, ten times as many points"
    )
    parser.add_argument("--held-out", type=int, default=512)
    parser.add_argument(
        "--calibration", action="store_true", help="measure the calibration of the posterior means"
    )
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT, default=RESULT)
    parser.add_argument("--table", action="store_true", help="write the tables, run nothing")
    options = parser.parse_args(arguments)
    cells = Cells(options.json)
    if options.table:
        write_table(PAGE, "benchmarks.compression", table(cells.rows))
        write_table(PAGE, "benchmarks.compression --calibration", calibration_table(cells.rows))
        return
    if options.root is None and set(options.models) - {"swiss_roll"}:
        parser.error("--root is needed: the folder that holds mnist/ and cifar10/")
    choices = {"root", "runs", "json", "table", "models", "bits", "modes", "calibration"}
    cells.require_settings(parser, options, choices)
    torch.set_num_threads(1)
    for name in options.models:
        subject = Subject(name, options)
        if options.calibration:
            cells.measured(f"{name} posterior mean", partial(posterior_mean, subject))
            continue
        cells.measured(f"{name} before", partial(before, subject, options.seeds))
        for bits in options.bits:
            for mode in options.modes:
                key = f"{name} {bits} {mode}"
                cells.measured(key, partial(cell, subject, bits, mode, options.seeds, options.n))


if __name__ == "__main__":
    main()
