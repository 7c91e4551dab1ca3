"""The work before training: score fields of the training images, and the images embedded along them."""

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

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
from scoreexp.embedding.cache import old_files, solve_fields, stacked
from scoreexp.figures.fields import embedded_strip, field_over_time, residual_curves
from scoreexp.numerics.fokker_planck import ScoreField
from scoreexp.runs.directory import shown
from scoreexp.system.processes import independent_launcher, is_first_process

_LINE_SECONDS = 15.0
_LOADED_AT_ONCE = 256
_PIXELS_AT_ONCE = 2**16  # of the fields that are solved together: what a core's cache holds
_TRIED = 256  # images on which the rate of solving on demand is measured
_HELD_BYTES = 2**30  # paths larger than this are kept in a file


class Precomputed(NamedTuple):
    """What ``precompute`` did.

    Attributes:
        images: number of images whose fields were solved or found; few where nothing is stored.
        cached: how many of them had been solved before.
        seconds: by stage, ``initial_density`` and ``solve``, as they were spent when the fields were solved.
        folder: where the fields are; None where they are solved on demand.
    """

    images: int
    cached: int
    seconds: dict[str, float]
    folder: Path | None


class _Tally:
    """What a precomputation came to, added up over its parts."""

    def __init__(self) -> None:
        self.seconds = {"initial_density": 0.0, "solve": 0.0}
        self.solving_now = 0.0  # seconds of this run, without those of fields from the cache
        self.images = self.cached = 0
        self.first: ScoreField | None = None

    def add(self, images: int, cached: int, seconds: dict[str, float]) -> None:
        """Images that were solved, or all found in the cache, and the seconds of their solution by stage."""
        self.images += images
        self.cached += cached
        for stage, value in seconds.items():
            self.seconds["initial_density" if stage == "initial_density" else "solve"] += value
            self.solving_now += 0.0 if cached else value

    def describe(self) -> str:
        return f"{self.images - self.cached} solved, {self.cached} found in the cache"


def precompute(cfg: DictConfig) -> Precomputed:
    """Solve and store the score fields of ``cfg.data`` for ``cfg.embedding``; see ``conf/precompute.yaml``.

    Fields that are cheaper to solve than to read are not stored: some are solved to tell how long all will take.
    """
    if not cfg.embedding:
        raise UserError(
            "embedding=none has no score fields: choose embedding=spectral or another of its group"
        )
    embedding: ImageEmbedding = instantiate(cfg.embedding)
    if embedding.cache is None and not embedding.on_demand:
        raise UserError("embedding.cache=null keeps no files: give a folder to precompute into")
    data = instantiate(cfg.data)
    data.setup("fit")
    _require_images(data)
    _report_old_files(embedding)
    tally, start, folder = _Tally(), time.perf_counter(), None
    if embedding.cache is None or embedding.on_demand:
        for _ in _solved_on_demand(data, embedding, cfg.seed, tally, data.train_positions[:_TRIED]):
            pass
        elapsed = time.perf_counter() - start
        print(
            f"score fields   nothing to store: training solves the fields of its {len(data.train_positions)} images when it "
            f"starts, about {len(data.train_positions) * elapsed / tally.images:.1f} s on this machine "
            f"({tally.images / max(elapsed, 1e-9):.3g} images/s, measured on {tally.images})"
        )
    else:
        for _ in _fields(data, embedding, cfg.seed, tally):
            pass
        elapsed, folder = time.perf_counter() - start, Path(embedding.cache).expanduser()
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
    _report_old_files(embedding)
    tally, start = _Tally(), time.perf_counter()
    positions, times = data.train_positions, embedding.times
    along = _solved_on_demand if embedding.on_demand else _along_fields
    with _room((len(times), len(positions), *data.event_shape), embedding.cache) as room:
        for k, begin, images in along(data, embedding, seed, tally, positions):
            room.put(k, begin, to_model(images))
        paths = room.paths()
    elapsed = time.perf_counter() - start
    seconds = {**tally.seconds, "embed": max(0.0, elapsed - tally.solving_now)}
    if pictures is not None and len(positions):
        first = tally.first or _first_field(data, embedding, seed)
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
    if independent_launcher() is None or embedding.cache is None or embedding.on_demand:
        yield
        return
    with FileLock(folder / ".embedding.lock"):
        yield


class _Room:
    """Room for paths [K + 1, N, *]: in memory, or in a nameless file that is gone when the run ends or is killed.

    The file is written and only mapped in the end, so that its pages never count as memory of the process before
    training looks at them.
    """

    def __init__(self, shape: tuple[int, ...], file: BinaryIO | None) -> None:
        self.shape, self.file = shape, file
        self.held = torch.empty(shape) if file is None else None

    def put(self, k: int, first: int, images: torch.Tensor) -> None:
        """The ``k``-th images [n, *] of the paths ``first``, ``first + 1``, ..."""
        if self.held is not None:
            self.held[k, first : first + len(images)] = images
        elif self.file is not None:
            self.file.seek(4 * math.prod(self.shape[2:]) * (k * self.shape[1] + first))
            self.file.write(images.float().contiguous().numpy().data)

    def paths(self) -> torch.Tensor:
        """All of them."""
        if self.held is not None:
            return self.held
        assert self.file is not None
        self.file.flush()
        return torch.from_numpy(np.memmap(self.file, np.float32, "r+", shape=self.shape))


@contextlib.contextmanager
def _room(shape: tuple[int, ...], folder: str | None) -> Iterator[_Room]:
    size = 4 * math.prod(shape)
    if size <= _HELD_BYTES:
        yield _Room(shape, None)
        return
    place = Path(tempfile.gettempdir() if folder is None else folder).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=place))
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not in the middle
        except OSError as error:
            raise UserError(
                f"the embedded images need {size / 2**30:.1f} GiB in {place} ({error.strerror}): make room, "
                "set embedding.cache to a folder on another disk, or take fewer images (data.num_images) or steps "
                "(embedding.kept)"
            ) from error
        yield _Room(shape, file)


def _solved_on_demand(
    data: DataModule, embedding: ImageEmbedding, seed: int, tally: _Tally, positions: np.ndarray
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(k, place of the first, the k-th images [n, *] of the paths) in [0, 1], their fields solved on the way."""
    channels = data.event_shape[0] if embedding.precomputation.initial_density == "value_pairs" else 1
    at_once = max(1, _PIXELS_AT_ONCE // (channels * math.prod(data.event_shape[1:])))
    with _progress(len(positions)) as done:
        for start, x in _loaded(data, positions):
            for offset in range(0, len(x), at_once):
                part = x[offset : offset + at_once]
                begin = start + offset
                seeds = [stream_seed(seed, int(p)) for p in positions[begin : begin + len(part)]]
                solving: dict[str, float] = {}
                for k, images in enumerate(embedding.along(part, seeds, solving)):
                    yield k, begin, images
                tally.add(len(part), 0, solving)
                done(len(part))


def _along_fields(
    data: DataModule, embedding: ImageEmbedding, seed: int, tally: _Tally, positions: np.ndarray
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """The same along fields from the cache, or solved and stored."""
    for begin, x, fields in _fields(data, embedding, seed, tally):
        seeds = [stream_seed(seed, int(p)) for p in positions[begin : begin + len(x)]]
        for k, images in enumerate(embedding(x, stacked(fields), seeds)):
            yield k, begin, images


def _loaded(data: DataModule, positions: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
    """Place of the first, and images [n, C, H, W] in [0, 1], of some at a time."""
    for start in range(0, len(positions), _LOADED_AT_ONCE):
        yield start, to_unit(data.split("train").samples(positions[start : start + _LOADED_AT_ONCE]))


def _first_field(data: DataModule, embedding: ImageEmbedding, seed: int) -> ScoreField:
    """The field of the first training image, for figures."""
    _, x = next(_loaded(data, data.train_positions[:1]))
    [solved] = solve_fields(x.permute(0, 2, 3, 1).numpy(), embedding, seed=seed)
    return solved.fields[0]


def _report_old_files(embedding: ImageEmbedding) -> None:
    old = embedding.cache is not None and old_files(Path(embedding.cache).expanduser())
    if old and is_first_process():
        print(
            f"note: {embedding.cache} holds score fields of an earlier version, which nothing reads: delete {old}"
        )


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
        for start, x in _loaded(data, positions):
            offset = 0
            for solved in solve_fields(x.permute(0, 2, 3, 1).numpy(), embedding, seed=seed, done=done):
                for problem in solved.problems:
                    print(f"warning: {problem}", flush=True)
                tally.first = tally.first or solved.fields[0]
                for field, cached in zip(solved.fields, solved.cached):
                    tally.add(1, cached, field.seconds)
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
