"""Stop when a target is reached, and say so."""

from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks import monitor as denoising
from scoreexp.lit.callbacks import points_monitor as points
from scoreexp.lit.callbacks.base import RunCallback
from scoreexp.lit.callbacks.direction import mode_of
from scoreexp.lit.callbacks.distribution_monitor import DistributionMonitor
from scoreexp.metrics.catalogue import spec_of

_ALWAYS_LOGGED = tuple(f"val/{name}" for name in (*denoising.LOGGED, *points.LOGGED))
_GENERATED = tuple(f"val/{name}" for name in denoising.LOGGED_GENERATED)


def _is_of_generated(monitor: str) -> bool:
    """Whether it is a distance of generated images, such as ``val/fid_inception_5k``.

    Raises:
        UserError: no monitor logs it.
    """
    if monitor in (*_ALWAYS_LOGGED, *_GENERATED):
        return False
    spec = spec_of(monitor)
    if spec is None or spec.needs != "pictures":
        raise UserError(
            f"stopping monitor {monitor!r} is never logged: allowed are {', '.join(_ALWAYS_LOGGED)}, and with callbacks=fid "
            "what it logs, such as val/frechet_random_conv_500"
        )
    return True


class StopOnTarget(RunCallback):
    """Stop training once a monitored value has reached ``target``.

    Watch a confirmed value (``val/ssim_confirmed``): one evaluation that touches the target by luck is then not enough. A
    run stopped this way stays stopped when it is resumed.

    >>> stop = StopOnTarget(monitor="val/psnr", target=30.0)
    >>> stop.mode, stop.targets()
    ('max', {'val/psnr': 30.0})

    Args:
        monitor: name of the logged value.
        target: the value to reach, or None to train to the end.
        mode: ``max`` stops at values >= target, ``min`` at values <= target; None does what the metric says.

    Raises:
        UserError: the value is never logged, or gets better the other way; of a distance of generated images, what is
            logged is known when training starts.
    """

    @checked
    def __init__(
        self,
        *,
        monitor: str = "val/ssim_confirmed",
        target: float | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        self._of_generated = _is_of_generated(monitor)
        self.monitor, self.target, self.mode = monitor, target, mode_of(monitor, mode, "stop.mode")
        self.reason: str | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "target": self.target}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.target is not None and state_dict["target"] == self.target:
            self.reason = state_dict["reason"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.target is None:
            return
        generates = any(isinstance(c, denoising.GenerationMonitor) for c in trainer.callbacks)  # type: ignore[attr-defined]
        if self.monitor in _GENERATED and not generates:
            raise UserError(
                f"callbacks.stop.monitor={self.monitor} is not logged by this run: set callbacks=generation"
            )
        if not self._of_generated:
            return
        measuring = [c for c in trainer.callbacks if isinstance(c, DistributionMonitor)]  # type: ignore[attr-defined]
        logged = [f"val/{name}" for callback in measuring for name in callback.names]
        if self.monitor not in logged:
            raise UserError(
                f"callbacks.stop.monitor={self.monitor} is not logged by this run: of generated images it logs "
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
