"""Where the seconds of a run go."""

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from scoreexp.lit.callbacks.base import RunCallback


class StageTimer(RunCallback):
    """Seconds of training and of evaluation, added up over the resumes of a run and logged beside every metric.

    Logged as ``time/train`` and ``time/evaluate``, and ``time/total`` with the stages that came before training, which
    ``book_before`` adds; a comparison at equal cost uses them as its axis.

    >>> timer = StageTimer()
    >>> timer.book_before({"pre-computation": 2.5})
    >>> timer.stage_seconds()
    {'pre-computation': 2.5, 'train': 0.0, 'evaluate': 0.0}
    """

    def __init__(self) -> None:
        self.seconds = {"train": 0.0, "evaluate": 0.0}
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = dict(state_dict["seconds"])

    def book_before(self, seconds: Mapping[str, float]) -> None:
        """Count stages that a run went through before training, such as a pre-computation."""
        self.seconds = {**seconds, **self.seconds}

    def stage_seconds(self) -> Mapping[str, float]:
        return dict(self.seconds)

    def _book(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self._since
        self._since = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._book("train")
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_row = (every and step % every == 0) or step == trainer.max_steps
        if not is_row or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # no row of the table comes from this batch, and each value logged costs time
        pl_module.log("time/train", self.seconds["train"], on_step=True, on_epoch=False)
        pl_module.log("lr", trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._book("train")
        else:  # evaluation without training
            self._since = time.perf_counter()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._book("evaluate")
        pl_module.log("time/train", self.seconds["train"])
        pl_module.log("time/evaluate", self.seconds["evaluate"])
        pl_module.log("time/total", sum(self.seconds.values()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._book("evaluate")
