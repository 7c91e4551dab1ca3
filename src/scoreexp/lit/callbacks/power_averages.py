"""Power-function averages kept beside a run, from which an average of any width is made afterwards."""

import copy
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import FromRun, PositiveInt
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.lit.callbacks.base import RunCallback
from scoreexp.lit.ema import PowerEMA, reconstructed
from scoreexp.lit.module import ScoreModule
from scoreexp.runs.checkpoint_file import read_checkpoint, write_checkpoint


class PowerAverages(RunCallback):
    """Keep averages of some widths and store them from time to time in ``checkpoints/averages``, a checkpoint for each.

    They take no part in the run, whose evaluations use its own average (``model.ema``). ``reconstruct`` makes a checkpoint
    of any other width from them. A resumed run goes on with them.

    >>> PowerAverages(folder="run/checkpoints", widths=(0.05, 0.1)).folder.as_posix()
    'run/checkpoints/averages'

    Args:
        folder: of the run's checkpoints.
        widths: of the averages, see ``PowerEMA``; two are enough.
        every_n_steps: interval at which they are stored; they are also stored at the end.

    Raises:
        ValueError: a width is outside (0, 0.28).
        UserError: on a run resumed from one that did not keep these averages.
    """

    @checked
    def __init__(
        self,
        *,
        folder: Annotated[str, FromRun("checkpoints")],
        widths: tuple[float, ...] = (0.05, 0.1),
        every_n_steps: PositiveInt = 1000,
    ) -> None:
        self.folder, self.every_n_steps = Path(folder) / "averages", every_n_steps
        self.laws = {f"{width:g}": PowerEMA(width=width) for width in widths}
        self.averages: dict[str, Denoiser] = {}
        self._found: dict[str, dict[str, torch.Tensor]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {width: average.state_dict() for width, average in self.averages.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if trainer.global_step and self._found.keys() != self.laws.keys():
            raise UserError(
                f"the run that is resumed kept the averages {sorted(self._found)}, not {sorted(self.laws)}: set "
                "callbacks.averages as it was, or begin a new run (init_from=)"
            )
        for width in self.laws:
            average = copy.deepcopy(pl_module.denoiser).requires_grad_(False)
            if width in self._found:
                average.load_state_dict(self._found[width])
            self.averages[width] = average

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ScoreModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        for width, law in self.laws.items():
            law.update(self.averages[width], pl_module.denoiser, trainer.global_step)
        if trainer.global_step % self.every_n_steps == 0:
            self._store(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        self._store(trainer, pl_module)

    def _store(self, trainer: pl.Trainer, module: ScoreModule) -> None:
        for width, average in self.averages.items():
            step = trainer.global_step
            path = self.folder / f"width_{width}_step_{step:08d}.ckpt"
            if trainer.is_global_zero and not path.exists():
                state = {f"denoiser.{key}": value for key, value in average.state_dict().items()}
                of = {"width": float(width), "step": step}
                write_checkpoint({"state_dict": state, "scoreexp": module.record, "average": of}, path)


def reconstruct(folder: str | Path, output: str | Path, *, width: float, step: int | None = None) -> None:
    """Write the checkpoint of the average of ``width`` at ``step`` from those that ``PowerAverages`` stored in ``folder``.

    The file serves wherever a checkpoint does.

    >>> reconstruct("no_such_folder", "any.ckpt", width=0.07)
    Traceback (most recent call last):
    scoreexp.core.errors.UserError: no_such_folder holds no stored averages: give checkpoints/averages of a run ...

    Args:
        folder: ``checkpoints/averages`` of a run.
        output: the file, replaced if it exists.
        width: in (0, 0.28), best between the stored widths or not far outside them.
        step: of training, at most the last one stored; that one by default.

    Raises:
        UserError: nothing is stored there.
        ValueError: ``step`` is later than what is stored, or ``width`` out of its range.
        CheckpointError: a file is damaged.
    """
    files = sorted(Path(folder).glob("width_*_step_*.ckpt"))
    if not files:
        raise UserError(
            f"{folder} holds no stored averages: give checkpoints/averages of a run with callbacks.averages"
        )
    read = [read_checkpoint(file) for file in files]
    stored = [(one["average"]["width"], one["average"]["step"], one["state_dict"]) for one in read]
    at = max(step for _, step, _ in stored) if step is None else step
    state = reconstructed(stored, PowerEMA(width=width).width, at)
    write_checkpoint(
        {"state_dict": state, "scoreexp": read[-1]["scoreexp"], "average": {"width": width, "step": at}},
        Path(output),
    )
