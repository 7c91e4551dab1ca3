"""How denoising by Langevin dynamics depends on its step size and on the number of its steps."""

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model, to_unit
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.figures.images import LINES, freed_at_once, save_figure
from scoreexp.lit.callbacks.monitor import DenoisingMonitor
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics import mse, psnr
from scoreexp.restorers.denoising import observe
from scoreexp.samplers import ConstantGrid, Langevin
from scoreexp.system.atomic import atomic_write

Row = dict[str, float | str | None]


def langevin_table(
    model: DenoiserBase,
    clean: Tensor,
    observed: Tensor,
    *,
    sigma: float,
    step_sizes: Sequence[float],
    steps: int,
    noise: float,
    seed: int = 0,
) -> list[Row]:
    """MSE and PSNR after every Langevin step, means over the images.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.01)), VP())
    >>> clean, observed = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.2)
    >>> rows = langevin_table(model, clean, observed, sigma=0.1, step_sizes=[1e-3], steps=2, noise=0.0)
    >>> [f"{row['method']} {row['mse']:.4f}" for row in rows]
    ['noisy 0.0100', 'posterior_mean 0.0004', 'langevin 0.0084', 'langevin 0.0071']

    Args:
        model: the denoiser, in evaluation mode.
        clean: ``[B, C, H, W]`` in [-1, 1].
        observed: the same with noise.
        sigma: standard deviation of the noise, in units of the [0, 1] range.
        step_sizes: ``eta`` of each chain, in squared units of the [0, 1] range.
        steps: length of each chain.
        noise: ``kappa``, see ``scoreexp.samplers.Langevin``.
        seed: names the chains' noise, the same for every step size.

    Returns:
        One row per method, step size and step, keys ``method``, ``step_size``, ``step``, ``mse``, ``psnr``. Methods:
        ``noisy`` and ``posterior_mean`` (one evaluation), which have no step size, then ``langevin``.

    Raises:
        ValueError: if a step size is too large, see ``scoreexp.samplers.Langevin``.
    """
    rows: list[Row] = []

    def record(method: str, step_size: float | None, step: int, state: Tensor) -> None:
        pair = to_unit(state), to_unit(clean)
        values = {"mse": float(mse(*pair).mean()), "psnr": float(psnr(*pair).mean())}
        rows.append({"method": method, "step_size": step_size, "step": step, **values})

    record("noisy", None, 0, observed)
    for step_size in step_sizes:
        # a step size is a variance: its root changes its range as a standard deviation does
        sampler = Langevin(ConstantGrid(steps), sigma_to_model(math.sqrt(step_size)) ** 2, noise, clamp=True)
        start, t = sampler.start(model.schedule, observed, sigma_to_model(sigma))
        alpha = model.schedule.at(t)[0]
        if len(rows) == 1:
            with torch.no_grad():
                posterior_mean = model(start, torch.full((len(start),), t, dtype=torch.float64))
            record("posterior_mean", None, 1, posterior_mean)
        streams = ImageStreams([stream_seed(seed, "langevin", i) for i in range(len(start))])
        sampler(
            model,
            start,
            streams=streams,
            t_start=t,
            callback=lambda i, n, x, x0_hat: record("langevin", step_size, i, x / alpha),  # noqa: B023
        )
    return rows


@freed_at_once()
def draw_langevin(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """MSE and PSNR over the steps, a curve per step size, with the noisy image and the posterior mean as lines.

    >>> import tempfile
    >>> rows = [
    ...     {"method": "noisy", "step_size": None, "step": 0, "mse": 0.01, "psnr": 20.0},
    ...     {"method": "posterior_mean", "step_size": None, "step": 1, "mse": 0.001, "psnr": 30.0},
    ...     {"method": "langevin", "step_size": 1e-3, "step": 1, "mse": 0.005, "psnr": 23.0},
    ... ]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_langevin(rows, f"{folder}/langevin.png", "one step")
    ...     Path(folder, "langevin.png").is_file()
    True
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    chains = [row for row in rows if row["method"] == "langevin"]
    for axis, key, label in zip(axes, ("mse", "psnr"), ("MSE", "PSNR in dB"), strict=True):
        axis.set_prop_cycle(**LINES)
        for step_size in dict.fromkeys(row["step_size"] for row in chains):
            points = [(row["step"], row[key]) for row in chains if row["step_size"] == step_size]
            axis.plot(*zip(*points, strict=True), lw=1.3, label=f"eta = {step_size:g}")
        for method, style in (("noisy", ":"), ("posterior_mean", "--")):
            value = next(row[key] for row in rows if row["method"] == method)
            axis.axhline(value, color="gray", lw=1, ls=style, label=method.replace("_", " "))
        axis.set(xlabel="Langevin steps", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def write_table(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """The rows as a CSV file, whole or not at all.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_table([{"step": 1, "mse": 0.5}], f"{folder}/table.csv")
    ...     Path(folder, "table.csv").read_text().split()
    ['step,mse', '1,0.5']
    """
    with atomic_write(path) as temporary, Path(temporary).open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class LangevinStudy(pl.Callback):
    """After training, denoise by Langevin dynamics with each step size, and record MSE and PSNR after every step.

    The images and their noise are those of the monitor, the weights those of the last step. It writes
    ``langevin.csv`` into the run's directory and ``langevin.png`` among its figures.

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> monitor = DenoisingMonitor(sampler=DDIM(UniformGrid(20)), folder="pictures", sigma=0.1)
    >>> study = LangevinStudy(step_sizes=[1e-4, 1e-3], steps=50)
    >>> trainer = pl.Trainer(callbacks=[monitor, study], logger=False, enable_checkpointing=False)

    Args:
        step_sizes: ``eta`` of each chain, in squared units of the [0, 1] range.
        steps: length of each chain.
        noise: ``kappa``, without unit, see ``scoreexp.samplers.Langevin``.
        pictures: number of validation images, at most.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        *,
        step_sizes: list[PositiveFloat],
        steps: PositiveInt = 100,
        noise: NonNegativeFloat = 0.1,
        pictures: PositiveInt = 16,
    ) -> None:
        if not step_sizes:
            raise ValueError(f"step_sizes={step_sizes}: give one or more steps (1e-4 is the published one)")
        self.step_sizes, self.steps, self.noise, self.pictures = list(step_sizes), steps, noise, pictures
        self._pairs: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def _monitor(trainer: pl.Trainer) -> DenoisingMonitor:
        found = next((c for c in trainer.callbacks if isinstance(c, DenoisingMonitor)), None)  # type: ignore[attr-defined]
        if found is None:
            raise UserError("callbacks.study denoises the monitor's images: leave callbacks.monitor as it is")
        return found

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._monitor(trainer)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._pairs = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: ScoreModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = self.pictures - sum(len(x) for x, _ in self._pairs)
        if wanted > 0 and trainer.is_global_zero:
            monitor = self._monitor(trainer)
            observed = observe(batch.x, batch.index, monitor.sigma, monitor.seed).y
            self._pairs.append((batch.x[:wanted], observed[:wanted]))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        if not (trainer.is_global_zero and self._pairs):
            return
        clean, observed = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
        sigma = self._monitor(trainer).sigma
        rows = langevin_table(
            pl_module.evaluation_denoiser.eval(),
            clean,
            observed,
            sigma=sigma,
            step_sizes=self.step_sizes,
            steps=self.steps,
            noise=self.noise,
        )
        table = Path(trainer.default_root_dir) / "langevin.csv"
        figure = table.parent / "pictures" / "langevin.png"
        write_table(rows, table)
        draw_langevin(rows, figure, f"{len(clean)} images, sigma = {sigma:g}, kappa = {self.noise:g}")
        sys.stdout.write(f"study          {figure} and {table}\n")
