"""Training and evaluating a run's model, with each way in which that may break off put into words."""

import contextlib
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from scoreexp.app.composition import shell_command
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.data import DataModule
from scoreexp.lit import NonFiniteError, ScoreModule
from scoreexp.lit.callbacks import Interrupted
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.runs.directory import RunDirectory, shown


def fit(
    trainer: pl.Trainer, module: ScoreModule, data: DataModule, run: RunDirectory, start: Path | None
) -> None:
    """Train to the end, from the checkpoint ``start`` if there is one.

    Raises:
        UserError: training broke off; the message names the remedy.
        SystemExit: a signal has stopped the run: code 130 or 143.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
    except Interrupted as interruption:
        with contextlib.suppress(OSError):  # the terminal may be gone
            saved = run.checkpoints / "last.ckpt"
            say(f"{interruption} at step {trainer.global_step}")
            say_labelled("checkpoint", shown(saved) if saved.exists() else "none: no step was finished")
            say_labelled("go on with", _resume_command(run))
        # a process that Lightning has started must not seem to have failed
        raise SystemExit(interruption.exit_code if trainer.is_global_zero else 0) from None
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of memory at step {trainer.global_step}: keep the global batch with trainer.accumulate_grad_batches=2 "
            "and half of data.batch_size, or set trainer.precision=bf16-mixed, or a smaller network.channels"
        ) from error
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}\n{_last_good(run)}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that loads data was killed at step {trainer.global_step}, perhaps because memory ran out: "
            f"set data.num_workers=0, or a smaller data.batch_size, and add resume=auto\n{_last_good(run)}"
        ) from error


def evaluate_untrained(
    trainer: pl.Trainer, module: ScoreModule, data: DataModule, run: RunDirectory, evaluations: int
) -> None:
    """Evaluate a model that has nothing to train as often as a confirmed value asks, and save it."""
    for _ in range(evaluations):
        trainer.validate(module, datamodule=data, verbose=False)
    trainer.save_checkpoint(run.checkpoints / "last.ckpt")


def _last_good(run: RunDirectory) -> str:
    saved = run.checkpoints / "last.ckpt"
    if not saved.exists():
        return "no checkpoint had been saved yet"
    return f"last good checkpoint: {shown(saved)} of step {read_checkpoint(saved)['global_step']}"


def _resume_command(run: RunDirectory) -> str:
    kept = [argument for argument in sys.argv[1:] if argument.split("=")[0] not in ("run_dir", "resume")]
    return shell_command("scoreexp.train", kept, run_dir=shown(run.path), resume="auto")
