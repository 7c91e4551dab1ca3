"""The work before training: score fields of the training images, and the images embedded along them."""

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scoreexp.app.composition import shell_command
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import stream_seed
from scoreexp.data import DataModule
from scoreexp.embedding import EmbeddedImages, ImageEmbedding
from scoreexp.embedding.cache import solve_fields, stacked
from scoreexp.figures.fields import embedded_strip, field_over_time, residual_curves
from scoreexp.numerics.fokker_planck import ScoreField
from scoreexp.runs.directory import shown
from scoreexp.system.processes import independent_launcher, is_first_process

_LINE_SECONDS = 15.0
_LOADED_AT_ONCE = 1024
_HELD_BYTES = 2**30  # paths larger than this are kept in a file


class Precomputed(NamedTuple):
    """What ``precompute`` did.

    Attributes:
        images: number of images.
        cached: how many of their fields had been solved before.
        seconds: by stage, ``initial_density`` and ``solve``, as they were spent when the fields were solved.
        folder: where the fields are.
    """

    images: int
    cached: int
    seconds: dict[str, float]
    folder: Path


class _Tally:
    """What a precomputation came to, added up over its parts."""

    def __init__(self) -> None:
        self.seconds = {"initial_density": 0.0, "solve": 0.0}
        self.solving_now = 0.0  # seconds of this run, without those of fields from the cache
        self.images = self.cached = 0
        self.warning: str | None = None

    def add(self, field: ScoreField, cached: bool) -> None:
        self.images += 1
        self.cached += cached
        for stage, seconds in field.seconds.items():
            self.seconds["initial_density" if stage == "initial_density" else "solve"] += seconds
            self.solving_now += 0.0 if cached else seconds

    def describe(self) -> str:
        return f"{self.images - self.cached} solved, {self.cached} found in the cache"


def precompute(cfg: DictConfig) -> Precomputed:
    """Solve and store the score fields of ``cfg.data`` for ``cfg.embedding``; see ``conf/precompute.yaml``."""
    if not cfg.embedding:
        raise UserError(
            "embedding=none has no score fields: choose embedding=spectral or another of its group"
        )
    embedding: ImageEmbedding = instantiate(cfg.embedding)
    if embedding.cache is None:
        raise UserError("embedding.cache=null keeps no files: give a folder to precompute into")
    data = instantiate(cfg.data)
    data.setup("fit")
    _require_images(data)
    tally, start = _Tally(), time.perf_counter()
    for _ in _fields(data, embedding, cfg.seed, tally):
        pass
    elapsed = time.perf_counter() - start
    folder = Path(embedding.cache).expanduser()
    print(
        f"score fields   {tally.images} of {tally.images} images in {elapsed:.1f} s "
        f"({tally.images / max(elapsed, 1e-9):.3g} images/s): {tally.describe()}"
    )
    print(f"files          {shown(folder)}")
    print(f"try next       {shell_command('scoreexp.train', sys.argv[1:])}", flush=True)
    return Precomputed(tally.images, tally.cached, tally.seconds, folder)


def embed_training_images(
    data: DataModule, embedding: ImageEmbedding, seed: int, pictures: Path | None
) -> tuple[EmbeddedImages, dict[str, float]]:
    """The paths of all training images in model units, and the seconds spent by stage.

    The seconds of fields that were found in the cache are those that solving them took, so a time to target does
    not depend on what an earlier run has left there. ``embed`` is the transport with the reading and writing of
    files.

    Args:
        data: the data, set up.
        embedding: precomputation and transport.
        seed: names the random starting densities and the noise of the transport.
        pictures: folder for figures of the first image's field and path; None draws none.

    Raises:
        UserError: as for ``require_embeddable``.
    """
    require_embeddable(data)
    tally, start = _Tally(), time.perf_counter()
    positions, times = data.train_positions, embedding.times
    paths = _room((len(times), len(positions), *data.event_shape), embedding.cache)
    first: ScoreField | None = None
    for begin, x, fields in _fields(data, embedding, seed, tally):
        part = slice(begin, begin + len(fields))
        seeds = [stream_seed(seed, int(position)) for position in positions[part]]
        paths[:, part] = to_model(embedding(x, stacked(fields), seeds))
        first = first or fields[0]
    elapsed = time.perf_counter() - start
    seconds = {**tally.seconds, "embed": max(0.0, elapsed - tally.solving_now)}
    if pictures is not None and first is not None:
        field_over_time(first, pictures / "score_field.png")
        embedded_strip(times, to_unit(paths[:, 0]), pictures / "embedded.png")
        residual_curves(first, pictures / "residuals.png")
    print(
        f"embedding      {tally.images} images in {sum(seconds.values()):.2f} s "
        f"({', '.join(f'{stage} {value:.2f} s' for stage, value in seconds.items())}): {tally.describe()}",
        flush=True,
    )
    return EmbeddedImages(times, paths, positions.tolist()), seconds


@contextlib.contextmanager
def one_at_a_time(folder: Path, embedding: ImageEmbedding) -> Iterator[None]:
    """Where a run's processes start at once and share a cache, the first to come solves and the others read.

    Args:
        folder: the run directory, which all processes see.
        embedding: names the cache.
    """
    if independent_launcher() is None or embedding.cache is None:
        yield
        return
    with FileLock(folder / ".embedding.lock"):
        yield


def _room(shape: tuple[int, ...], folder: str | None) -> torch.Tensor:
    """Room for paths of this shape: in memory, or in a nameless file that is gone when the run ends or is killed."""
    size = 4 * math.prod(shape)
    if size <= _HELD_BYTES:
        return torch.empty(shape)
    place = Path(tempfile.gettempdir() if folder is None else folder).expanduser()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as file:
            os.posix_fallocate(
                file.fileno(), 0, size
            )  # a full disk is an error now, not a crash while writing
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
    except OSError as error:
        raise UserError(
            f"the embedded images need {size / 2**30:.1f} GiB in {place} ({error.strerror}): make room, set "
            "embedding.cache to a folder on another disk, or take fewer images (data.num_images) or steps (embedding.kept)"
        ) from error


def require_embeddable(data: DataModule) -> None:
    """Refuse data that have no paths.

    Raises:
        UserError: if the data are augmented or are not images.
    """
    if data.augment or data.rotation > 0:
        raise UserError(
            "embedded images cannot be augmented, for a flipped or turned image has another score field: "
            "set data.augment=false data.rotation=0, or embedding=none"
        )
    _require_images(data)


def _require_images(data: DataModule) -> None:
    if not isinstance(kind_of(data.event_shape), Images):
        raise UserError(
            f"events of shape {tuple(data.event_shape)} are not images: score fields need data of [C, H, W]"
        )


def _fields(
    data: DataModule, embedding: ImageEmbedding, seed: int, tally: _Tally
) -> Iterator[tuple[int, torch.Tensor, list[ScoreField]]]:
    """First place, images in [0, 1] and fields of consecutive training images; problems and warnings are said."""
    positions = data.train_positions
    warnings: list[str] = []
    with _progress(len(positions)) as done:
        for start in range(0, len(positions), _LOADED_AT_ONCE):
            x = to_unit(data.split("train").samples(positions[start : start + _LOADED_AT_ONCE]))
            offset = 0
            for solved in solve_fields(x.permute(0, 2, 3, 1).numpy(), embedding, seed=seed, done=done):
                for problem in solved.problems:
                    print(f"warning: {problem}", flush=True)
                for field, cached in zip(solved.fields, solved.cached):
                    tally.add(field, cached)
                warning = stacked(solved.fields).convergence_warning()
                warnings += [warning] if warning else []
                end = offset + len(solved.fields)
                yield start + offset, x[offset:end], solved.fields
                offset = end
    if warnings:
        others = f" (and likewise in {len(warnings) - 1} other solves)" if len(warnings) > 1 else ""
        print(f"warning: {warnings[0]}{others}", flush=True)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not is_first_process():
        yield lambda count: None
        return
    if sys.stderr.isatty():
        columns = (
            TextColumn("score fields"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.speed:.3g} images/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda count: bar.advance(task, count)
        return
    finished, last_line = 0, time.monotonic()

    def done(count: int) -> None:
        nonlocal finished, last_line
        finished += count
        if time.monotonic() - last_line >= _LINE_SECONDS:
            last_line = time.monotonic()
            sys.stderr.write(f"score fields of {finished}/{total} images\n")

    yield done
