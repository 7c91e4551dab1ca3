"""Which way of training makes the best images in equal CPU seconds: MNIST and CIFAR-10, Fashion-MNIST for three methods.

``python -m benchmarks.study_rivals --data FOLDER [--sets mnist cifar10 fashion] [--rivals NAME ...] [--seconds 600]
[--seeds 3] [--features random_conv] [--work FOLDER] [--json [PATH]]``; FOLDER holds ``mnist``, ``cifar10`` and ``fashion``.

A cell is one data set, one rival and one seed: a network of about 1 M parameters trained by a recipe of conf/recipe with
its own optimiser and preconditioning, batches of 32 and averaged weights (decay 0.999), on one thread until its process
has used the CPU seconds; what a step costs, and what is computed before the first one, is part of them. A larger budget
goes on from the checkpoint of the smaller one, except where the recipe depends on the number of steps (consistency). Then,
with the average, after N = 1, 2, 5, 10, 20 network evaluations of DPM-Solver++(2M), or of the rival's own sampler, at the
noise levels of ``StudyGrid``:

- Frechet distance, sliced Wasserstein distance, precision and recall of 500 samples against 5,000 training images, on the
  features that are named (``random_conv``, ``efficientnet_lite0``); none of them is an FID;
- after 20 evaluations the median distance to the nearest of 10,000 training images, and the share that is three times
  nearer to one of them than to any other (memorisation);
- bits per dimension of 16 test images, where the model has a likelihood.

A finished cell is a file in the work folder and is not trained again; an interrupted one goes on. ``--json`` writes the
result and the table of docs/rivals.md. A new rival is a line of ``RIVALS``.
"""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

import scoreexp
from benchmarks.pages import DOCS, write_table
from benchmarks.study_rivals_points import EVALUATIONS, StudyGrid
from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.ranges import to_uint8, to_unit
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.data import DataModule
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.likelihood import Likelihood, dequantise
from scoreexp.metrics import FrechetDistance, PrecisionRecall
from scoreexp.metrics.likelihood_metrics import bits_per_dim
from scoreexp.metrics.real_samples import real_samples, reference_of
from scoreexp.metrics.sample_metrics import SampleMetric, SlicedWasserstein
from scoreexp.metrics.set_metrics import NearestNeighbour
from scoreexp.samplers import ConsistencySampler, DPMSolverPP, Sampler, TimeGrid, draw
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "rivals_images.json"
WORK = ROOT / "outputs" / "study_rivals"
PAGE = DOCS / "rivals.md"
SETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "fashion": "Fashion-MNIST"}
FEW = ("ddpm", "edm", "flow")  # of Fashion-MNIST
FEATURES = ("random_conv", "efficientnet_lite0", "pixels")
_ALL = (
    "data.batch_size=32", "data.num_workers=0", "data.augment=false", "callbacks.monitor=null", "callbacks.stop=null",
    "callbacks.checkpoints.monitor=null", "callbacks.checkpoints.every_n_steps=200", "trainer.accelerator=cpu",
    "trainer.max_steps=1000000000", "trainer.val_check_interval=1000000000", "resume=auto",
)  # fmt: skip
# the lean U-Net with two halvings, since 28 pixels divide by 4; seconds go further with it than with network=unet
_NETWORK = ("network=unet_modulated", "network.widths=[24,56,96]", "network.blocks=[1,2,2]")


@dataclass(frozen=True)
class Rival:
    """One way to train.

    Attributes:
        label: in the table.
        overrides: of ``conf/train.yaml``, beside ``_NETWORK`` where the recipe has no network of its own; ``{steps}`` is the
            number of steps that the seconds will be enough for: such a rival is trained anew for another budget.
        sampler: of a grid.
        has_likelihood: the model is a posterior mean of the images themselves.
        own_network: the recipe's.
    """

    label: str
    overrides: tuple[str, ...] = ()
    sampler: Callable[[TimeGrid], Sampler] = DPMSolverPP
    has_likelihood: bool = True
    own_network: bool = False

    @property
    def all_overrides(self) -> list[str]:
        """With the network."""
        return [*(() if self.own_network else _NETWORK), *self.overrides]

    @property
    def extends(self) -> bool:
        """Whether a larger budget goes on from a smaller one."""
        return "{steps}" not in " ".join(self.overrides)


RIVALS = {
    "ddpm": Rival("DDPM"),
    "ddpm_embedded": Rival(
        "DDPM, score embedding",
        (
            "embedding=spectral",
            "model=score_embedding",
            "model.warmup_steps=100",
            "model.ema.decay=0.999",
        ),
        has_likelihood=False,
    ),
    "edm": Rival("EDM", ("recipe=edm",)),
    "stable_target": Rival(
        "EDM, stable targets",
        (
            "recipe=edm",
            "objective=stable_target",
            "objective.weighting._target_=scoreexp.objectives.EDMWeighting",
        ),
    ),
    "edm2": Rival("EDM2", ("recipe=edm2",), own_network=True),
    "flow": Rival("flow matching", ("recipe=flow",)),
    "ot_flow": Rival("flow matching, optimal transport", ("recipe=ot_flow",)),
    "dit": Rival("flow matching, DiT", ("recipe=dit", "network.channels=96"), own_network=True),
    "consistency": Rival(
        "consistency training",
        ("recipe=consistency", "objective.training_steps={steps}"),
        sampler=ConsistencySampler,
        has_likelihood=False,
    ),
}


class StopAtCPUSeconds(pl.Callback):
    """Ends training after the first step at which the process has used these seconds since it was made.

    A resumed run goes on from the seconds that its checkpoint had used.
    """

    def __init__(self, *, seconds: float) -> None:
        self.seconds, self.before, self.start = seconds, 0.0, time.process_time()

    @property
    def used(self) -> float:
        """CPU seconds, over all resumes."""
        return self.before + time.process_time() - self.start

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["used"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.used >= self.seconds:
            trainer.should_stop = True


@dataclass(frozen=True)
class Study:
    """What holds for all cells.

    Attributes:
        data: folder of the data sets.
        work: folder of the cells.
        seconds: CPU seconds of training.
        features: by which sets of images are compared.
        samples: generated images.
        reference: training images that they are compared with.
        further: overrides of every run.
        stored_only: train nothing, read the finished cells.
    """

    data: Path
    work: Path
    seconds: float
    features: str = "random_conv"
    samples: int = 500
    reference: int = 5000
    likelihood: int = 16
    further: tuple[str, ...] = ()
    stored_only: bool = False

    def config(
        self, name: str, overrides: Sequence[str], seed: int, seconds: float, folder: Path
    ) -> DictConfig:
        """That of a run."""
        stop = f"+callbacks.cpu={{_target_: benchmarks.study_rivals.StopAtCPUSeconds, seconds: {seconds}}}"
        root = self.data / name
        own = [f"data={name}", f"data.root='{root}'", *_ALL, *overrides, *self.further, stop]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("train", [*own, f"seed={seed}", f"run_dir='{folder}'"])

    def run(
        self, name: str, overrides: Sequence[str], seed: int, seconds: float, folder: Path
    ) -> dict[str, Any]:
        """Train, or go on training, until the seconds are used: what ``metrics.json`` of the run says."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(self.config(name, overrides, seed, seconds, folder))
        return read_json(folder / "metrics.json")

    def cell(self, name: str, rival_name: str, seed: int) -> dict[str, Any] | None:
        """Train and evaluate, or read what was found before."""
        rival, cell = RIVALS[rival_name], f"{name}_{rival_name}_{seed}"
        stored = self.work / f"{cell}_{self.seconds:g}s_{self.features}_{self.samples}.json"
        if stored.exists():
            return read_json(stored)
        if self.stored_only:
            return None
        folder, overrides = self.work / cell, rival.all_overrides
        if not rival.extends:
            folder = self.work / f"{cell}_{self.seconds:g}s"
            trial = self.seconds / 10
            tried = [override.replace("{steps}", "1000") for override in overrides]
            steps = self.run(name, tried, seed, trial, self.work / f"{cell}_{trial:g}s_trial")["step"]
            overrides = [override.replace("{steps}", str(max(1, 10 * steps))) for override in overrides]
        load = os.getloadavg()[0]
        run = self.run(name, overrides, seed, self.seconds, folder)
        checkpoint = folder / "checkpoints" / "last.ckpt"
        used = _used(checkpoint)
        if used > 1.5 * self.seconds + 60:
            raise SystemExit(
                f"{folder} has been trained for {used:.0f} CPU seconds, more than {self.seconds:g}: give another --work"
            )
        data = instantiate(self.config(name, overrides, seed, self.seconds, folder).data)
        data.setup("fit")
        row = {
            "set": name, "rival": rival_name, "seed": seed, "steps": run["step"], "parameters": run["parameters"],
            "cpu_seconds": used, "load_average": load, **self.evaluate(scoreexp.load(checkpoint), rival, data),
        }  # fmt: skip
        write_json(stored, row)
        return row

    @torch.no_grad()
    def evaluate(self, model: DenoiserBase, rival: Rival, data: DataModule) -> dict[str, Any]:
        """Distances by number of evaluations, memorisation, bits per dimension.

        None where the model has no likelihood, or where a sample is not finite: the recipe has diverged there.
        """
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            extractor = instantiate(compose("evaluate", [f"features={self.features}", "ckpt=none"]).features)
        reference = reference_of(data, extractor, "train", self.reference, keep_features=True)
        kinds: tuple[type[SampleMetric], ...] = (FrechetDistance, SlicedWasserstein, PrecisionRecall)
        seeds = [stream_seed(0, "images", i) for i in range(self.samples)]
        found: dict[str, dict[str, float | None]] = {}
        images: Tensor | None = None
        for evaluations in EVALUATIONS:
            images = _images(model, rival, evaluations, seeds)
            values: dict[str, float | None] = {}
            for kind in kinds:
                if images is None:
                    values |= dict.fromkeys(kind.spec.value_names)
                    continue
                metric = kind(extractor, reference, self.samples)
                metric.update(images)
                names = kind.spec.value_names
                values |= {name: one.value for name, one in zip(names, metric.results(), strict=True)}
            found[str(evaluations)] = values
        near = {}
        if images is not None:
            split, positions = real_samples(data, "train", 10_000)
            real = to_unit(split.samples(positions))
            near = {one.name: one.value for one in NearestNeighbour()(images.float() / 255, real)}
        return {
            "by_evaluations": found,
            **near,
            "bits_per_dim": self.bits(model, data) if rival.has_likelihood else None,
        }

    def bits(self, model: DenoiserBase, data: DataModule) -> float | None:
        """Mean bits per dimension of dequantised test images; None without a likelihood."""
        split = data.split("test")
        x = split.samples(range(min(self.likelihood, len(split))))
        draws = [generator(0, "dequantise", i) for i in range(len(x))]
        x = torch.cat([dequantise(one[None], draw_) for one, draw_ in zip(x, draws, strict=True)])
        streams = ImageStreams([stream_seed(0, "likelihood", i) for i in range(len(x))])
        try:
            log_prob = Likelihood()(model, x, streams=streams).log_prob
        except ValueError:  # the schedule has no prior
            return None
        return float(bits_per_dim(log_prob, x[0].numel()).mean())

    def measure(self, names: Sequence[str], rivals: Sequence[str], seeds: int) -> dict[str, Any]:
        """All cells, one seed of everything after the other."""
        self.work.mkdir(parents=True, exist_ok=True)
        rows = []
        for seed in range(seeds):
            for name in names:
                for rival in rivals if name != "fashion" else [rival for rival in rivals if rival in FEW]:
                    row = self.cell(name, rival, seed)
                    if row is None:
                        continue
                    rows.append(row)
                    distances = ", ".join(
                        f"{n}: {_spread([v['frechet']], 2)}" for n, v in row["by_evaluations"].items()
                    )
                    print(
                        f"{name:8} {rival:14} seed {seed}: {row['steps']} steps, Frechet {distances}",
                        flush=True,
                    )
        machine = {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
        return {
            "machine": machine, "seconds": self.seconds, "features": self.features, "samples": self.samples,
            "reference": self.reference, "likelihood": self.likelihood, "overrides": list(self.further), "rows": rows,
        }  # fmt: skip


def _images(model: DenoiserBase, rival: Rival, evaluations: int, seeds: Sequence[int]) -> Tensor | None:
    """Samples of eight bits; None if the sampler diverges."""
    sampler, parts = rival.sampler(StudyGrid(evaluations)), []
    for i in range(0, len(seeds), 100):
        try:
            result = draw(model, sampler, seeds[i : i + 100])
        except FloatingPointError:
            return None
        if result.nfe != evaluations:
            raise ValueError(f"{rival.label} took {result.nfe} evaluations instead of {evaluations}")
        parts.append(to_uint8(to_unit(result.x)))
    return torch.cat(parts)


def _used(checkpoint: Path) -> float:
    """CPU seconds that a checkpoint's run has used."""
    states = torch.load(checkpoint, map_location="cpu", weights_only=True)["callbacks"]
    return next(state["used"] for state in states.values() if "used" in state)


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = f"{statistics.mean(known):.{digits}f}"
    spread = text if len(known) == 1 else f"{text} ± {statistics.stdev(known):.{digits}f}"
    return spread if len(known) == len(values) else f"{spread} ({len(known)} of {len(values)})"


def table(result: dict[str, Any]) -> str:
    """One table for each data set: mean and standard deviation over the seeds."""
    rows = result["rows"]
    loads = [row["load_average"] for row in rows]
    lines = [
        f"{result['seconds']:g} CPU seconds of training, one thread of "
        f"{result['machine']['cpu']}, load average {min(loads):.0f} to {max(loads):.0f}. Features: `{result['features']}`, "
        f"{result['samples']} samples against {result['reference']} training images (no FID). Sliced W., precision, recall "
        f"and what follows: after 20 evaluations; bits per dimension of {result['likelihood']} test images. A dash: it has "
        f"none, or its samples are not finite; in brackets: of how many seeds.",
    ]
    for name, title in SETS.items():
        chosen = [row for row in rows if row["set"] == name]
        if not chosen:
            continue
        lines += [
            "",
            f"| {title} | seeds | parameters | steps | {' | '.join(f'Fréchet, NFE {n}' for n in EVALUATIONS)} | sliced W. "
            "| precision | recall | bits/dim | nearest | copies |",
            "| --- " + "| ---: " * (3 + len(EVALUATIONS) + 6) + "|",
        ]
        for key, rival in RIVALS.items():
            own = [row for row in chosen if row["rival"] == key]
            if not own:
                continue
            cells = [
                f"{len(own)}",
                f"{own[0]['parameters'] / 1e6:.2f} M",
                f"{statistics.mean(row['steps'] for row in own):,.0f}",
            ]
            cells += [
                _spread([row["by_evaluations"][str(n)]["frechet"] for row in own], 2) for n in EVALUATIONS
            ]
            last = [row["by_evaluations"][str(EVALUATIONS[-1])] for row in own]
            cells += [_spread([v[w] for v in last], 3) for w in ("sliced_wasserstein", "precision", "recall")]
            cells += [_spread([row["bits_per_dim"] for row in own], 2)]
            cells += [_spread([row.get("nearest_neighbour") for row in own], 2)]
            cells += [_spread([row.get("memorised_share") for row in own], 3)]
            lines.append(f"| {rival.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds mnist, cifar10, fashion")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of training (default 600)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--features", choices=FEATURES, default="random_conv")
    parser.add_argument("--samples", type=int, default=500, help="generated images (default 500)")
    parser.add_argument("--reference", type=int, default=5000, help="training images they are compared with")
    parser.add_argument("--likelihood", type=int, default=16, help="test images for bits/dim (default 16)")
    parser.add_argument("--stored", action="store_true", help="only the finished cells, train nothing")
    parser.add_argument("--override", nargs="*", default=[], help="of every run, beside another --work")
    parser.add_argument("--work", type=Path, default=WORK, help=f"runs and finished cells (default {WORK})")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="of the table that --json writes too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study = Study(
        given.data.absolute(), given.work.absolute(), given.seconds, given.features, given.samples, given.reference,
        given.likelihood, tuple(given.override), given.stored,
    )  # fmt: skip
    result = study.measure(given.sets, given.rivals, given.seeds)
    print(table(result))
    if given.json:
        write_json(given.json, result)
        write_table(given.page, "study_rivals", table(result))


if __name__ == "__main__":
    main()
