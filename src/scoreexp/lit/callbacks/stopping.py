"""Stop when a target is reached, and say so."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks.base import RunCallback
from scoreexp.lit.callbacks.distribution_monitor import DistributionMonitor
from scoreexp.lit.callbacks.monitor import CONFIRMED

_MODES: dict[str, Literal["max", "min"]] = {
    **{f"val/{name}{suffix}": "max" for name in CONFIRMED for suffix in ("_confirmed", "")},
    "val/psnr": "max",
    "val/sliced_wasserstein": "min",
    "val/score_error": "min",
}
_OF_GENERATED = re.compile(
    r"val/(precision|recall|frechet|fid|kernel|kid|sliced_wasserstein)_\w+_\d+k?"
)  # such as val/fid_inception_5k


def _mode_of(monitor: str) -> Literal["max", "min"]:
    """Whether the larger or the smaller value is the better one.

    Raises:
        UserError: no monitor logs it.
    """
    if found := _OF_GENERATED.fullmatch(monitor):
        return "max" if found[1] in ("precision", "recall") else "min"
    if monitor not in _MODES:
        raise UserError(
            f"stopping monitor {monitor!r} is never logged: allowed are {', '.join(_MODES)}, and with callbacks=fid what "
            "it logs, such as val/frechet_random_conv_500"
        )
    return _MODES[monitor]


class StopOnTarget(RunCallback):
    """Stop training once a monitored value has reached ``target``.

    Watch a confirmed value (``val/ssim_confirmed``): one evaluation that touches the target by luck is then not enough. A
    run stopped this way stays stopped when it is resumed.

    Args:
        monitor: name of the logged value.
        target: the value to reach, or None to train to the end.
        mode: ``max`` stops at values >= target, ``min`` at values <= target, as the value asks.

    Raises:
        UserError: the value is never logged, or gets better the other way; of a distance of generated pictures, what is
            logged is known when training starts.
    """

    @checked
    def __init__(
        self,
        *,
        monitor: str = "val/ssim_confirmed",
        target: float | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        if mode != (better := _mode_of(monitor)):
            extreme = "larger" if better == "max" else "smaller"
            raise UserError(
                f"stopping mode is {mode!r}, but {monitor} is the better the {extreme}: set callbacks.stop.mode={better}"
            )
        self.monitor, self.target, self.mode = monitor, target, mode
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "target": self.target}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.target is not None and state_dict["target"] == self.target:
            self.reason = state_dict["reason"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.target is None or not _OF_GENERATED.fullmatch(self.monitor):
            return
        measuring = [c for c in trainer.callbacks if isinstance(c, DistributionMonitor)]  # type: ignore[attr-defined]
        logged = [f"val/{name}" for callback in measuring for name in callback.names]
        if self.monitor not in logged:
            raise UserError(
                f"callbacks.stop.monitor={self.monitor} is not logged by this run: of generated pictures it logs "
                f"{', '.join(logged) or 'nothing, set callbacks=fid'}"
            )

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

    def targets(self) -> Mapping[str, float]:
        return {} if self.target is None else {self.monitor: self.target}
