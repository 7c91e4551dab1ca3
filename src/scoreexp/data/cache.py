"""Prepared data sets: decoded, cropped and resized once, then mapped into memory by every process.

One file per data set, variant and split::

    8 bytes   b"SCOREEXP"
    32 bytes  little-endian uint64: version, position, length and CRC-32 of the description
    4096      uint8 values [N, C, H, W]
    ...       description (JSON): shape, recipe, fingerprint of the source, labels, names, left-out files,
    CRC-32 of
              every 16 MiB of values

It is written under a temporary name and renamed when complete, so a file under its final name is whole;
size and checksums still tell one that was damaged later or copied in part. Nothing is ever rebuilt over an
existing file.
"""

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from filelock import FileLock

from scoreexp.data.errors import DataError
from scoreexp.data.progress import preparation
from scoreexp.data.split import Split
from scoreexp.system.atomic import atomic_write

VERSION = 1
SUFFIX = ".cache"
_MAGIC = b"SCOREEXP"
_HEADER = struct.Struct("<8sQQQQ")
_DATA_START = 4096
_SEGMENT = 16 << 20
_QUICK_SEGMENTS = 16  # checked at every opening; a file of at most 256 MiB is then checked in whole

_log = logging.getLogger(__name__)


class Block(NamedTuple):
    """Consecutive samples of a data set.

    Attributes:
        values: uint8 ``[n, C, H, W]``.
        labels: ``[n]``, or None.
        names: file names, or empty.
        skipped: files of this stretch that could not be read, each with the reason.
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class Contents(NamedTuple):
    """What a split is prepared from.

    Attributes:
        total: number of samples, for the progress bar and the space that is needed.
        blocks: the samples in order.
    """

    total: int
    blocks: Iterator[Block]


def prepared(
    path: Path,
    recipe: str,
    contents: Callable[[], Contents],
    *,
    fingerprint: str | None = None,
    allow_skipped: bool = False,
) -> Split:
    """Open the prepared file at ``path``, making it first if it is not there.

    >>> import tempfile
    >>> block = Block(np.zeros((2, 3, 8, 8), np.uint8), labels=np.array([4, 7]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     split = prepared(Path(folder, "two.cache"), "as published", lambda: Contents(2, iter([block])))
    ...     len(split), split.labels
    (2, array([4, 7]))

    Args:
        path: the prepared file; its name ends in ``.cache``.
        recipe: preprocessing in words; a file made by another recipe is refused.
        contents: finds the source, or raises a ``DataError`` that tells how to get it; called only where
            there is no prepared file.
        fingerprint: identifies the source files that are there; None where only the prepared file is left, or
            where publication fixes their content.
        allow_skipped: accept a file that was prepared without some unreadable images.

    Raises:
        DataError: if the file is damaged, of another version, recipe or source, or cannot be written.
    """
    if not path.exists():
        source = contents()
        with _locked(path):
            if not path.exists():  # another process may have made it while this one waited
                _write(path, recipe, fingerprint, source)
    return _open(path, recipe, fingerprint, allow_skipped)


def verify(path: Path) -> None:
    """Compare every checksum of a prepared file.

    >>> import tempfile
    >>> block = Block(np.zeros((2, 3, 8, 8), np.uint8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "two.cache")
    ...     _ = prepared(path, "as published", lambda: Contents(2, iter([block])))
    ...     verify(path)

    Raises:
        DataError: if one is wrong.
    """
    with open(path, "rb") as file:
        description = _description(file, path)
        for number in range(len(description["checksums"])):
            _check_segment(file, path, description["checksums"], number)


def _open(path: Path, recipe: str, fingerprint: str | None, allow_skipped: bool) -> Split:
    with open(path, "rb") as file:
        description = _description(file, path)
        checksums = description["checksums"]
        spaced = np.linspace(0, len(checksums) - 1, min(len(checksums), _QUICK_SEGMENTS)).astype(int)
        for number in spaced:
            _check_segment(file, path, checksums, int(number))
    remedy = "delete it to have it prepared again, or give another data.cache folder"
    if description["recipe"] != recipe:
        raise DataError(f"{path} was prepared as '{description['recipe']}', not as '{recipe}': {remedy}")
    if fingerprint is not None and description["fingerprint"] != fingerprint:
        raise DataError(f"{path} was prepared from other files than are there now: {remedy}")
    skipped = description["skipped"]
    if skipped and not allow_skipped:
        raise DataError(
            f"{path} was prepared without {len(skipped)} unreadable image(s), such as {skipped[0]}: "
            "set data.on_bad_image=skip to accept that, or mend the image and delete this file"
        )
    if skipped:
        _log.warning("%d unreadable image(s) left out of %s: %s", len(skipped), path.name, "; ".join(skipped))
    shape = tuple(description["shape"])
    values = np.memmap(path, dtype=np.uint8, mode="r", offset=_DATA_START, shape=shape)
    labels = None if description["labels"] is None else np.array(description["labels"], dtype=np.int64)
    return Split(values, labels, description["names"])


def _description(file: BinaryIO, path: Path) -> dict[str, Any]:
    header = file.read(_HEADER.size)
    remedy = "delete it to have it prepared again"
    if len(header) < _HEADER.size or header[:8] != _MAGIC:
        raise DataError(f"{path} is not a prepared data set (wrong first bytes): {remedy}")
    _, version, position, length, checksum = _HEADER.unpack(header)
    if version != VERSION:
        raise DataError(f"{path} has version {version} of the format, this program reads {VERSION}: {remedy}")
    text = None
    if position + length == os.fstat(file.fileno()).st_size:  # before so much is allocated
        file.seek(position)
        text = file.read(length)
    if text is None or zlib.crc32(text) != checksum:
        raise DataError(f"{path} is cut short or damaged (its description cannot be read): {remedy}")
    try:
        description: dict[str, Any] = json.loads(text)
        fits = _describes(description, position - _DATA_START)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise DataError(f"{path} is damaged (its description does not fit its length): {remedy}")
    return description


def _describes(description: dict[str, Any], size: int) -> bool:
    """Whether a description is complete and that of ``size`` values."""
    shape, checksums, labels = (description[key] for key in ("shape", "checksums", "labels"))
    names, texts = (
        description["names"],
        [*description["names"], *description["skipped"], description["recipe"]],
    )
    return (
        all(type(n) is int and n > 0 for n in shape)
        and math.prod(shape) == size
        and [type(n) for n in checksums] == [int] * math.ceil(size / _SEGMENT)
        and (labels is None or [type(label) for label in labels] == [int] * shape[0])
        and len(names) in (0, shape[0])
        and all(isinstance(text, str) for text in texts)
        and isinstance(description["fingerprint"], str | None)
    )


def _check_segment(file: BinaryIO, path: Path, checksums: list[int], number: int) -> None:
    # The last segment ends where the description begins; both positions follow from the shape.
    file.seek(0)
    position = _HEADER.unpack(file.read(_HEADER.size))[2]
    start = _DATA_START + number * _SEGMENT
    file.seek(start)
    if zlib.crc32(file.read(min(_SEGMENT, position - start))) != checksums[number]:
        raise DataError(f"{path} is damaged (wrong checksum): delete it to have it prepared again")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time prepare ``path``, and put failures of the disk into one line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            for orphan in path.parent.glob(f".{path.stem}.{'[0-9a-f]' * 12}{SUFFIX}"):
                orphan.unlink()  # of a preparation that was killed: the lock keeps others from being at work
            yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(
                f"no space left to write {path}: free some, or set data.cache to a folder on another disk"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise DataError(
                f"cannot write {path} ({error.strerror}): set data.cache to a writable folder"
            ) from error
        raise


def _write(path: Path, recipe: str, fingerprint: str | None, contents: Contents) -> None:
    writer = None
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        with preparation(path.stem, contents.total) as advance:
            for block in contents.blocks:
                if writer is None:
                    _require_space(path, contents.total * math.prod(block.values.shape[1:]))
                    writer = _Writer(file)
                writer.add(block)
                advance(len(block.values) + len(block.skipped))
        if writer is None or writer.count == 0:
            raise DataError(
                f"no readable sample for {path.stem}: check data.root; if only validation lacks images, set "
                "data.validate_on=train or add some"
            )
        writer.finish(recipe, fingerprint)


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DataError(
            f"no space to prepare {path}: {needed / 2**20:.1f} MiB needed, {free / 2**20:.1f} MiB free; "
            "free some, or set data.cache to a folder on another disk"
        )


class _Writer:
    """Appends blocks and keeps the description."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(b"\0" * _DATA_START)
        self._checksums: list[int] = []
        self._in_segment = 0
        self._shape: tuple[int, ...] = ()
        self._labels: list[int] | None = []
        self._names: list[str] = []
        self._skipped: list[str] = []
        self.count = 0

    def add(self, block: Block) -> None:
        self._skipped += block.skipped
        if not len(block.values):
            return
        self._shape = block.values.shape[1:]
        self.count += len(block.values)
        self._names += block.names
        if block.labels is None:
            self._labels = None
        elif self._labels is not None:
            self._labels += block.labels.tolist()
        data = memoryview(block.values.tobytes())
        self._file.write(data)
        while data:
            if self._in_segment == 0:
                self._checksums.append(0)
            part = data[: _SEGMENT - self._in_segment]
            self._checksums[-1] = zlib.crc32(part, self._checksums[-1])
            self._in_segment = (self._in_segment + len(part)) % _SEGMENT
            data = data[len(part) :]

    def finish(self, recipe: str, fingerprint: str | None) -> None:
        description = {
            "shape": [self.count, *self._shape],
            "recipe": recipe,
            "fingerprint": fingerprint,
            "checksums": self._checksums,
            "skipped": self._skipped,
            "labels": self._labels,
            "names": self._names,
        }
        text = json.dumps(description).encode()
        position = self._file.seek(0, os.SEEK_END)
        self._file.write(text)
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, VERSION, position, len(text), zlib.crc32(text)))
