"""Compare a model of points in the plane with the exact distribution, and draw it, during training."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Points, kind_of
from scoreexp.core.streams import generator, stream_seed
from scoreexp.core.types import AtLeastTwo, FromRun, PositiveFloat
from scoreexp.data import DataModule
from scoreexp.figures.points import DECADES, ScoreMap, points_picture
from scoreexp.lit.callbacks.base import Curves, Monitor, NextCommand
from scoreexp.lit.module import ScoreModule
from scoreexp.metrics import sliced_wasserstein
from scoreexp.metrics.score_error import LEVELS, ExactScores, exact_scores, in_chunks, score_at, score_errors
from scoreexp.numerics.oracles import Oracle
from scoreexp.samplers import Sampler, SampleResult, draw
from scoreexp.schedules import Schedule
from scoreexp.system.atomic import atomic_write

LOGGED = ("sliced_wasserstein", "score_error")  # what a run may be stopped on
_KEPT = 40  # states of a trajectory that are drawn
_ARROWS = 25  # along each side of a panel
_PIXELS = 100  # of a density along each side of a panel; half as many with noise
_HALF_WIDTH = 1.25  # of the panels: data lie in [-1, 1]


class PointsMonitor(Monitor):
    r"""Log how far a model of points is from the exact distribution.

    Of ``data.oracle()`` the score is known at every noise level, so the model's is held against it:

    .. math:: e(\sigma / \alpha) = \frac{E |s_\theta(x_t, t) - \nabla \log p_t(x_t)|^2}{E |\nabla \log p_t(x_t)|^2},
              \quad x_t \sim p_t,

    logged as ``val/score_error_<level>`` for each of ``levels`` (``val/score_error_0.1``) and their mean
    ``val/score_error``. 0 is exact, 1 is no better than predicting 0. ``val/sliced_wasserstein`` is the distance in
    data units of drawn samples from as many fresh exact ones; that of two exact sets is
    ``val/sliced_wasserstein_floor``, and a value near it cannot be told from a perfect model's. Samples, exact samples
    and noisy points are the same at every evaluation. Data without an oracle are compared with their validation points,
    and have no score error, nor has a generator.

    The figure ``<data set>.png`` is that of the evaluation with the smallest ``val/score_error`` (the smallest distance
    where there is none): the distance of a trained model differs from the floor by chance only.

    >>> from scoreexp.samplers import Heun, KarrasGrid
    >>> from scoreexp.schedules import VP
    >>> monitor = PointsMonitor(sampler=Heun(KarrasGrid(10)), folder="pictures", levels=(0.1, 1.0))
    >>> monitor.require_reachable(VP())
    >>> monitor.next_commands()[0].name
    'sample'

    Args:
        sampler: how samples are drawn.
        folder: where the figures go.
        samples: number of points of each set.
        levels: noise levels ``sigma / alpha`` in data units at which the score is compared.
        shown_levels: two of any noise levels, whose scores are drawn.
        seed: names the noise.

    Raises:
        ValueError: if a number is outside its domain.
    """

    curves = (
        Curves(
            ("val/score_error", "val/sliced_wasserstein"),
            "points.png",
            "distance from the exact distribution",
            log=True,
        ),
    )

    @checked
    def __init__(
        self,
        *,
        sampler: Annotated[Sampler, FromRun("sampler")],
        folder: Annotated[str, FromRun("pictures")],
        samples: AtLeastTwo = 2000,
        levels: tuple[PositiveFloat, ...] = LEVELS,
        shown_levels: tuple[PositiveFloat, PositiveFloat] = (0.05, 0.15),
        seed: Annotated[int, FromRun("seed")] = 0,
    ) -> None:
        if not levels:
            raise ValueError("levels is empty: give at least one noise level")
        self.sampler, self.folder, self.samples, self.seed = sampler, Path(folder), samples, seed
        self.levels, self.shown_levels = tuple(levels), tuple(shown_levels)
        self.best = float("inf")
        self._truth: _Truth | None = None
        self._is_drawn = False  # by a generator, which has no score

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def require_reachable(self, schedule: Schedule) -> None:
        """Refuse, before anything is trained, noise levels that ``schedule`` does not have.

        Raises:
            UserError: names the level and the range.
        """
        low, high = schedule.sigma_range
        for level in (*self.levels, *self.shown_levels):
            if not low <= level <= high:
                raise UserError(
                    f"monitor noise level {level:g} is outside [{low:.3g}, {high:.3g}] of the {type(schedule).__name__} "
                    "schedule: choose callbacks.monitor.levels and shown_levels inside it, or a wider schedule"
                )

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: ScoreModule) -> None:
        if trainer.sanity_checking:
            return
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        truth = self._truth = self._truth or self._find_truth(data)
        model, device = pl_module.evaluation_denoiser, pl_module.device
        seeds = [stream_seed(self.seed, "points", i) for i in range(self.samples)]
        result = draw(model, self.sampler, seeds, device=device, keep=_KEPT)
        values = {
            "sliced_wasserstein": float(sliced_wasserstein(result.x.cpu(), truth.reference)),
            "nfe": float(result.nfe),
        }
        if truth.floor is not None:
            values["sliced_wasserstein_floor"] = truth.floor
        if truth.scores and not model.latent_channels:
            errors = score_errors(model, truth.scores, device)
            values["score_error"] = sum(errors.values()) / len(errors)
            values |= {_error_name(level): error for level, error in errors.items()}
        for name, value in values.items():
            pl_module.log(f"val/{name}", value)
        pl_module.log("step", float(trainer.global_step))
        if trainer.is_global_zero:
            picture = self.folder / f"step_{trainer.global_step:07d}.png"
            self._draw(picture, trainer.global_step, pl_module, values, result)
            self._keep_best(
                picture, _file_name(data), values.get("score_error", values["sliced_wasserstein"])
            )

    def require_suits(self, module: ScoreModule) -> None:
        shape = module.denoiser.event_shape
        if kind_of(shape) != Points(2):
            raise UserError(
                f"callbacks.monitor is for points in the plane, but samples have the shape {shape}: "
                "set callbacks=default"
            )
        self.require_reachable(module.denoiser.schedule)
        self._is_drawn = module.denoiser.latent_channels > 0

    def conclusion(self, metrics: Mapping[str, float]) -> str | None:
        if self.picture is None:  # nothing was evaluated
            return None
        values = {
            name.removeprefix("val/"): value for name, value in metrics.items() if name.startswith("val/")
        }
        text = self._distance_in_words(values)
        if "score_error" in values:
            text += f"; relative squared error of the score {values['score_error']:.4f}"
        return text

    def next_commands(self) -> Sequence[NextCommand]:
        if self._is_drawn:
            steps = {"sampler.steps": self.sampler.grid.steps}
            return [NextCommand("sample", {"n": 2000, "sampler": "ddgan", **steps})]
        return [NextCommand("sample", {"n": 2000, "sampler": "heun"})]

    def _distance_in_words(self, values: Mapping[str, float]) -> str:
        text = f"sliced Wasserstein distance of {self.samples} samples {values['sliced_wasserstein']:.4f}"
        if "sliced_wasserstein_floor" in values:
            text += f" (two exact sets: {values['sliced_wasserstein_floor']:.4f})"
        return text

    def _draw(
        self, path: Path, step: int, pl_module: ScoreModule, values: Mapping[str, float], result: SampleResult
    ) -> None:
        truth, model, device = self._truth, pl_module.evaluation_denoiser, pl_module.device
        if truth is None:
            return
        maps = [] if model.latent_channels else truth.maps
        points_picture(
            path,
            title=f"step {step}: {self._distance_in_words(values)}",
            half_width=_HALF_WIDTH,
            data=truth.reference,
            log_density=truth.log_density,
            samples=result.x.cpu(),
            maps=[m._replace(learned=score_at(model, m.points, m.level, device)) for m in maps],
            trajectories=_unit_scale(result, model.schedule),
            score_error={level: values[_error_name(level)] for level in truth.scores if maps},
        )

    def _keep_best(self, picture: Path, name: str, error: float) -> None:
        self.picture = self.folder / name
        if error < self.best or not self.picture.exists():
            self.best = error
            with atomic_write(self.picture) as temporary:
                shutil.copyfile(picture, temporary)

    def _find_truth(self, data: DataModule) -> "_Truth":
        oracle: Oracle | None = data.oracle() if hasattr(data, "oracle") else None
        grid = _grid(_ARROWS)
        if oracle is None:
            split = data.split("val")
            reference = split.samples(np.arange(min(self.samples, len(split))))
            return _Truth(
                reference, None, {}, [ScoreMap(level, grid, grid) for level in self.shown_levels], None
            )
        reference, other = (
            oracle.sample(self.samples, generator(self.seed, "exact points", k)).float() for k in range(2)
        )
        maps = []
        for level in self.shown_levels:
            density = _log_density(oracle, level, _PIXELS // 2)
            probable = in_chunks(oracle.log_prob, grid, level) > density.max() - DECADES
            maps.append(ScoreMap(level, grid, grid, in_chunks(oracle.score, grid, level), density, probable))
        floor = float(sliced_wasserstein(other, reference))
        scores = exact_scores(oracle, self.levels, self.samples, self.seed)
        return _Truth(reference, floor, scores, maps, _log_density(oracle, 0.0, _PIXELS))


class _Truth(NamedTuple):
    """What does not depend on the model, computed once; points are ``u = x_t / alpha``.

    Attributes:
        reference: what samples are compared with, ``[N, *]``.
        floor: distance of the reference from another exact set.
        scores: by noise level, noisy points and the exact score at them, ``[N, 2]``.
        maps: to draw, with the exact side filled in.
        log_density: of clean data on the fine grid.
    """

    reference: Tensor
    floor: float | None
    scores: ExactScores
    maps: list[ScoreMap]
    log_density: Tensor | None


def _error_name(level: float) -> str:
    return f"score_error_{level:g}"


def _file_name(data: DataModule) -> str:
    """``swiss_roll.png`` for the class ``SwissRoll``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(data).__name__).lower() + ".png"


def _unit_scale(result: SampleResult, schedule: Schedule) -> Tensor:
    """The kept states as ``x_t / sqrt(alpha^2 + sigma^2)``, ``[K, B, *]`` on the CPU; the last one is clean data."""
    scales = [math.hypot(*schedule.at(t)) for t in result.times[:-1].tolist()] + [1.0]
    return torch.stack([state.cpu() / scale for state, scale in zip(result.trajectory, scales, strict=True)])


def _grid(side: int) -> Tensor:
    """Centres of ``side * side`` cells of the shown square, ``[side * side, 2]`` float64, row by row upwards."""
    ticks = _HALF_WIDTH * ((2 * torch.arange(side, dtype=torch.float64) + 1) / side - 1)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _log_density(oracle: Oracle, level: float, side: int) -> Tensor:
    """Log-density of u in the cells of the shown square, ``[side, side]``."""
    return in_chunks(oracle.log_prob, _grid(side), level).reshape(side, side)
