"""Features of the real images, computed once and kept on disk."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_uint8, to_unit
from scoreexp.core.types import AtLeastTwo
from scoreexp.data.split import Split
from scoreexp.metrics.features import FeatureExtractor, as_bytes
from scoreexp.metrics.frechet import FeatureStatistics
from scoreexp.system.atomic import atomic_write
from scoreexp.system.untrusted import require_stored

VERSION = 1
_DIGEST_SAMPLES = 256

_log = logging.getLogger(__name__)


class Reference(NamedTuple):
    """What generated images are compared with.

    >>> import torch
    >>> import scoreexp as se
    >>> pictures, extractor = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), se.metrics.PixelFeatures(2)
    >>> reference = se.metrics.make_reference(lambda: [pictures], extractor, n=4, split="test", recipe="black")
    >>> reference.shape, reference.extractor, reference.statistics.mean.shape, reference.features
    ((3, 8, 8), 'pixels2', torch.Size([12]), None)

    Attributes:
        split: which split of the data it is.
        recipe: data set and preprocessing.
        shape: of an image, (C, H, W).
        extractor: name of the extractor.
        extractor_digest: its SHA-256.
        resize: how it resizes.
        statistics: moments of the features.
        features: ``[n, D]`` float32, or None if only the moments were kept.
    """

    split: str
    recipe: str
    shape: tuple[int, int, int]
    extractor: str
    extractor_digest: str
    resize: str
    statistics: FeatureStatistics
    features: Tensor | None


@checked
def make_reference(
    images: Callable[[], Iterable[Tensor]],
    extractor: FeatureExtractor,
    *,
    n: AtLeastTwo,
    split: str,
    recipe: str,
    keep_features: bool = False,
    cache: Path | None = None,
) -> Reference:
    """Features of the first n real images, from ``cache`` if they were computed before.

    The Frechet distance needs only their moments; the kernel distance, precision and recall and the sliced
    Wasserstein distance need ``keep_features``. Several processes may ask at once: one computes, the others
    wait for its file. A damaged file is reported in the log and computed again.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> import scoreexp as se
    >>> pictures = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reference = se.metrics.make_reference(
    ...         lambda: pictures.split(4), se.metrics.PixelFeatures(2), n=8, split="train", recipe="random values",
    ...         keep_features=True, cache=Path(folder))
    >>> reference.statistics.count, reference.features.shape
    (8, torch.Size([8, 12]))

    Args:
        images: opens a stream of batches ``[B, C, H, W]``, uint8 or in [0, 1]; called only where nothing is cached.
        extractor: what the images are compared by.
        n: number of images, at least 2.
        split: which split of the data they are, such as ``train``.
        recipe: data set and preprocessing in words. It names the file, so it must differ for different images:
            put ``split_digest`` of them into it.
        keep_features: keep all features, not only their moments.
        cache: folder for the file, created if need be; None computes anew.

    Raises:
        ValueError: there are fewer than n images, their shapes differ or values are outside [0, 1].
        UserError: the file cannot be written.
    """
    if cache is None:
        return _compute(images(), extractor, n, split, recipe, keep_features)
    key = {
        "version": VERSION,
        "split": split,
        "recipe": recipe,
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "resize": extractor.resize,
        "n": n,
        "keep_features": keep_features,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache.expanduser() / f"{extractor.name}-{n}-{digest[:16]}.npz"
    with _locked(path):
        if path.exists():
            try:
                return _read(path, key)
            except Exception as error:  # numpy and zipfile raise a dozen types for a bad file
                _log.warning("%s is damaged (%s): computed again", path, " ".join(str(error).split()))
        made = _compute(images(), extractor, n, split, recipe, keep_features)
        with _one_line(path):
            _write(path, key, made)
        return made


def split_images(split: Split, positions: np.ndarray, batch_size: int = 250) -> Iterator[Tensor]:
    """Images of a data set's split as 8-bit batches ``[B, C, H, W]``, in the order of ``positions``.

    >>> import numpy as np
    >>> from scoreexp.data import Split
    >>> split = Split(np.zeros((10, 3, 8, 8), np.uint8))
    >>> [batch.shape[0] for batch in split_images(split, np.arange(5), batch_size=3)]
    [3, 2]
    """
    for start in range(0, len(positions), batch_size):
        values = np.asarray(split.values[positions[start : start + batch_size]])
        x = torch.from_numpy(values)
        yield x if x.dtype == torch.uint8 else to_uint8(to_unit(x))


def split_digest(split: Split, positions: np.ndarray) -> str:
    """16 hexadecimal digits that name a choice of images: the hash of 256 evenly spaced ones and the positions.

    >>> import numpy as np
    >>> from scoreexp.data import Split
    >>> split = Split(np.zeros((10, 3, 8, 8), np.uint8))
    >>> split_digest(split, np.arange(5)) == split_digest(split, np.arange(1, 6))
    False
    """
    spaced = np.linspace(0, len(positions) - 1, min(len(positions), _DIGEST_SAMPLES)).astype(np.int64)
    digest = hashlib.sha256(repr((split.values.shape, split.values.dtype.str)).encode())
    digest.update(np.asarray(positions, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(split.values[positions[spaced]]).tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make ``path``."""
    lock = FileLock(path.with_suffix(".lock"))
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Put failures of the disk into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot keep reference features at {path} ({error.strerror}): give another cache folder, or none"
        ) from error


def _compute(
    images: Iterable[Tensor],
    extractor: FeatureExtractor,
    n: int,
    split: str,
    recipe: str,
    keep_features: bool,
) -> Reference:
    size = extractor.dimension
    statistics = FeatureStatistics(
        0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    )
    kept: list[Tensor] = []
    shapes: set[tuple[int, int, int]] = set()
    for batch in images:
        batch = as_bytes(batch[: n - statistics.count])
        features = extractor(batch).cpu()
        channels, height, width = batch.shape[1:]
        shapes.add((channels, height, width))
        statistics = statistics + FeatureStatistics.of(features)
        if keep_features:
            kept.append(features)
        if statistics.count == n:
            break
    if statistics.count < n:
        raise ValueError(f"the reference has {statistics.count} images, {n} were asked for: give a smaller n")
    if len(shapes) > 1:
        raise ValueError(f"the reference has images of the shapes {sorted(shapes)}: give one size")
    return Reference(
        split=split,
        recipe=recipe,
        shape=shapes.pop(),
        extractor=extractor.name,
        extractor_digest=extractor.digest,
        resize=extractor.resize,
        statistics=statistics,
        features=torch.cat(kept) if keep_features else None,
    )


def _write(path: Path, key: Mapping[str, Any], made: Reference) -> None:
    arrays: dict[str, Any] = {
        "key": np.array(json.dumps(key)),
        "shape": np.array(made.shape),
        "total": made.statistics.total.numpy(),
        "outer": made.statistics.outer.numpy(),
    }
    if made.features is not None:
        arrays["features"] = made.features.numpy()
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def _read(path: Path, key: Mapping[str, Any]) -> Reference:
    require_stored(path)
    with np.load(path, allow_pickle=False) as file:  # a wrong checksum of an array raises BadZipFile
        if json.loads(str(file["key"])) != key:
            raise ValueError("it is the file of another reference")
        channels, height, width = (int(v) for v in file["shape"])
        total, outer = torch.from_numpy(file["total"]), torch.from_numpy(file["outer"])
        features = torch.from_numpy(file["features"]) if key["keep_features"] else None
        if total.ndim != 1 or outer.shape != 2 * total.shape or {total.dtype, outer.dtype} != {torch.float64}:
            raise ValueError("its moments have other shapes or types")
        if features is not None and features.shape != (key["n"], len(total)):
            raise ValueError("its features have another shape")
        return Reference(
            split=key["split"],
            recipe=key["recipe"],
            shape=(channels, height, width),
            extractor=key["extractor"],
            extractor_digest=key["extractor_digest"],
            resize=key["resize"],
            statistics=FeatureStatistics(key["n"], total, outer),
            features=features,
        )
