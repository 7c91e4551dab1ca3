"""Which training objective learns the Swiss Roll best in equal CPU seconds, by its score and by its samples.

``python -m benchmarks.study_rivals_points [--seconds 120] [--seeds 3] [--rivals NAME ...] [--work FOLDER] [--json [PATH]]``

A cell is one rival and one seed: ``data=swiss_roll network=mlp`` with Adam, batches of 512 and averaged weights (decay
0.999), trained on one thread until its process has used the CPU seconds, whatever a step costs. Then, with the average:

- the relative squared error of the score by noise level, against the exact density (``metrics.score_error``);
- the sliced Wasserstein distance of 2000 samples from 2000 exact ones after N = 1, 2, 5, 10, 20 network evaluations of
  DPM-Solver++(2M), or of the rival's own sampler, at the same noise levels for all: the schedule's largest, then from 5 down
  to max(1 / N^2, 0.02), even in the seventh root.

A finished cell is a file in the work folder and is not trained again; one that was interrupted begins anew. ``--json``
writes the result and the table of docs/rivals.md. A new rival is a line of ``RIVALS``.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

import scoreexp
from benchmarks.pages import DOCS, write_table
from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.streams import generator, stream_seed
from scoreexp.data import SwissRoll
from scoreexp.denoisers.denoiser import DenoiserBase, OracleDenoiser
from scoreexp.metrics import sliced_wasserstein
from scoreexp.metrics.score_error import LEVELS, ExactScores, exact_scores, score_errors
from scoreexp.samplers import (
    ConsistencySampler,
    DPMSolverPP,
    KarrasGrid,
    MeanFlowSampler,
    Sampler,
    TimeGrid,
    draw,
)
from scoreexp.schedules import DDPM, EDM, FlowMatching, Schedule
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "rivals_points.json"
WORK = ROOT / "outputs" / "study_rivals_points"
PAGE = DOCS / "rivals.md"
EVALUATIONS = (1, 2, 5, 10, 20)
SHOWN_LEVELS = (0.02, 0.1, 0.5, 2.0)
_ALL = (
    "data=swiss_roll", "data.batch_size=512", "network=mlp", "optimizer.lr=2.0e-3", "callbacks=points",
    "callbacks.monitor=null", "callbacks.stop=null", "callbacks.checkpoints.monitor=null",
    "callbacks.checkpoints.every_n_steps=1000000000", "trainer.accelerator=cpu", "trainer.max_steps=1000000000",
    "trainer.val_check_interval=1000000000",
)  # fmt: skip
_LEVELS = ("time_law=log_normal", "time_law.mean=-2.0", "time_law.std=1.5")
_EDM = ("schedule=edm", "precond=edm", "precond.sigma_data=0.35", *_LEVELS)


@dataclass(frozen=True)
class Rival:
    """One way to train.

    Attributes:
        label: in the table.
        overrides: of ``conf/train.yaml``; ``{steps}`` is the number of steps that the seconds will be enough for, ``{NAME}``
            the checkpoint of the rival of that name and the same seed, such as a teacher's, which comes before.
        sampler: of a grid.
        has_score: the model is the posterior mean of independent noise.
    """

    label: str
    overrides: tuple[str, ...]
    sampler: Callable[[TimeGrid], Sampler] = DPMSolverPP
    has_score: bool = True


RIVALS = {
    "eps": Rival("noise (DDPM)", ()),
    "v": Rival("velocity v", ("precond=v", "objective=v")),
    "eps_levels": Rival("noise, EDM's levels", _LEVELS),
    "v_levels": Rival("velocity v, EDM's levels", ("precond=v", "objective=v", *_LEVELS)),
    "x0": Rival("clean data x_0", ("precond=x0", "objective=x0")),
    "score": Rival("score", ("precond=score", "objective=score")),
    "min_snr": Rival("min-SNR, of v", ("precond=v", "objective=min_snr")),
    "p2": Rival("P2", ("recipe=p2",)),
    "likelihood": Rival("likelihood weighting", ("objective=likelihood",)),
    "implicit": Rival("exact divergence", ("objective=implicit",)),
    "sliced": Rival("sliced score matching", ("objective=sliced",)),
    "edm": Rival("EDM", (*_EDM, "objective=edm", "objective.weighting.sigma_data=0.35")),
    "uncertainty": Rival(
        "EDM, learned uncertainty (EDM2)",
        (*_EDM, "objective=uncertainty", "objective.objective.weighting.sigma_data=0.35"),
    ),
    "stable_target": Rival(
        "EDM, stable targets",
        (
            *_EDM,
            "objective=stable_target",
            "objective.weighting._target_=scoreexp.objectives.EDMWeighting",
            "+objective.weighting.sigma_data=0.35",
        ),
    ),
    "vdm": Rival("variational bound, learned schedule", ("recipe=vdm", "objective.levels=null")),
    "flow": Rival("flow matching", ("recipe=flow",)),
    "flow_levels": Rival("flow matching, EDM's levels", ("recipe=flow", *_LEVELS)),
    "ot_flow": Rival("flow matching, optimal transport", ("recipe=ot_flow",), has_score=False),
    "reflow": Rival(
        "reflow, of the row flow matching, EDM's levels",
        (
            "recipe=reflow",
            "objective.teacher.path='{flow_levels}'",
            "objective.together=1000",
            *_LEVELS,
        ),
        has_score=False,
    ),
    "mean_flow": Rival("MeanFlow", ("recipe=mean_flow", "network=mlp_two_times"), sampler=MeanFlowSampler),
    "consistency": Rival(
        "consistency training",
        (
            "recipe=consistency",
            "objective.last=20",
            "precond.sigma_data=0.35",
            "time_law.mean=-1.5",
            "objective.training_steps={steps}",
        ),
        sampler=ConsistencySampler,
        has_score=False,
    ),
    "consistency_tuning": Rival(
        "consistency tuning, of the row EDM",
        (
            "recipe=consistency_tuning",
            "objective.stages=4",
            "init_from='{edm}'",
            "precond.sigma_data=0.35",
            "time_law.mean=-1.5",
            "objective.training_steps={steps}",
        ),
        sampler=ConsistencySampler,
        has_score=False,
    ),
}


class StopAtCPUSeconds(pl.Callback):
    """Ends training after the first step at which the process has used these seconds since the fit began."""

    def __init__(self, *, seconds: float) -> None:
        self.seconds = seconds

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = time.process_time() - self.start >= self.seconds


class StudyGrid(TimeGrid):
    """The largest noise level, then from 5, if that is below it, down to max(1 / N^2, 0.02), even in the seventh root."""

    def __call__(self, schedule: Schedule, *, t_start: float | None = None) -> torch.Tensor:
        first = torch.tensor([schedule.t_max if t_start is None else t_start], dtype=torch.float64)
        if self.steps == 1:
            return first
        last = max(1 / self.steps**2, 0.02)
        t_end = float(schedule.t_of_sigma(torch.tensor(last).double()))
        if schedule.sigma_range[1] <= 5:
            return KarrasGrid(self.steps, t_end=t_end)(schedule, t_start=float(first))
        from_ = last if self.steps == 2 else 5.0
        t_from = float(schedule.t_of_sigma(torch.tensor(from_).double()))
        rest = KarrasGrid(self.steps - 1, t_end=t_end)(schedule, t_start=t_from)
        return torch.cat([first, rest])


def run(overrides: Sequence[str], seed: int, seconds: float, folder: Path) -> tuple[Path, int, float]:
    """Train for so many CPU seconds: the checkpoint, the steps and the CPU seconds of the whole run."""
    shutil.rmtree(folder, ignore_errors=True)
    stop = f"+callbacks.cpu={{_target_: benchmarks.study_rivals_points.StopAtCPUSeconds, seconds: {seconds}}}"
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", [*_ALL, *overrides, stop, f"seed={seed}", f"run_dir='{folder}'"])
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train(cfg)
    used = time.process_time() - start
    return folder / "checkpoints" / "last.ckpt", int(read_json(folder / "metrics.json")["step"]), used


def cell(name: str, seed: int, seconds: float, samples: int, work: Path) -> dict[str, Any]:
    """Train and evaluate one rival, or read what was found before."""
    stored = work / f"{name}_{seed}.json"
    if stored.exists():
        return read_json(stored)
    rival = RIVALS[name]
    overrides = list(rival.overrides)
    for other in RIVALS:
        checkpoint = work / f"{other}_{seed}" / "checkpoints" / "last.ckpt"
        overrides = [override.replace(f"{{{other}}}", str(checkpoint)) for override in overrides]
    if any("{steps}" in override for override in overrides):  # how many steps the seconds are enough for
        trial = max(seconds / 10, 0.01)
        tried = [override.replace("{steps}", "1000") for override in overrides]
        _, steps, _ = run(tried, seed, trial, work / f"{name}_{seed}_trial")
        wanted = max(1, round(steps * seconds / trial))
        overrides = [override.replace("{steps}", str(wanted)) for override in overrides]
    load = os.getloadavg()[0]
    checkpoint, steps, used = run(overrides, seed, seconds, work / f"{name}_{seed}")
    row = {
        "rival": name, "seed": seed, "steps": steps, "cpu_seconds": used, "load_average": load,
        **evaluate(scoreexp.load(checkpoint), rival, samples),
    }  # fmt: skip
    write_json(stored, row)
    return row


@cache
def truth(samples: int) -> tuple[torch.Tensor, float, ExactScores]:
    """Exact points, their distance from as many others, and the exact score at noisy points."""
    oracle = SwissRoll().oracle()
    reference, other = (oracle.sample(samples, generator(0, "exact points", k)).float() for k in range(2))
    return reference, float(sliced_wasserstein(other, reference)), exact_scores(oracle, LEVELS, samples, 0)


@torch.no_grad()
def evaluate(model: DenoiserBase, rival: Rival, samples: int) -> dict[str, Any]:
    """Errors of the score by level (empty where the model has none) and distances by number of evaluations."""
    reference, floor, scores = truth(samples)
    errors = score_errors(model, scores, "cpu") if rival.has_score else {}
    seeds = [stream_seed(0, "points", i) for i in range(samples)]
    distances = {}
    for evaluations in EVALUATIONS:
        result = draw(model, rival.sampler(StudyGrid(evaluations)), seeds)
        if result.nfe != evaluations:
            raise ValueError(f"{rival.label} took {result.nfe} evaluations instead of {evaluations}")
        distances[str(evaluations)] = float(sliced_wasserstein(result.x, reference))
    return {
        "score_error": {f"{level:g}": error for level, error in errors.items()},
        "sliced_wasserstein": distances,
        "floor": floor,
    }


def exact(samples: int, work: Path) -> list[dict[str, Any]]:
    """The exact score with the same sampler: what the schedule and the sampler cost by themselves."""
    stored = work / "exact.json"
    if not stored.exists():
        perfect = Rival("exact score", ())
        rows = [
            {"schedule": label, **evaluate(OracleDenoiser(SwissRoll().oracle(), schedule), perfect, samples)}
            for label, schedule in {"DDPM": DDPM(), "EDM": EDM(), "flow matching": FlowMatching()}.items()
        ]
        write_json(stored, {"rows": rows})
    return read_json(stored)["rows"]


def measure(names: Sequence[str], seeds: int, seconds: float, samples: int, work: Path) -> dict[str, Any]:
    """All cells, one seed of all rivals after the other."""
    folder = work / f"{seconds:g}_seconds_{samples}_samples"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(seeds):
        for name in names:
            rows.append(cell(name, seed, seconds, samples, folder))
            row = rows[-1]
            errors = list(row["score_error"].values())
            print(
                f"{name:14} seed {seed}: {row['steps']} steps, score error "
                f"{statistics.mean(errors) if errors else float('nan'):.4f}, distance after "
                + ", ".join(f"{n}: {d:.4f}" for n, d in row["sliced_wasserstein"].items()),
                flush=True,
            )
    machine = {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {
        "machine": machine, "seconds": seconds, "samples": samples, "rows": rows, "exact": exact(samples, folder),
    }  # fmt: skip


def _spread(values: Sequence[float], digits: int) -> str:
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, mean and standard deviation over the seeds."""
    rows = result["rows"]
    seeds, loads = {row["seed"] for row in rows}, [row["load_average"] for row in rows]
    lines = [
        f"{result['seconds']:g} CPU seconds of training, {len(seeds)} seed{'s' * (len(seeds) > 1)}, one thread of "
        f"{result['machine']['cpu']}, load average {min(loads):.0f} to {max(loads):.0f}. Score error: relative squared "
        "error in 1/1000, mean over seven noise levels and at four of them. NFE: sliced Wasserstein distance of "
        f"{result['samples']} samples after so many network evaluations; two exact sets are {rows[0]['floor']:.4f} apart.",
        "",
        f"| objective | steps | score error | {' | '.join(f'at {level:g}' for level in SHOWN_LEVELS)} | "
        f"{' | '.join(f'NFE {n}' for n in EVALUATIONS)} |",
        "| --- " + "| ---: " * (2 + len(SHOWN_LEVELS) + len(EVALUATIONS)) + "|",
    ]

    def cells(label: str, chosen: list[dict[str, Any]], steps: str) -> str:
        if chosen[0]["score_error"]:
            means = [1e3 * statistics.mean(row["score_error"].values()) for row in chosen]
            by_level = [[1e3 * row["score_error"][f"{level:g}"] for row in chosen] for level in SHOWN_LEVELS]
            errors = [_spread(means, 1), *(f"{statistics.mean(values):.1f}" for values in by_level)]
        else:
            errors = ["–"] * (1 + len(SHOWN_LEVELS))
        found = [_spread([row["sliced_wasserstein"][str(n)] for row in chosen], 3) for n in EVALUATIONS]
        return f"| {label} | {steps} | {' | '.join(errors)} | {' | '.join(found)} |"

    for name, rival in RIVALS.items():
        if chosen := [row for row in rows if row["rival"] == name]:
            lines.append(
                cells(rival.label, chosen, f"{statistics.mean(row['steps'] for row in chosen):,.0f}")
            )
    lines += [cells(f"exact score, schedule of {row['schedule']}", [row], "") for row in result["exact"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU seconds of training (default 120)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--samples", type=int, default=2000, help="points of each set (default 2000)")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="NAME")
    parser.add_argument("--work", type=Path, default=WORK, help=f"finished cells (default {WORK})")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="of the table that --json writes too")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result = measure(given.rivals, given.seeds, given.seconds, given.samples, given.work.absolute())
    print(table(result))
    if given.json:
        write_json(given.json, result)
        write_table(given.page, "study_rivals_points", table(result))


if __name__ == "__main__":
    main()
