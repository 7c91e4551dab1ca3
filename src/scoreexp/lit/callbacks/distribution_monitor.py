"""Measure how far generated images are from real ones, during training."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_uint8, to_unit
from scoreexp.core.types import AtLeastTwo, NonNegativeInt, PositiveFloat, PositiveInt
from scoreexp.data.module import DataModule
from scoreexp.data.split import SplitName
from scoreexp.figures.images import GRID, image_grid
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics import FeatureExtractor, MetricValue, MissingWeightsError, SampleMetric
from scoreexp.metrics.catalogue import metric_named, specs
from scoreexp.metrics.real_samples import reference_of
from scoreexp.samplers import Sampler, draw, labels_for
from scoreexp.system.json_files import write_json

_log = logging.getLogger(__name__)


class DistributionMonitor(pl.Callback):
    """Log a distance between generated and real images, such as ``val/frechet_random_conv_500``.

    The images are those of the seeds ``first_seed ... first_seed + n - 1`` drawn with the weights that validation
    uses (the averaged ones if there are), so every measurement starts from the same noise, and
    ``python -m scoreexp.evaluate`` gives the same value for the same seeds and sampler. It happens inside of an
    evaluation, the first after an interval has passed and the one after the last step, and counts as evaluation
    in the times of a run. On several devices each draws its share; the value does not depend on their number.

    A model with classes draws the label ``seed % classes``. The weights of a published network may be missing: training
    goes on without the metric, and the log says at its beginning and end that it was not run.

    >>> from scoreexp.metrics import RandomConvFeatures
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> monitor = DistributionMonitor(
    ...     sampler=DDIM(UniformGrid(20)),
    ...     features=RandomConvFeatures,
    ...     folder="pictures",
    ...     metric="kernel",
    ...     n=100,
    ... )
    >>> monitor.metric, monitor.n, monitor.split
    ('kernel', 100, 'train')

    Args:
        sampler: how images are drawn.
        features: makes the extractor (a Hydra ``_partial_``); only that of the published Inception network makes
            the value an FID or KID.
        folder: where the overview of each measurement and the last values with their cards (``values.json``) go.
        metric: what is measured: the name of a metric of generated images, or the dotted name of a ``SampleMetric``.
        n: number of generated images.
        first_seed: of the generated images.
        split: what they are compared with.
        reference_n: compare with the first n images of it only; null is all.
        batch_size: images drawn at once per device; does not change them.
        every_n_steps: steps between measurements; with neither interval every evaluation measures.
        every_n_seconds: seconds between measurements, those of evaluation included.

    Raises:
        ValueError: if a value is outside its domain.
    """

    @checked
    def __init__(
        self,
        *,
        sampler: Sampler,
        features: Callable[[], FeatureExtractor],
        folder: str,
        metric: str = "frechet",
        n: AtLeastTwo = 500,
        first_seed: NonNegativeInt = 0,
        split: Literal["train", "val", "test"] = "train",
        reference_n: AtLeastTwo | None = None,
        batch_size: PositiveInt = 64,
        every_n_steps: PositiveInt | None = None,
        every_n_seconds: PositiveFloat | None = None,
    ) -> None:
        allowed = [spec.name for spec in specs("pictures") if spec.needs == "pictures"]
        if metric not in allowed and "." not in metric:
            raise ValueError(f"distribution metric is {metric!r}: allowed are {', '.join(allowed)}")
        self.sampler, self.features, self.folder = sampler, features, Path(folder)
        self.metric, self.n, self.first_seed = metric, n, first_seed
        self._metric: type[SampleMetric] = metric_named(metric, "pictures")
        if (needs := self._metric.spec.needs) != "pictures":
            raise ValueError(
                f"distribution metric {metric} needs {needs}, not generated images: allowed are SampleMetrics"
            )
        self.split: SplitName = split
        self.reference_n, self.batch_size = reference_n, batch_size
        self.every_n_steps, self.every_n_seconds = every_n_steps, every_n_seconds
        self.not_run: str | None = None
        self._measured_at: int | None = None
        self._since = time.monotonic()
        self._collector: SampleMetric | None = None

    @property
    def names(self) -> list[str]:
        """What is logged, without the prefix ``val/``; empty before ``setup`` and where weights are missing."""
        return [] if self._collector is None else list(self._collector.names)

    @property
    def state_key(self) -> str:
        return self._generate_state_key(metric=self.metric, n=self.n, split=self.split)

    def state_dict(self) -> dict[str, Any]:
        elapsed = 0.0 if self.every_n_seconds is None else time.monotonic() - self._since
        return {"measured_at": self._measured_at, "elapsed": elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at = state_dict["measured_at"]
        self._since = time.monotonic() - state_dict["elapsed"]

    def setup(self, trainer: pl.Trainer, pl_module: ScoreModule, stage: str) -> None:
        if self._collector is not None or stage not in ("fit", "validate"):
            return
        shape = pl_module.denoiser.event_shape
        if not isinstance(kind_of(shape), Images):
            raise UserError(
                f"callbacks.distribution compares images, but samples have the shape {shape}: set callbacks=points"
            )
        extractor: FeatureExtractor | None = None
        reason = "its weights are missing on another device"
        try:
            extractor = self.features()
        except MissingWeightsError as error:
            reason = str(error)
        if trainer.strategy.reduce_boolean_decision(extractor is None, all=False) or extractor is None:
            self.not_run = reason
            self._say_not_run(trainer)
            return
        device = trainer.strategy.root_device
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        keep = self._metric.needs_features
        reference = reference_of(data, extractor.to(device), self.split, self.reference_n, keep_features=keep)
        self._collector = self._metric(extractor, reference, self.n)
        if device.type != "mps":  # which has no double precision
            self._collector.to(device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.not_run is not None:
            self._say_not_run(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        collector = self._collector
        if collector is None or trainer.sanity_checking or not self._is_due(trainer):
            return
        collector.reset()
        shown: list[Tensor] = []
        for numbers, images in self._pictures(trainer, pl_module):
            collector.update(images, index=numbers)
            shown += images[: max(0, GRID - len(shown))].cpu()
        values = collector.results()
        collector.reset()
        for value in values:
            pl_module.log(f"val/{value.name}", value.value)
        pl_module.log("step", float(trainer.global_step))
        self._measured_at, self._since = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            self._write(trainer.global_step, values, shown)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step, steps, seconds = trainer.global_step, self.every_n_steps, self.every_n_seconds
        if self._measured_at == step:
            return False
        due = (
            (steps is None and seconds is None)
            or (trainer.state.fn != "fit" or trainer.should_stop or step == trainer.max_steps)
            or (steps is not None and step - (self._measured_at or 0) >= steps)
            or (seconds is not None and time.monotonic() - self._since >= seconds)
        )
        return trainer.strategy.reduce_boolean_decision(due, all=False)  # clocks differ between devices

    def _pictures(self, trainer: pl.Trainer, pl_module: ScoreModule) -> Iterator[tuple[Tensor, Tensor]]:
        """This device's share: numbers ``[B]`` and 8-bit images ``[B, C, H, W]``."""
        mine = torch.arange(trainer.global_rank, self.n, trainer.world_size)
        for numbers in mine.split(self.batch_size):
            seeds = (self.first_seed + numbers).tolist()
            cond = labels_for(seeds, pl_module.record, device=pl_module.device)
            model, device = pl_module.evaluation_denoiser, pl_module.device
            result = draw(model, self.sampler, seeds, cond=cond, device=device)
            yield numbers, to_uint8(to_unit(result.x))

    def _write(self, step: int, values: Sequence[MetricValue], shown: Sequence[Tensor]) -> None:
        title = f"step {step}: " + ", ".join(f"{value.name} {value.value:.4g}" for value in values)
        self.folder.mkdir(parents=True, exist_ok=True)
        image_grid(torch.stack(list(shown)).float() / 255, self.folder / f"step_{step:07d}.png", title)
        content = {"step": step, "values": [value.to_dict() for value in values]}
        write_json(self.folder / "values.json", content)

    def _say_not_run(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            _log.warning("the %s distance of generated images is not measured: %s", self.metric, self.not_run)
