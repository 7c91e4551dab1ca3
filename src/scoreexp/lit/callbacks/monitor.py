"""Restore the same observed images again and again during training: the metric that runs are stopped and compared on."""

import shutil
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import sigma_to_model, sigma_to_unit, to_unit
from scoreexp.core.types import FromRun, NonNegativeInt, PositiveFloat, PositiveInt
from scoreexp.figures.images import denoising_strip, save_pixels
from scoreexp.lit.callbacks.base import Curves, Monitor, NextCommand
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics.catalogue import metric_named, specs
from scoreexp.metrics.functional import WINDOW_SIZE
from scoreexp.observations import (
    BoxMask,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    Identity,
    MotionBlur,
    NoiseModel,
    Observation,
    Operator,
    RandomMask,
    SuperResolution,
)
from scoreexp.restorers import BySampling, Conditioned, Restoration, Restorer
from scoreexp.restorers.denoising import denoise_observed, observe_through
from scoreexp.runs.directory import shown
from scoreexp.samplers import Sampler
from scoreexp.schedules import Schedule
from scoreexp.system.atomic import atomic_write

CONFIRMED = ("ssim", "ssim_global")
MEASURED = tuple(sorted(spec.name for spec in specs("pictures") if spec.usual and spec.needs == "pairs"))
GENERATED = ("ssim_rescaled",)  # by GenerationMonitor beside these
TASKS: dict[type[Operator], str] = {  # conf/task, which the command restore takes
    Identity: "denoise",
    RandomMask: "inpaint",
    BoxMask: "inpaint_box",
    GaussianBlur: "deblur",
    MotionBlur: "deblur_motion",
    SuperResolution: "super_resolution",
    Grayscale: "gray",
}
LOGGED = (*(f"{name}_confirmed" for name in CONFIRMED), *MEASURED)  # what a run may be stopped on
LOGGED_GENERATED = (*(f"{name}_confirmed" for name in GENERATED), *GENERATED)


class RestorationMonitor(Monitor):
    """Log the usual metrics of restored validation images: ``val/ssim``, ``val/ssim_global``, ``val/psnr``, ``val/mse``.

    The observation is ``y = noise(A(x))`` with draws that are a function of (seed, image index), the same at every
    evaluation; it is not clipped. ``val/ssim_confirmed`` and ``val/ssim_global_confirmed`` are the minima of the last
    ``confirm`` evaluations, logged once there are that many: a single lucky evaluation does not count.

    >>> from scoreexp.observations import GaussianBlur
    >>> from scoreexp.restorers import Conditioned
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> monitor = RestorationMonitor(
    ...     restorer=Conditioned(DDIM(UniformGrid(5))),
    ...     operator=GaussianBlur(sigma=1.6, size=32),
    ...     noise=GaussianNoise(0.1),
    ...     folder="pictures",
    ... )
    >>> monitor.task
    'restoring from GaussianBlur with GaussianNoise'

    Args:
        restorer: how images are restored.
        operator: ``A`` of the observation.
        noise: the law of ``y`` given ``A(x)``.
        confirm: number of evaluations in a row that the confirmed values stand on.
        folder: where the image strips go, and in ``last/`` the first image of the last evaluation, pixel by pixel;
            observations are shown in the shape of the image.
        pictures: number of images shown in a strip.
        intermediate: states between observed and restored shown in a strip.
        seed: names the noise.
    """

    curves = (Curves(("val/ssim", "val/ssim_global"), "ssim.png", "SSIM of restored validation images"),)
    measured: ClassVar[tuple[str, ...]] = MEASURED
    confirmed: ClassVar[tuple[str, ...]] = CONFIRMED
    labels: ClassVar[tuple[str, str, str]] = ("clean", "noisy", "denoised")

    @checked
    def __init__(
        self,
        *,
        restorer: Restorer,
        operator: Operator,
        noise: NoiseModel,
        folder: Annotated[str, FromRun("pictures")],
        confirm: PositiveInt = 2,
        pictures: NonNegativeInt = 4,
        intermediate: NonNegativeInt = 3,
        seed: Annotated[int, FromRun("seed")] = 0,
    ) -> None:
        self.restorer, self.operator, self.noise = restorer, operator, noise
        self.confirm, self.seed = confirm, seed
        self.folder, self.pictures, self.intermediate = Path(folder), pictures, intermediate
        self.evaluations, self.picture = confirm, self.folder / "best.png"
        self.metrics = {name: metric_named(name, "pictures")() for name in self.measured}
        self.recent = {name: deque[float](maxlen=confirm) for name in self.confirmed}
        self.best_ssim = -float("inf")
        self._shown: list[list[Tensor]] = []
        self._nfe = 0

    def state_dict(self) -> dict[str, Any]:
        return {"recent": {k: list(v) for k, v in self.recent.items()}, "best_ssim": self.best_ssim}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recent = {k: deque(v, maxlen=self.confirm) for k, v in state_dict["recent"].items()}
        self.best_ssim = state_dict["best_ssim"]

    @property
    def observed(self) -> str:
        """What the observation is, in words."""
        return f"{type(self.operator).__name__} with {type(self.noise).__name__}"

    @property
    def task(self) -> str:
        """What is done with it, in words."""
        return f"restoring from {self.observed}"

    def _begins(self, observation: Observation, result: Restoration) -> Tensor:
        """What a strip shows beside the clean image."""
        return observation.pulled_back(result.x.shape[1:])

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
        if not len(x):  # fewer images than devices
            return
        observation = observe_through(x, index, self.operator, self.noise, self.seed)
        result = denoise_observed(
            self.restorer,
            model,
            observation,
            index,
            self.seed,
            cond=batch.cond,
            keep=self.intermediate + 2,
        )
        self._nfe = result.nfe
        clean, denoised = to_unit(x), to_unit(result.x)
        for metric in self.metrics.values():
            metric.update(denoised, clean)
        if trainer.is_global_zero and len(self._shown) < self.pictures:
            states = [x, self._begins(observation, result), *result.trajectory[1:-1], result.x]
            for i in range(min(len(x), self.pictures - len(self._shown))):
                self._shown.append([to_unit(state[i]).clamp(0, 1).cpu() for state in states])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        if trainer.sanity_checking:
            return
        for name in self.confirmed:
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
        title = f"step {trainer.global_step}, {self.observed}, {self._nfe} network evaluations"
        strip = self.folder / f"step_{trainer.global_step:07d}.png"
        denoising_strip(self._shown, strip, title, self.labels)
        first, second, *_, last = self._shown[0]
        for name, state in zip(self.labels, (first, second, last), strict=True):
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
                f"callbacks.monitor restores images, but samples have the shape {shape}: set callbacks=points"
            )
        if (size := min(kind.height, kind.width)) < WINDOW_SIZE:
            raise UserError(
                f"data.size={size}: the SSIM of callbacks.monitor has windows of {WINDOW_SIZE} pixels, give at least "
                f"{WINDOW_SIZE} or set callbacks.monitor=null callbacks.stop=null"
            )
        self.operator.output_shape(shape)

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if "val/ssim" not in metrics:
            return None
        return (
            f"{self.task}: SSIM {metrics['val/ssim']:.3f}, "
            f"global SSIM {metrics['val/ssim_global']:.3f}, PSNR {metrics['val/psnr']:.1f} dB; "
            f"best SSIM {metrics.get('best/ssim', metrics['val/ssim']):.3f}"
        )

    def next_commands(self) -> Sequence[NextCommand]:
        if not self._noisy.exists():
            return ()
        task = TASKS.get(type(self.operator))
        if (
            task is None
            or not isinstance(self.restorer, Conditioned)
            or not isinstance(self.noise, GaussianNoise)
        ):
            return [NextCommand("evaluate", {})]
        given = {"restorer": "conditioned"}
        level = {"sigma": sigma_to_unit(self.noise.sigma)} if self.noise.sigma else {}
        if isinstance(self.operator, Identity):
            return [
                NextCommand("denoise", {"input": shown(self._noisy), **given, "output": "clean.png", **level})
            ]
        clean = {"input": shown(self._noisy.with_name("clean.png")), "simulate": "true"}
        return [NextCommand("restore", {**clean, "task": task, **given, "output": "restored.png", **level})]

    @property
    def _noisy(self) -> Path:
        """The first observation of the last evaluation."""
        return self.folder / "last" / "noisy.png"


class GenerationMonitor(RestorationMonitor):
    """Log those metrics and ``val/ssim_rescaled`` of images that ``ConditionalStart`` generates (arXiv 2404.06661).

    Every validation image is compared with what is generated for it: with ``weight=0``, from noise alone, that means
    something where one image is trained on.

    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.restorers import ConditionalStart
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> monitor = GenerationMonitor(
    ...     restorer=ConditionalStart(DDIM(UniformGrid(5)), weight=0.2),
    ...     operator=Identity(),
    ...     noise=GaussianNoise(0.0),
    ...     folder="pictures",
    ... )
    >>> monitor.task, "ssim_rescaled" in monitor.metrics
    ('generating with ConditionalStart', True)

    Args:
        restorer: how images are generated.
        operator: as of ``RestorationMonitor``, like the further arguments; the identity without noise observes the image.
        noise: of the observation.
        folder: of the image strips.
        confirm: evaluations in a row.
        pictures: number of images shown in a strip.
        intermediate: states shown.
        seed: names the noise.
    """

    curves = (Curves(("val/ssim_rescaled", "val/ssim"), "ssim.png", "SSIM of generated images"),)
    measured = (*MEASURED, *GENERATED)
    confirmed = (*CONFIRMED, *GENERATED)
    labels = ("clean", "start", "generated")

    @property
    def observed(self) -> str:
        return self.task

    @property
    def task(self) -> str:
        return f"generating with {type(self.restorer).__name__}"

    def _begins(self, observation: Observation, result: Restoration) -> Tensor:
        return result.trajectory[0]

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if "val/ssim_rescaled" not in metrics:
            return None
        return (
            f"{self.task}: SSIM of rescaled images {metrics['val/ssim_rescaled']:.3f}, SSIM {metrics['val/ssim']:.3f}, "
            f"PSNR {metrics['val/psnr']:.1f} dB"
        )

    def next_commands(self) -> Sequence[NextCommand]:
        return [NextCommand("sample", {"n": 16})]


class DenoisingMonitor(RestorationMonitor):
    """Log those metrics of denoised images: the observation is ``y = x + sigma z``, as in ``RestorationMonitor``.

    The sampler starts at the time at which the schedule has that noise level.

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> monitor = DenoisingMonitor(sampler=DDIM(UniformGrid(20)), folder="pictures", sigma=0.2)
    >>> monitor.require_reachable(VP())
    >>> sorted(monitor.metrics)
    ['mse', 'psnr', 'ssim', 'ssim_global']

    Args:
        sampler: how images are denoised.
        sigma: noise level of the observation, in units of the [0, 1] range (twice that in the model's [-1, 1]).
        folder: as of ``RestorationMonitor``, like the further arguments.
        confirm: evaluations in a row.
        pictures: number of images shown in a strip.
        intermediate: states shown.
        seed: names the noise.
    """

    curves = (Curves(("val/ssim", "val/ssim_global"), "ssim.png", "SSIM of denoised validation images"),)

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
        super().__init__(
            restorer=BySampling(sampler),
            operator=Identity(),
            noise=GaussianNoise(sigma_to_model(sigma)),
            folder=folder,
            confirm=confirm,
            pictures=pictures,
            intermediate=intermediate,
            seed=seed,
        )
        self.sampler, self.sigma = sampler, sigma

    @property
    def observed(self) -> str:
        return f"noise sigma = {self.sigma:g}"

    @property
    def task(self) -> str:
        return f"denoising from sigma {self.sigma:g}"

    def require_reachable(self, schedule: Schedule) -> None:
        """Refuse, before anything is trained, a noise level from which the sampler cannot start on ``schedule``."""
        self.sampler.start(schedule, torch.zeros(1, 1), sigma_to_model(self.sigma))

    def require_suits(self, module: ScoreModule) -> None:
        super().require_suits(module)
        self.require_reachable(module.denoiser.schedule)

    def next_commands(self) -> Sequence[NextCommand]:
        if not self._noisy.exists():
            return ()
        settings = {"input": shown(self._noisy), "sigma": self.sigma, "output": "clean.png"}
        return [NextCommand("denoise", settings), NextCommand("sample", {"n": 16})]
