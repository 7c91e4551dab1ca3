"""Solved score fields of images, kept on disk: one file per image under a key of everything they depend on.

Only fields that take longer to solve than to read are kept, see ``ImageEmbedding.on_demand``. The key is a hash of the
pixels, of every parameter of the precomputation and of the version of the schemes
(``scoreexp.numerics.fokker_planck.VERSION``), so a changed scheme never meets an old file and a changed comment loses
none. Files are zip archives whose checksums are compared when they are read; a file that is damaged, cut short or not
one of ours is reported and solved anew. Fields with values that are not finite are never written.
"""

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from scoreexp.core.streams import stream_seed
from scoreexp.data.errors import DataError
from scoreexp.embedding.transport import ImageEmbedding
from scoreexp.numerics.fokker_planck import VERSION, ScoreField, ScorePrecomputation
from scoreexp.system.atomic import atomic_write, clear_orphans
from scoreexp.system.untrusted import require_stored

FORMAT = 2
_ARRAYS = (
    "times",
    "log_p",
    "score",
    "kept",
    "step_times",
    "iterations",
    "residuals",
    "linear_iterations",
)
_PER_IMAGE_AXIS = {"log_p": 1, "score": 1, "iterations": 1, "residuals": 2, "linear_iterations": 1}
_PIXELS_AT_ONCE = 2**16


class Solved(NamedTuple):
    """The fields of some consecutive images.

    Attributes:
        fields: one per image, without the batch axis, ``log_p`` and ``score`` float32.
        cached: whether each was read from the cache; its seconds are those of its solution.
        problems: one line for each file that was there but not to be trusted.
    """

    fields: list[ScoreField]
    cached: list[bool]
    problems: list[str]


@lru_cache
def code_version(solver: type) -> str:
    """What tells results of a solver from those of its other versions.

    ``VERSION`` for the solvers of the package, which is raised by hand; for one from elsewhere also a hash of its
    module's code, without comments and docstrings.

    >>> from scoreexp.numerics.fokker_planck import Direct
    >>> code_version(Direct) == str(VERSION)
    True
    """
    if solver.__module__.startswith("scoreexp."):
        return str(VERSION)
    code = ast.parse(Path(inspect.getfile(solver)).read_text(encoding="utf-8"))
    for node in ast.walk(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, False):
            node.body[0] = ast.Pass()
    return f"{VERSION} {hashlib.blake2b(ast.dump(code).encode(), digest_size=16).hexdigest()}"


def image_hash(image: np.ndarray) -> str:
    """Hash of the values, shape and type of an image.

    >>> image_hash(np.zeros((8, 8, 1))) == image_hash(np.zeros((8, 8, 3)))
    False
    """
    digest = hashlib.blake2b(f"{image.dtype.str}{image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def field_key(image: np.ndarray, embedding: ImageEmbedding, seed: int) -> str:
    """The name of the score field of ``image[H, W, C]``: 32 hexadecimal digits.

    ``seed`` counts only where the starting density is drawn at random.

    >>> image = np.zeros((8, 8, 1))
    >>> few, many = (ImageEmbedding(precomputation=ScorePrecomputation(steps=n)) for n in (4, 100))
    >>> field_key(image, few, seed=0) == field_key(image, few, seed=1) != field_key(image, many, seed=0)
    True

    Raises:
        DataError: if the precomputation has a drift, a function that no key can tell from another.
    """
    p = embedding.precomputation
    if p.drift is not None:
        raise DataError("score fields with a drift cannot be cached: set embedding.cache=null")
    moments = np.union1d(p.times, (p.times[1:] + p.times[:-1]) / 2).tolist()
    parameters = {
        "format": FORMAT,
        "code": code_version(ScorePrecomputation if p.solver == "auto" else type(p.solver)),  # type: ignore[arg-type]
        "image": image_hash(image),
        "g": [float(p.g(t)) for t in moments] if callable(p.g) else float(p.g),
        "times": p.times.tolist(),
        "kept": embedding.kept,
        "initial_density": p.initial_density,
        "boundary": p.boundary,
        "solver": repr(p.solver),
        "tol": p.tol,
        "max_iter": p.max_iter,
        "spacing": p.spacing,
        "seed": seed if p.initial_density == "sampled_kde" else None,
    }
    return hashlib.blake2b(json.dumps(parameters, sort_keys=True).encode(), digest_size=16).hexdigest()


def cache_file(folder: Path, key: str) -> Path:
    """Where the field of this key lies.

    >>> cache_file(Path("fields"), "0a1b").as_posix()
    'fields/v2/0a/0a1b.npz'
    """
    return folder / f"v{FORMAT}" / key[:2] / f"{key}.npz"


def old_files(folder: Path) -> str | None:
    """A pattern of the files that version 1 left in a cache, whose keys nothing asks for any more; None without any.

    >>> old_files(Path("fields")) is None
    True
    """
    pattern = "[0-9a-f][0-9a-f]"
    return next((str(folder / pattern) for _ in folder.glob(f"{pattern}/*.npz")), None)


def write_field(path: Path, key: str, field: ScoreField) -> None:
    """Write a field, whole or not at all.

    >>> import tempfile
    >>> embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4))
    >>> [solved] = solve_fields(np.zeros((1, 8, 8, 1)), embedding, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_field(Path(folder, "field.npz"), "0a1b", solved.fields[0])
    ...     read_field(Path(folder, "field.npz"), "0a1b").score.shape
    (4, 2, 8, 8)

    Raises:
        DataError: if it has values that are not finite, or the folder cannot be written to.
    """
    if not (np.isfinite(field.log_p).all() and np.isfinite(field.score).all()):
        raise DataError(f"the score field {key} has values that are not finite: it is not written")
    description = {
        "format": FORMAT,
        "key": key,
        "solver": field.solver,
        "boundary": field.boundary,
        "tol": field.tol,
        "seconds": field.seconds,
    }
    arrays = {name: getattr(field, name) for name in _ARRAYS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / "lock"):  # so a half-written file beside it was left by a killed process
            clear_orphans(path.parent, f"*{path.suffix}")
            with atomic_write(path) as temporary:
                np.savez(temporary, description=np.array(json.dumps(description)), **arrays)
    except OSError as error:
        raise DataError(
            f"cannot write the score field {path} ({error.strerror or error}): set embedding.cache to a writable "
            "folder, or null for none"
        ) from error


def read_field(path: Path, key: str) -> ScoreField:
    """Read a field.

    >>> import tempfile
    >>> embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4))
    >>> [solved] = solve_fields(np.zeros((1, 8, 8, 1)), embedding, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_field(Path(folder, "field.npz"), "0a1b", solved.fields[0])
    ...     read_field(Path(folder, "field.npz"), "ffff")
    Traceback (most recent call last):
    scoreexp.data.errors.DataError: the score field ... belongs to other data or parameters

    Raises:
        DataError: one line that says why the file is not to be trusted.
    """
    try:
        require_stored(path)
        with np.load(path, allow_pickle=False) as archive:
            description: dict[str, Any] = json.loads(str(archive["description"]))
            arrays = {name: archive[name] for name in _ARRAYS}
        if description["format"] != FORMAT or description["key"] != key:
            raise DataError(f"the score field {path} belongs to other data or parameters")
        field = ScoreField(
            **arrays,
            solver=str(description["solver"]),
            boundary=str(description["boundary"]),
            tol=float(description["tol"]),
            seconds={str(k): float(v) for k, v in description["seconds"].items()},
        )
        _require_whole(field)
    except DataError:
        raise
    except Exception as e:  # numpy and zipfile raise a dozen types for a bad file
        reason = (str(e).splitlines() or [type(e).__name__])[0][:100]
        raise DataError(f"the score field {path} is damaged or not one ({reason})") from e
    if not (np.isfinite(field.log_p).all() and np.isfinite(field.score).all()):
        raise DataError(f"the score field {path} has values that are not finite")
    return field


def _require_whole(field: ScoreField) -> None:
    steps, axes = len(field.step_times), field.log_p.shape[1:-2]
    shapes = {
        "score": (*field.log_p.shape[:-2], 2, *field.log_p.shape[-2:]),
        "kept": (len(field.log_p),),
        "times": (len(field.log_p),),
        "iterations": (steps, *axes),
        "residuals": (steps, *field.residuals.shape[1:2], *axes),
        "linear_iterations": (steps, *axes),
    }
    for name, shape in shapes.items():
        if getattr(field, name).shape != shape:
            raise ValueError(f"{name} has shape {getattr(field, name).shape} instead of {shape}")
    for name in _ARRAYS:
        kinds = "iu" if name in ("kept", "iterations", "linear_iterations") else "f"
        if getattr(field, name).dtype.kind not in kinds:
            raise ValueError(f"{name} has values of type {getattr(field, name).dtype}")


def solve_fields(
    images: np.ndarray, embedding: ImageEmbedding, *, seed: int, done: Callable[[int], None] = lambda n: None
) -> Iterator[Solved]:
    """Score fields of ``images[N, H, W, C]`` in [0, 1], from the cache or solved, some images at a time.

    Each solved field is written before the next is begun, so an interrupted run goes on where it stopped. The
    positions of ``sampled_kde`` are drawn from a stream of (seed, image).

    >>> import tempfile
    >>> images = np.random.default_rng(0).random((2, 8, 8, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     precomputation = ScorePrecomputation(steps=4, solver="factorised")
    ...     embedding = ImageEmbedding(precomputation=precomputation, cache=folder)
    ...     for _ in range(2):
    ...         [solved.cached for solved in solve_fields(images, embedding, seed=0)]
    [[False, False]]
    [[True, True]]

    Args:
        images: pixel values.
        embedding: names the precomputation, the kept steps and the cache.
        seed: names the random starting densities.
        done: called with the number of images finished since its last call.

    Raises:
        DataError: if an image cannot be solved to finite values.
        ValueError: if an image is outside [0, 1] or too small, or the parameters do not fit the solver.
    """
    sampled = embedding.precomputation.initial_density == "sampled_kde"
    at_once = 1 if sampled else max(1, _PIXELS_AT_ONCE // int(np.prod(images.shape[1:3])))
    folder = None
    if embedding.cache is not None and not embedding.on_demand:
        folder = Path(embedding.cache).expanduser()
    for first in range(0, len(images), at_once):
        part = images[first : first + at_once]
        keys = [None if folder is None else field_key(image, embedding, seed) for image in part]
        fields: dict[int, ScoreField] = {}
        problems = []
        for i, key in enumerate(keys):
            if folder is None or key is None or not (path := cache_file(folder, key)).exists():
                continue
            try:
                fields[i] = read_field(path, key)
            except DataError as error:
                problems.append(f"{error}: solved anew")
        cached = [i in fields for i in range(len(part))]
        missing = [i for i in range(len(part)) if i not in fields]
        if missing:
            rng = None
            if sampled:
                rng = np.random.default_rng(stream_seed(seed, "initial density", image_hash(part[0])))
            solution = embedding.precomputation(part[missing], keep=embedding.kept, rng=rng, dtype=np.float32)
            for i, field in zip(missing, _separate(solution)):
                if not (np.isfinite(field.log_p).all() and np.isfinite(field.score).all()):
                    raise DataError(
                        f"the score field of image {first + i} has values that are not finite: take smaller steps or "
                        "another embedding.precomputation.solver"
                    )
                if folder is not None and (key := keys[i]) is not None:
                    write_field(cache_file(folder, key), key, field)
                fields[i] = field
        done(len(part))
        yield Solved([fields[i] for i in range(len(part))], cached, problems)


def _separate(batch: ScoreField) -> list[ScoreField]:
    """One field per image; each bears an equal share of the seconds."""
    count = batch.log_p.shape[1]

    def part(i: int) -> ScoreField:
        own: dict[str, Any] = {
            name: np.take(getattr(batch, name), i, axis) for name, axis in _PER_IMAGE_AXIS.items()
        }
        return replace(batch, **own, seconds={stage: value / count for stage, value in batch.seconds.items()})

    return [part(i) for i in range(count)]


def stacked(fields: list[ScoreField]) -> ScoreField:
    """One field of several images, as if they had been solved together; their seconds add up.

    >>> embedding = ImageEmbedding(precomputation=ScorePrecomputation(steps=4))
    >>> [solved] = solve_fields(np.zeros((2, 8, 8, 1)), embedding, seed=0)
    >>> stacked(solved.fields).score.shape
    (4, 2, 2, 8, 8)
    """
    all_images: dict[str, Any] = {
        name: np.stack([getattr(field, name) for field in fields], axis)
        for name, axis in _PER_IMAGE_AXIS.items()
    }
    stages = sorted({stage for field in fields for stage in field.seconds})
    seconds = {stage: sum(field.seconds.get(stage, 0.0) for field in fields) for stage in stages}
    return replace(fields[0], **all_images, seconds=seconds)
