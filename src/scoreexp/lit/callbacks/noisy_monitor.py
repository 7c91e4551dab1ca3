"""Follow a training on noisy images, of which nobody has clean ones."""

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
from scoreexp.core.ranges import sigma_to_model, sigma_to_unit, to_unit
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.core.types import FromRun, NonNegativeInt, PositiveFloat
from scoreexp.figures.images import comparison, save_pixels
from scoreexp.lit.callbacks.base import Curves, Monitor, NextCommand
from scoreexp.lit.module import ScoreModule
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import BySampling
from scoreexp.restorers.denoising import denoise_observed
from scoreexp.runs.directory import shown
from scoreexp.samplers import Sampler


class NoisyMonitor(Monitor):
    """Log what can be known of denoised validation images without clean ones, and draw them.

    ``val/loss`` is the objective on the validation images, with draws that are the same at every evaluation; the least of
    them is the best model as far as the objective goes. ``val/removed`` is the standard deviation of what the model takes
    away, in units of the [0, 1] range: near that of the noise if it is known.

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> monitor = NoisyMonitor(sampler=DDIM(UniformGrid(1)), folder="pictures", sigma=0.1)
    >>> monitor.picture is None
    True

    Args:
        sampler: how images are denoised.
        folder: where the figures go, and in ``last/`` the first image of the last evaluation.
        sigma: noise level that the model is told, in units of the [0, 1] range; half of ``schedule.sigma``.
        pictures: number of images shown in a strip.
        seed: names the draws.
    """

    curves = (Curves(("val/loss",), "val_loss.png", "objective on the validation images"),)

    @checked
    def __init__(
        self,
        *,
        sampler: Annotated[Sampler, FromRun("sampler")],
        folder: Annotated[str, FromRun("pictures")],
        sigma: PositiveFloat,
        pictures: NonNegativeInt = 2,
        seed: Annotated[int, FromRun("seed")] = 0,
    ) -> None:
        self.restorer, self.sigma, self.pictures, self.seed = BySampling(sampler), sigma, pictures, seed
        self.folder = Path(folder)
        self._sums: dict[str, list[Tensor]] = {}
        self._shown: list[list[Tensor]] = []

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums, self._shown = {"loss": [], "square": []}, []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: ScoreModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        y, model = batch.x, pl_module.evaluation_denoiser
        if y is None or not len(y):  # fewer images than devices
            return
        noise = ImageStreams([stream_seed(self.seed, "monitor", i) for i in batch.index.tolist()]).normal(y)
        t = pl_module.time_law.sample(len(y), model.schedule, generator(self.seed, "monitor time", batch_idx))
        observation = Observation(y, Identity(), GaussianNoise(sigma_to_model(self.sigma)))
        x = denoise_observed(self.restorer, model, observation, batch.index, self.seed).x
        self._sums["loss"].append(pl_module.objective(model, batch, t, noise))
        self._sums["square"].append((y - x).square().flatten(1).mean(1))
        for noisy, clean in zip(y, x):
            if len(self._shown) < self.pictures and trainer.is_global_zero:
                self._shown.append([to_unit(state).clamp(0, 1).cpu() for state in (noisy, clean)])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        if trainer.sanity_checking:
            return
        means = {}
        for name, parts in self._sums.items():
            values = torch.cat([*parts, torch.zeros(0, device=pl_module.device)])
            total = torch.stack([values.sum(), values.new_tensor(len(values))])
            total = trainer.strategy.reduce(total, reduce_op="sum")  # images are shared out unevenly
            means[name] = total[0] / total[1]
        pl_module.log("val/loss", means["loss"])
        pl_module.log("val/removed", sigma_to_unit(float(means["square"].sqrt())))
        pl_module.log("step", float(trainer.global_step))
        if trainer.is_global_zero and self._shown:
            self.picture = self.folder / f"step_{trainer.global_step:07d}.png"
            flat = [state.movedim(0, -1).numpy() for states in self._shown for state in states]
            comparison(flat, ["noisy", "denoised"] * len(self._shown), self.picture)
            for name, state in zip(("noisy", "denoised"), self._shown[0], strict=True):
                save_pixels(state, self.folder / "last" / f"{name}.png")

    def require_suits(self, module: ScoreModule) -> None:
        shape = module.denoiser.event_shape
        if not isinstance(kind_of(shape), Images):
            raise UserError(
                f"callbacks.monitor denoises images, but samples have the shape {shape}: set callbacks=points"
            )
        level = sigma_to_model(self.sigma)
        try:
            self.restorer.sampler.start(module.denoiser.schedule, torch.zeros(1, 1), level)
        except ValueError as error:
            raise UserError(
                f"callbacks.monitor.sigma={self.sigma:g} is {level:g} in units of [-1, 1], which the schedule lacks: set "
                "schedule.sigma to twice callbacks.monitor.sigma"
            ) from error

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if "val/loss" not in metrics:
            return None
        return (
            f"objective on validation images {metrics['val/loss']:.4g}; takes away noise of sigma "
            f"{metrics['val/removed']:.3g} (no clean images, so no PSNR)"
        )

    def next_commands(self) -> Sequence[NextCommand]:
        noisy = self.folder / "last" / "noisy.png"
        if not noisy.exists():
            return ()
        return [NextCommand("denoise", {"input": shown(noisy), "sigma": self.sigma, "output": "clean.png"})]
