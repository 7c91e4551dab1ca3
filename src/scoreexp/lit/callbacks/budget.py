"""Stop when the seconds that a comparison grants are spent."""

from typing import Any

import pytorch_lightning as pl

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveFloat
from scoreexp.lit.callbacks.base import RunCallback
from scoreexp.lit.callbacks.timing import StageTimer


class StopAtBudget(RunCallback):
    """Stop training after the first step at which pre-computation and training have taken ``seconds``.

    Evaluation does not count. The weights of the stop are evaluated and saved, and a run stopped this way stays stopped
    when it is resumed; with a larger budget it goes on. At least one step is made, however long the pre-computation was.
    On several devices all stop at the same step: the first at which one of them has spent its seconds.

    >>> spent = {"reason": "budget of 60 s spent at step 100", "seconds": 60.0}
    >>> same, larger = StopAtBudget(seconds=60.0), StopAtBudget(seconds=90.0)
    >>> same.load_state_dict(spent), larger.load_state_dict(spent)  # as in a run that is resumed
    (None, None)
    >>> same.reason, larger.reason
    ('budget of 60 s spent at step 100', None)

    Args:
        seconds: the budget, over all resumes of a run, or None for no limit.
    """

    @checked
    def __init__(self, *, seconds: PositiveFloat | None = None) -> None:
        self.seconds = seconds
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.seconds is not None and state_dict["seconds"] == self.seconds:
            self.reason = state_dict["reason"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.seconds is not None and self._timer(trainer) is None:
            raise UserError(
                f"callbacks.budget.seconds={self.seconds:g} needs the timer: leave callbacks.timer as it is"
            )

    @staticmethod
    def _timer(trainer: pl.Trainer) -> StageTimer | None:
        return next((c for c in trainer.callbacks if isinstance(c, StageTimer)), None)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.reason is not None:  # killed between the stop and its conclusion
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.seconds is None or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if (timer := self._timer(trainer)) is None:
            return
        spent = sum(seconds for stage, seconds in timer.seconds.items() if stage != "evaluate")
        if trainer.strategy.reduce_boolean_decision(spent >= self.seconds, all=False):
            self.reason = f"budget of {self.seconds:g} s of pre-computation and training spent at step {trainer.global_step}"
            trainer.should_stop = True
