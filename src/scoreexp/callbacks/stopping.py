"""Stop when a target is reached, and say so."""

from typing import Any, Literal

import pytorch_lightning as pl

from scoreexp.callbacks.monitor import CONFIRMED
from scoreexp.errors import UserError


class StopOnTarget(pl.Callback):
    """Stop training once a monitored value has reached ``target``.

    Watch a confirmed value (``val/ssim_confirmed``): one evaluation that touches the target by luck is then not enough. A
    run stopped this way stays stopped when it is resumed.

    Args:
        monitor: name of the logged value.
        target: the value to reach, or None to train to the end.
        mode: ``max`` stops at values >= target, ``min`` at values <= target.
    """

    def __init__(
        self,
        *,
        monitor: str = "val/ssim_confirmed",
        target: float | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        allowed = [
            *(f"val/{name}{suffix}" for name in CONFIRMED for suffix in ("_confirmed", "")),
            "val/psnr",
            "val/sliced_wasserstein",
            "val/score_error",
        ]
        if monitor not in allowed:
            raise UserError(f"stopping monitor {monitor!r} is never logged: allowed are {', '.join(allowed)}")
        if mode not in ("max", "min"):
            raise ValueError(f"stopping mode is {mode!r}: allowed are 'max' and 'min'")
        self.monitor, self.target, self.mode = monitor, target, mode
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "target": self.target}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.target is not None and state_dict["target"] == self.target:
            self.reason = state_dict["reason"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.reason is not None:  # killed between the stop and its conclusion
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if self.target is None or value is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        is_reached = value >= self.target if self.mode == "max" else value <= self.target
        if trainer.strategy.reduce_boolean_decision(bool(is_reached)):
            reached = f"{self.monitor} = {float(value):.4f} reached the target {self.target:g}"
            self.reason = f"{reached} at step {trainer.global_step}"
            trainer.should_stop = True
