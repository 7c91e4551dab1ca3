"""What a run leaves when it is over, and what it says then."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl

from scoreexp.app.composition import shell_command
from scoreexp.app.terminal import LABEL_WIDTH, say, say_labelled
from scoreexp.figures.images import curves
from scoreexp.lit import ScoreModule
from scoreexp.lit.callbacks.base import Curves, NextCommand, RunCallback
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.runs.directory import RunDirectory, shown
from scoreexp.runs.model import foreign_packages
from scoreexp.system.json_files import read_json, write_json

LOSS = Curves(("train/loss",), "loss.png", "training loss", log=True)
USUAL_COMMANDS = (
    NextCommand("denoise", {"input": "noisy.png", "sigma": 0.2, "output": "clean.png"}),
    NextCommand("sample", {"n": 16}),
)


class RunResult(NamedTuple):
    """What a run came to.

    Attributes:
        metrics: the last value of every logged metric, and ``best/ssim``.
        checkpoint: the best checkpoint (the last one where none was evaluated).
        seconds: by stage: ``train`` and ``evaluate``, over all resumes, and those of an embedding before them.
        run_dir: the run's directory.
        status: ``finished`` or why the run stopped earlier.
    """

    metrics: dict[str, float]
    checkpoint: Path
    seconds: dict[str, float]
    run_dir: Path
    status: str


def stored_result(run: RunDirectory) -> RunResult:
    """What a run came to that was concluded earlier."""
    stored = read_json(run.path / "metrics.json")
    checkpoint = run.checkpoints / stored["checkpoint"]
    return RunResult(stored["metrics"], checkpoint, stored["seconds"], run.path, stored["status"])


def conclude(
    trainer: pl.Trainer,
    module: ScoreModule,
    callbacks: Sequence[RunCallback],
    run: RunDirectory,
    table: CSVLogger,
) -> RunResult:
    """Write metrics.json and the curves, and say what was reached and where it is.

    Args:
        trainer: has trained or evaluated.
        module: what it has trained.
        callbacks: those that have a say in it.
        run: where it goes.
        table: what was logged, step by step.
    """
    metrics: dict[str, float] = {}
    logged: list[Mapping[str, Any]] = [*table.rows, trainer.callback_metrics]
    for row in logged:  # a resumed run may have had no step left to log
        metrics.update({name: float(value) for name, value in row.items() if name != "step"})
    metrics.update(
        {name: float(value) for name, value in module.losses.items()}
    )  # of the last step, logged or not
    seconds: dict[str, float] = {}
    for callback in callbacks:
        metrics.update(callback.results())
        seconds.update(callback.stage_seconds())
    best = run.checkpoints / "best.ckpt"
    checkpoint = best if best.exists() else run.checkpoints / "last.ckpt"
    status = next((callback.reason for callback in callbacks if callback.reason), "finished")
    result = RunResult(metrics, checkpoint, seconds, run.path, status)
    if not trainer.is_global_zero:
        return result
    _draw_curves(callbacks, run, table)
    write_json(  # last: where it lies, nothing is missing
        run.path / "metrics.json",
        {
            "status": status,
            "step": trainer.global_step,
            "metrics": metrics,
            "seconds": seconds,
            "checkpoint": checkpoint.name,
            "parameters": module.parameter_count,
        },
    )
    _say_conclusion(result, trainer.global_step, callbacks, run)
    _say_next(
        result.checkpoint, callbacks, foreign_packages(module.record["config"]), _usual_commands(module)
    )
    return result


def _draw_curves(callbacks: Sequence[RunCallback], run: RunDirectory, table: CSVLogger) -> None:
    targets = {name: value for callback in callbacks for name, value in callback.targets().items()}
    for plot in (LOSS, *(plot for callback in callbacks for plot in callback.curves)):
        marked = [
            ("target", value)
            for name, value in targets.items()
            if name.removesuffix("_confirmed") in plot.names
        ]
        curves(
            table.rows,
            plot.names,
            run.pictures / plot.file,
            ylabel=plot.ylabel,
            log=plot.log,
            targets=dict(marked),
        )


def _say_conclusion(
    result: RunResult, step: int, callbacks: Sequence[RunCallback], run: RunDirectory
) -> None:
    before = sum(v for stage, v in result.seconds.items() if stage not in ("train", "evaluate"))
    status = result.status if f"at step {step}" in result.status else f"{result.status} after {step} steps"
    say(
        f"{status}, "
        + (f"{before:.1f} s of pre-computation, " if before else "")
        + f"{result.seconds.get('train', 0):.0f} s of training and {result.seconds.get('evaluate', 0):.0f} s of evaluation"
    )
    for callback in callbacks:
        if (text := callback.conclusion(result.metrics)) is not None:
            say(text)
            _say_where(callback, run)


def _say_where(callback: RunCallback, run: RunDirectory) -> None:
    """Where the files are that show what a callback has found, as far as the run has come to write them."""
    beside = f" and {LOSS.file} beside it" if (run.pictures / LOSS.file).exists() else ""
    files = [
        ("figure", callback.picture, ""),
        *(("curves", run.pictures / plot.file, beside) for plot in callback.curves),
        ("table", run.path / "metrics.csv", ""),
    ]
    for label, path, more in files:
        if path is not None and path.exists():
            say_labelled(label, f"{shown(path)}{more}")


def _usual_commands(module: ScoreModule) -> Sequence[NextCommand]:
    """What any such model can be used for; a generator cannot denoise, and has its own steps."""
    if not module.denoiser.latent_channels:
        return USUAL_COMMANDS
    steps = {"sampler.steps": steps} if (steps := getattr(module.time_law, "steps", None)) else {}
    return [NextCommand("sample", {"n": 16, "sampler": "ddgan", **steps})]


def _say_next(
    checkpoint: Path, callbacks: Sequence[RunCallback], foreign: Sequence[str], usual: Sequence[NextCommand]
) -> None:
    """The commands that read the checkpoint; ``foreign``: packages of the user's own, which they must be told to trust."""
    say_labelled("checkpoint", shown(checkpoint))
    trust = [f"trust=[{','.join(foreign)}]"] if foreign else []
    asked = [command for callback in callbacks for command in callback.next_commands()]
    lines = [
        shell_command(f"scoreexp.{command.name}", trust, ckpt=shown(checkpoint), **command.settings)
        for command in asked or usual
    ]
    say_labelled("try next", f"\n{' ' * LABEL_WIDTH}".join(lines))
