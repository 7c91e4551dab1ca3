"""Denoise the same noisy pictures again and again during training: the metric that runs are stopped and compared on."""

import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import sigma_to_model, to_unit
from scoreexp.core.types import FromRun, NonNegativeInt, PositiveFloat, PositiveInt
from scoreexp.figures.images import denoising_strip, save_pixels
from scoreexp.lit.callbacks.base import Curves, NextCommand, RunCallback
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics.catalogue import metric_named, specs
from scoreexp.metrics.functional import WINDOW_SIZE
from scoreexp.restorers import BySampling
from scoreexp.restorers.denoising import denoise_observed, observe
from scoreexp.runs.directory import shown
from scoreexp.samplers import Sampler
from scoreexp.schedules import Schedule
from scoreexp.system.atomic import atomic_write

CONFIRMED = ("ssim", "ssim_global")
MEASURED = sorted(spec.name for spec in specs("pictures") if spec.usual and spec.needs == "pairs")
LOGGED = (*(f"{name}_confirmed" for name in CONFIRMED), *MEASURED)  # what a run may be stopped on


class DenoisingMonitor(RunCallback):
    """Log the usual metrics of denoised validation pictures: ``val/ssim``, ``val/ssim_global``, ``val/psnr``, ``val/mse``.

    The observation is y = x + sigma z with z a function of (seed, picture index), the same at every evaluation; it is
    not clipped. The sampler starts at the time at which the schedule has that noise level. ``val/ssim_confirmed``
    and ``val/ssim_global_confirmed`` are the minima of the last ``confirm`` evaluations, logged once there are that many:
    a single lucky evaluation does not count.

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> monitor = DenoisingMonitor(sampler=DDIM(UniformGrid(20)), folder="pictures", sigma=0.2)
    >>> monitor.require_reachable(VP())
    >>> sorted(monitor.metrics)
    ['mse', 'psnr', 'ssim', 'ssim_global']

    Args:
        sampler: how pictures are denoised.
        sigma: noise level of the observation, in units of the [0, 1] range (twice that in the model's [-1, 1]).
        confirm: number of evaluations in a row that the confirmed values stand on.
        folder: where the picture strips go, and in ``last/`` the first picture of the last evaluation, pixel by pixel.
        pictures: pictures shown in a strip.
        intermediate: states between noisy and denoised shown in a strip.
        seed: names the noise.
    """

    curves = (Curves(("val/ssim", "val/ssim_global"), "ssim.png", "SSIM of denoised validation pictures"),)

    @checked
    def __init__(
        self,
        *,
        sampler: Annotated[Sampler, FromRun("sampler")],
        folder: Annotated[str, FromRun("pictures")],
        sigma: Annotated[PositiveFloat, "in units of the [0, 1] range; 0.1 to 0.5 are usual"] = 0.5,
        confirm: PositiveInt = 2,
        pictures: NonNegativeInt = 4,
        intermediate: NonNegativeInt = 3,
        seed: Annotated[int, FromRun("seed")] = 0,
    ) -> None:
        self.sampler, self.sigma, self.confirm, self.seed = sampler, sigma, confirm, seed
        self.folder, self.pictures, self.intermediate = Path(folder), pictures, intermediate
        self.evaluations, self.picture = confirm, self.folder / "best.png"
        self.metrics = {name: metric_named(name, "pictures")() for name in MEASURED}
        self.recent = {name: deque[float](maxlen=confirm) for name in CONFIRMED}
        self.best_ssim = -float("inf")
        self._shown: list[list[Tensor]] = []
        self._nfe = 0

    def state_dict(self) -> dict[str, Any]:
        return {"recent": {k: list(v) for k, v in self.recent.items()}, "best_ssim": self.best_ssim}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent = {k: deque(v, maxlen=self.confirm) for k, v in state_dict["recent"].items()}
        self.best_ssim = state_dict["best_ssim"]

    def require_reachable(self, schedule: Schedule) -> None:
        """Refuse, before anything is trained, a noise level from which the sampler cannot start on ``schedule``."""
        self.sampler.start(schedule, torch.zeros(1, 1), sigma_to_model(self.sigma))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.max_steps == trainer.global_step:  # the final weights are evaluated, whatever the interval
            trainer.should_stop = True

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = []
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: ScoreModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model = pl_module.evaluation_denoiser
        x, index = batch.x, batch.index
        if not len(x):  # fewer pictures than devices
            return
        observation = observe(x, index, self.sigma, self.seed)
        result = denoise_observed(
            BySampling(self.sampler),
            model,
            observation,
            index,
            self.seed,
            cond=batch.cond,
            keep=self.intermediate + 2,
        )
        self._nfe = result.nfe
        clean, denoised = to_unit(x), to_unit(result.x).clamp(0, 1)
        for metric in self.metrics.values():
            metric.update(denoised, clean)
        if trainer.is_global_zero and len(self._shown) < self.pictures:
            states = [x, observation.y, *result.trajectory[1:-1], result.x]
            for i in range(min(len(x), self.pictures - len(self._shown))):
                self._shown.append([to_unit(state[i]).clamp(0, 1).cpu() for state in states])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        if trainer.sanity_checking:
            return
        for name in CONFIRMED:
            self.recent[name].append(values[name])
            if len(self.recent[name]) == self.confirm:
                values[f"{name}_confirmed"] = min(self.recent[name])
        for name, value in values.items():
            pl_module.log(f"val/{name}", value)
        pl_module.log("val/nfe", float(self._nfe))
        pl_module.log("step", float(trainer.global_step))
        self._write_strips(trainer, values["ssim"])

    def _write_strips(self, trainer: pl.Trainer, ssim: float) -> None:
        if not (trainer.is_global_zero and self._shown):
            return
        title = f"step {trainer.global_step}, noise sigma = {self.sigma:g}, {self._nfe} network evaluations"
        strip = self.folder / f"step_{trainer.global_step:07d}.png"
        denoising_strip(self._shown, strip, title)
        states = self._shown[0]
        for name, state in {"clean": states[0], "noisy": states[1], "denoised": states[-1]}.items():
            save_pixels(state, self.folder / "last" / f"{name}.png")
        if ssim > self.best_ssim:
            self.best_ssim = ssim
            with atomic_write(self.folder / "best.png") as temporary:
                shutil.copyfile(strip, temporary)

    def require_suits(self, module: ScoreModule) -> None:
        shape = module.denoiser.event_shape
        kind = kind_of(shape)
        if not isinstance(kind, Images):
            raise UserError(
                f"callbacks.monitor denoises pictures, but samples have the shape {shape}: set callbacks=points"
            )
        if (size := min(kind.height, kind.width)) < WINDOW_SIZE:
            raise UserError(
                f"data.size={size}: the SSIM of callbacks.monitor has windows of {WINDOW_SIZE} pixels, give at least "
                f"{WINDOW_SIZE} or set callbacks.monitor=null callbacks.stop=null"
            )
        self.require_reachable(module.denoiser.schedule)

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if "val/ssim" not in metrics:
            return None
        return (
            f"denoising from sigma {self.sigma:g}: SSIM {metrics['val/ssim']:.3f}, "
            f"global SSIM {metrics['val/ssim_global']:.3f}, PSNR {metrics['val/psnr']:.1f} dB; "
            f"best SSIM {metrics.get('best/ssim', metrics['val/ssim']):.3f}"
        )

    def next_commands(self) -> Sequence[NextCommand]:
        noisy = self.folder / "last" / "noisy.png"
        if not noisy.exists():
            return ()
        denoise = NextCommand("denoise", {"input": shown(noisy), "sigma": self.sigma, "output": "clean.png"})
        return [denoise, NextCommand("sample", {"n": 16})]
