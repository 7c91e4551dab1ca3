"""The error on the population during training: what early stopping is a guess at."""

import numpy as np
import pytorch_lightning as pl

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import AtLeastTwo, PositiveInt
from scoreexp.data.module import DataModule
from scoreexp.diagnostics.likelihood_levels import SMALLEST_PRIOR, likelihood_by_level
from scoreexp.lit.callbacks.base import Curves, RunCallback
from scoreexp.lit.module import ScoreModule


class PopulationBits(RunCallback):
    """Log ``val/population_bits``: bits per dimension of held-out samples, see ``diagnostics.likelihood_levels``.

    It differs from the error of the score on the population by a constant, so its least value tells when to stop; the noise
    is the same at each evaluation. The samples are the first of the validation split.

    >>> PopulationBits(n=64).n
    64

    Args:
        n: held-out samples; fewer where there are not as many.
        draws: of noise, for each sample and band of levels.
        batch_size: samples at once; does not change the value but for rounding.
        seed: names levels and noise.

    Raises:
        UserError: on a run, the schedule ends below the level 1, or there are fewer than 2 held-out samples.
    """

    curves = (
        Curves(("val/population_bits",), "population_bits.png", "bits per dimension of held-out samples"),
    )

    @checked
    def __init__(
        self, *, n: AtLeastTwo = 256, draws: PositiveInt = 1, batch_size: PositiveInt = 64, seed: int = 0
    ) -> None:
        self.n, self.draws, self.batch_size, self.seed = n, draws, batch_size, seed

    def require_suits(self, module: ScoreModule) -> None:
        high = module.denoiser.schedule.sigma_range[1]
        if high < SMALLEST_PRIOR:
            raise UserError(
                f"callbacks.population needs noise levels up to {SMALLEST_PRIOR:g}, and the schedule ends at {high:.3g}: "
                "set callbacks=default, or another schedule"
            )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        if trainer.sanity_checking:
            return
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        split = data.split("val")
        if len(split) < 2:
            raise UserError(
                "callbacks.population needs 2 held-out samples, and the validation split has one: set callbacks=default"
            )
        x = split.samples(np.arange(min(self.n, len(split)))).to(pl_module.device)
        found = likelihood_by_level(
            pl_module.evaluation_denoiser, x, EDGES, draws=self.draws, seed=self.seed, batch=self.batch_size
        )
        pl_module.log("val/population_bits", found.total.value)


EDGES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # strata of noise levels
