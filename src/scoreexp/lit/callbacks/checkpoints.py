"""When checkpoints are written."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl

from scoreexp.core.checked import checked
from scoreexp.core.types import FromRun, PositiveInt
from scoreexp.lit.callbacks.base import RunCallback
from scoreexp.lit.callbacks.direction import mode_of
from scoreexp.lit.callbacks.signals import Interrupted
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.lit.module import NonFiniteError


class Checkpoints(RunCallback, pl.callbacks.Checkpoint):
    """Keep ``last.ckpt``, the ``previous.ckpt`` before it, and ``best.ckpt``.

    Files are written between two steps only, when a step and the evaluation that follows it are over: every
    ``every_n_steps`` steps, after every evaluation, at the end of training, when a signal stops the run, and on an
    exception if the last step had been completed. Weights that are not finite are never written.

    >>> checkpoints = Checkpoints(folder="run/checkpoints", monitor="val/mse")
    >>> checkpoints.mode, checkpoints.best_path.as_posix()
    ('min', 'run/checkpoints/best.ckpt')

    Args:
        folder: where the files go.
        every_n_steps: interval of ``last.ckpt``.
        monitor: the logged metric whose best value is kept in ``best.ckpt``; None keeps no best.
        mode: whether the largest (``max``) or the smallest (``min``) value of it is the best; None does what the metric
            says.

    Raises:
        UserError: no metric of that name says which values are the better ones, or it says the opposite of ``mode``.
    """

    @checked
    def __init__(
        self,
        *,
        folder: Annotated[str, FromRun("checkpoints")],
        every_n_steps: PositiveInt = 500,
        monitor: str | None = "val/ssim",
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        self.folder, self.every_n_steps = Path(folder), every_n_steps
        self.monitor = monitor
        self.mode = None if monitor is None else mode_of(monitor, mode, "checkpoints.mode")
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._saved_at = -1
        self._evaluated = False

    @property
    def last_path(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best_path(self) -> Path:
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def save_last(self, trainer: pl.Trainer) -> None:
        """Write ``last.ckpt`` for the present step, unless it is there already."""
        if self._saved_at == trainer.global_step:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.flush()
        fresh = self.folder / "last.new.ckpt"
        trainer.save_checkpoint(fresh)
        if trainer.is_global_zero:
            if self.last_path.exists() and self._saved_at >= 0:
                os.replace(self.last_path, self.folder / "previous.ckpt")
            os.replace(fresh, self.last_path)
        trainer.strategy.barrier("last.ckpt")
        self._saved_at = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        resumed = trainer.ckpt_path
        whole = resumed is None or Path(resumed) == self.last_path  # else last.ckpt is damaged or missing
        self._saved_at = trainer.global_step if whole else -1
        if not trainer.strategy.broadcast(self.best_path.exists()):  # of another run, or deleted
            self.best_score = self.best_step = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._evaluated = True
        score = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if score is not None and self._is_better(float(score)):
            self.best_score, self.best_step = float(score), trainer.global_step
            trainer.save_checkpoint(self.best_path)

    def _is_better(self, score: float) -> bool:
        if self.best_score is None:
            return True
        return score > self.best_score if self.mode == "max" else score < self.best_score

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches or not trainer.global_step:
            return
        if self._evaluated or trainer.global_step % self.every_n_steps == 0:
            self.save_last(trainer)
        self._evaluated = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save_last(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if trainer.state.fn != "fit" or trainer.validating or not trainer.global_step:
            return
        if isinstance(exception, Interrupted):
            safe = exception.between_steps
        else:  # one rank's exception must not make it wait for the others
            safe = trainer.world_size == 1 and not isinstance(exception, NonFiniteError)
        if safe and trainer.global_step * trainer.accumulate_grad_batches == completed:
            self.save_last(trainer)

    def results(self) -> Mapping[str, float]:
        if self.best_score is None:
            return {}
        name = str(self.monitor).removeprefix("val/")
        return {f"best/{name}": self.best_score, "best/step": float(self.best_step or 0)}
