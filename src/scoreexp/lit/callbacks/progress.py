"""A progress bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics.catalogue import spec_of

_SHOWN = {"train/loss": "loss"} | {
    name: spec.title for name in ("val/ssim", "val/psnr", "val/score_error") if (spec := spec_of(name))
}


class TrainingProgress(pl.Callback):
    """Show step, speed, time left, the loss on this device and the last evaluation.

    >>> progress = TrainingProgress(line_seconds=60.0)
    >>> trainer = pl.Trainer(
    ...     callbacks=[progress], enable_progress_bar=False, logger=False, enable_checkpointing=False
    ... )

    Args:
        line_seconds: where there is no terminal (a log file, a pipe), seconds between two lines.
    """

    @checked
    def __init__(self, *, line_seconds: PositiveFloat = 15.0) -> None:
        self.line_seconds = line_seconds
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = 0.0

    def _status(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        metrics = trainer.callback_metrics
        if isinstance(module, ScoreModule):  # of this step, which may have no row
            metrics = {**metrics, **module.losses}
        return "  ".join(
            f"{label} {float(metrics[name]):.4g}" for name, label in _SHOWN.items() if name in metrics
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_line = self._started = time.monotonic()
        self._first_step = trainer.global_step
        if not (trainer.is_global_zero and sys.stderr.isatty()):
            return
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True),
        )
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._task = self._bar.add_task("", total=total, completed=trainer.global_step, status="", speed="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, now = trainer.global_step, time.monotonic()
        if self._bar is not None and self._task is not None:
            if step % 5 == 0 or step == trainer.max_steps:
                speed = f"{(step - self._first_step) / max(now - self._started, 1e-9):.1f} steps/s"
                self._bar.update(
                    self._task, completed=step, status=self._status(trainer, pl_module), speed=speed
                )
        elif trainer.is_global_zero and now - self._last_line >= self.line_seconds:
            self._last_line = now
            total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
            sys.stderr.write(f"step {step}{total}  {self._status(trainer, pl_module)}\n")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._close()
