"""Ctrl-C, SIGTERM and a closed terminal stop a run between two steps, with everything saved."""

import contextlib
import signal
import sys
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from scoreexp.system.signals import stop_signals


class Interrupted(BaseException):
    """A signal asked the run to stop.

    >>> try:
    ...     raise Interrupted(signal.SIGTERM, between_steps=True)
    ... except Interrupted as stop:
    ...     print(stop, stop.exit_code)
    stopped by SIGTERM 143

    Attributes:
        exit_code: 128 + the signal's number (130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal).
        between_steps: whether the step under way was finished first, so that the state may be saved.
    """

    def __init__(self, signum: int, *, between_steps: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.exit_code, self.between_steps = signum, 128 + signum, between_steps


class StopOnSignal(pl.Callback):
    """Let the step under way finish, then leave through ``Interrupted``; a second signal stops at once.

    ``Checkpoints`` writes ``last.ckpt`` when it sees that exception.

    >>> trainer = pl.Trainer(callbacks=[StopOnSignal()], logger=False, enable_checkpointing=False)
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._speaks = True
        self._previous: dict[int, Any] = {}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise Interrupted(signum, between_steps=False)
        self._received = signum
        if self._speaks:
            with contextlib.suppress(OSError):  # the terminal may be gone
                sys.stderr.write(
                    f"\n{signal.Signals(signum).name}: finishing this step and saving; once more to stop at once\n"
                )
                sys.stderr.flush()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._speaks = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            for signum in stop_signals():
                self._previous[signum] = signal.signal(signum, self._handle)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        anywhere = self._received or 0
        if trainer.world_size > 1:  # all ranks stop at the same step
            received = torch.tensor(anywhere, device=pl_module.device)  # a plain number would not be reduced
            anywhere = int(trainer.strategy.reduce(received, reduce_op="max"))
        if anywhere:
            raise Interrupted(anywhere, between_steps=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()
