"""Restore the same noisy speech again and again during training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torchmetrics.audio import ScaleInvariantSignalDistortionRatio

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.types import FromRun
from scoreexp.data import Speech
from scoreexp.data.errors import DataError
from scoreexp.data.wav import Wav, write_wav
from scoreexp.lit.callbacks.base import Curves, Monitor, NextCommand
from scoreexp.lit.module import ScoreModule
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers import Conditioned
from scoreexp.restorers.denoising import denoise_observed
from scoreexp.runs.directory import shown
from scoreexp.samplers import Sampler


class SpeechMonitor(Monitor):
    """Log the scale-invariant ratio of signal to distortion of validation speech, restored and noisy, in dB.

    ``val/si_sdr`` and ``val/si_sdr_noisy`` are means over the batches, of the segments of a batch put end to end: a
    segment may be silent. Noise and draws are the same at every evaluation.

    Reference: J. Le Roux, S. Wisdom, H. Erdogan, J. Hershey, "SDR -- half-baked or well done?", 2019,
    https://arxiv.org/abs/1811.02508

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> SpeechMonitor(sampler=DDIM(UniformGrid(5)), folder="pictures").conclusion({})

    Args:
        sampler: of the residual.
        folder: where the first recording of the last evaluation goes, clean, noisy and restored.
        seed: names the draws.
    """

    curves = (
        Curves(("val/si_sdr", "val/si_sdr_noisy"), "si_sdr.png", "SI-SDR of restored validation speech, dB"),
    )

    @checked
    def __init__(
        self,
        *,
        sampler: Annotated[Sampler, FromRun("sampler")],
        folder: Annotated[str, FromRun("pictures")],
        seed: Annotated[int, FromRun("seed")] = 0,
    ) -> None:
        self.restorer, self.seed = Conditioned(sampler), seed
        self.folder = Path(folder)
        self.metrics = {
            name: ScaleInvariantSignalDistortionRatio() for name in ("val/si_sdr", "val/si_sdr_noisy")
        }

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not isinstance(trainer.datamodule, Speech):  # type: ignore[attr-defined]
            raise DataError("callbacks.monitor restores speech: set data=speech, or callbacks=restoration")

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
        if batch.y is None or not len(batch.y):  # fewer segments than devices
            return
        observation = Observation(batch.y, Identity(), GaussianNoise(0.0))
        result = denoise_observed(
            self.restorer, pl_module.evaluation_denoiser, observation, batch.index, self.seed
        )
        data: Speech = trainer.datamodule  # type: ignore[attr-defined]
        waves = {
            name: data.spectrogram.inverse(state, data.length)
            for name, state in {"clean": batch.x, "noisy": batch.y, "restored": result.x}.items()
        }
        for metric, name in zip(self.metrics.values(), ("restored", "noisy"), strict=True):
            metric.update(waves[name].flatten(), waves["clean"].flatten())
        if batch_idx == 0 and trainer.is_global_zero and not trainer.sanity_checking:
            self._write(waves, data.rate)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        if trainer.sanity_checking:
            return
        for name, value in values.items():
            pl_module.log(name, value)
        pl_module.log("step", float(trainer.global_step))

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if "val/si_sdr" not in metrics:
            return None
        return f"SI-SDR of speech {metrics['val/si_sdr']:.1f} dB, noisy {metrics['val/si_sdr_noisy']:.1f} dB"

    def next_commands(self) -> Sequence[NextCommand]:
        noisy = self.folder / "last" / "noisy.wav"
        return [NextCommand("restore", {"input": shown(noisy)})] if noisy.exists() else ()

    def _write(self, waves: Mapping[str, Tensor], rate: int) -> None:
        (self.folder / "last").mkdir(parents=True, exist_ok=True)
        for name, wave in waves.items():
            samples = wave[0].detach().to("cpu", torch.float32).numpy()
            write_wav(self.folder / "last" / f"{name}.wav", Wav(np.ascontiguousarray(samples), rate, True))
