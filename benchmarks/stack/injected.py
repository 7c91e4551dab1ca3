"""What a test does to a run from inside: callbacks for ``+callbacks.fault._target_=injected.X`` of either stack."""

import json
import multiprocessing
import os
import signal
import zlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torchmetrics import SumMetric


class AtStep(pl.Callback):
    """Act at the start of the step after ``step`` finished ones, in the process ``rank`` (all of them by default)."""

    def __init__(self, step: int, rank: int | None = None) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= self.step and self.rank in (None, trainer.global_rank):
            self.act(batch)

    def act(self, batch: Any) -> None:
        raise NotImplementedError


class NaN(AtStep):
    """Data that are not a number."""

    def act(self, batch: Any) -> None:
        next(part for part in batch if part is not None).fill_(torch.nan)


class OutOfMemory(AtStep):
    """What torch raises where a GPU's memory is full."""

    def act(self, batch: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")


class Failure(AtStep):
    """An error in the user's own code."""

    def act(self, batch: Any) -> None:
        raise RuntimeError("the cause")


class Signal(AtStep):
    """A signal to this process, e.g. ``SIGTERM``, once."""

    def __init__(self, step: int, name: str, rank: int | None = None) -> None:
        super().__init__(step, rank)
        self.number: signal.Signals | None = signal.Signals[name]

    def act(self, batch: Any) -> None:
        if self.number is not None:
            os.kill(os.getpid(), self.number)
        self.number = None


class KillWorkers(AtStep):
    """SIGKILL to the processes that load data."""

    def act(self, batch: Any) -> None:
        for process in multiprocessing.active_children():
            process.kill()


class WeightsAtStart(pl.Callback):
    """Write the weights with which training begins, or goes on."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        torch.save(pl_module.state_dict(), self.file)


class InValidation(pl.Callback):
    """An error in the middle of an evaluation after ``step`` steps, or a signal to this process if one is named."""

    def __init__(self, step: int, name: str | None = None) -> None:
        self.step, self.name = step, name

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.name is None:
            raise RuntimeError("the cause")
        if trainer.global_step == self.step and self.name is not None:
            os.kill(os.getpid(), signal.Signals[self.name])


class Quality(pl.Callback):
    """Have the evaluations of a run find these values of ``val/ssim``, one after the other."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)
        self.is_found = False

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for callback in trainer.callbacks:
            if "ssim" in getattr(callback, "metrics", ()):
                callback.metrics["ssim"].compute = lambda: next(self.values)
                self.is_found = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.is_found and not trainer.sanity_checking:
            pl_module.log("val/ssim", next(self.values))


class Counting(torch.nn.Module):
    """A network of either stack with one weight and an integer buffer, which counts its training steps."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.downsampling_factor = 1
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        self.steps += int(self.training)
        return self.scale * x


class KillWhileSaving(AtStep):
    """SIGKILL when half of the next ``last.ckpt`` is written into the run's folder, or all is that is to be renamed."""

    def act(self, batch: Any) -> None:
        save, sendfile, rename = torch.save, os.sendfile, os.rename

        def deadly_save(data: Any, target: Any, *args: Any, **kwargs: Any) -> None:
            save(data, target, *args, **kwargs)
            if isinstance(target, Path) and "last" in target.name:
                os.truncate(target, target.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        def deadly_copy(target: int, source: int, offset: int, count: int) -> int:
            if Path(os.readlink(f"/proc/self/fd/{target}")).name != "last.ckpt":
                return sendfile(target, source, offset, count)
            sendfile(target, source, offset, os.fstat(source).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        def deadly_rename(source: Any, target: Any, **kwargs: Any) -> None:
            here = os.stat(source).st_dev == os.stat(Path(target).parent).st_dev
            if Path(target).name == "last.ckpt" and here:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target, **kwargs)

        torch.save, os.sendfile, os.rename = deadly_save, deadly_copy, deadly_rename


class FillDisk(AtStep):
    """Fill the disk of the file ``path`` but for ``left`` bytes."""

    def __init__(self, step: int, path: str, left: int = 0) -> None:
        super().__init__(step)
        self.path, self.left = Path(path), left

    def act(self, batch: Any) -> None:
        if not self.path.exists():
            disk = os.statvfs(self.path.parent)
            self.path.write_bytes(bytes(disk.f_bavail * disk.f_bsize - self.left))


class Trace(pl.Callback):
    """Write down, beside a run, where it starts, what each step sees and draws, and a digest of its end."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.noise: list[int] = []

    def write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for name in ("randn", "randn_like"):
            setattr(torch, name, self.watched(getattr(torch, name)))
        self.write(start=trainer.global_step, stopping=self.stopping(trainer))

    def stopping(self, trainer: pl.Trainer) -> list[str]:
        """What the callbacks remember of earlier evaluations."""
        kinds = ("EarlyStopping", "DenoisingMonitor")
        return [str(own.state_dict()) for own in trainer.callbacks if type(own).__name__ in kinds]

    def watched(self, draw: Any) -> Any:
        def drawn(*args: Any, **kwargs: Any) -> torch.Tensor:
            noise = draw(*args, **kwargs)
            self.noise.append(zlib.crc32(noise.numpy().tobytes()))
            return noise

        return drawn

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.noise.clear()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        samples = batch[0][:, 0] if isinstance(batch, list) else batch.index
        seen = {"samples": [int(k) for k in samples], "noise": self.noise}
        self.write(step=trainer.global_step, stopping=self.stopping(trainer), **seen)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        digest = 0
        for value in pl_module.state_dict().values():
            digest = zlib.crc32(value.numpy().tobytes(), digest)
        self.write(end=digest)


class Observe(pl.Callback):
    """Write what each process sees of a run into ``observed/<its number>.json`` in the run's folder.

    How many processes it thinks there are, which samples the last evaluation gave it, how many these are over all
    processes by a metric, the first noise that it trained on, and whether the run came to its end.
    """

    def __init__(self) -> None:
        self.count = SumMetric()
        self.seen: dict[str, Any] = {"noise": [], "ended": False}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.file = Path(trainer.default_root_dir) / "observed" / f"{os.getpid()}.json"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.seen["processes"] = trainer.world_size
        self.write()
        owner, name = (pl_module, "_draws") if hasattr(pl_module, "_draws") else (torch, "randn_like")
        draw = getattr(owner, name)

        def drawn(*args: Any, **kwargs: Any) -> Any:
            result = draw(*args, **kwargs)
            noise = result[-1] if isinstance(result, tuple) else result
            self.seen["noise"] = self.seen["noise"] or noise.flatten()[:8].tolist()
            return result

        setattr(owner, name, drawn)

    def write(self) -> None:
        self.file.write_text(json.dumps(self.seen))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.count.reset()
        self.seen["samples"] = []

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        samples = batch[0][:, 0] if isinstance(batch, list) else batch.index
        self.count.update(len(samples))
        self.seen["samples"] += [int(k) for k in samples]

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen["count"] = int(self.count.compute())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen["ended"] = True
        self.write()
