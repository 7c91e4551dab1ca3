"""CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 x 3, ten classes.

Reference: Learning multiple layers of features from tiny images, A. Krizhevsky, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import codecs
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scoreexp.data.cache import Block, Contents
from scoreexp.data.corpus import FileCorpus
from scoreexp.data.download import download
from scoreexp.data.errors import DataError
from scoreexp.data.split import Split, SplitName

_URLS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
)
_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_PIXELS = 3 * 32 * 32
_SOURCES = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")


class CIFAR10(FileCorpus):
    """CIFAR-10 from its Python or binary version, packed or unpacked; validation and test are the test set.

    Args:
        classes: give the model the ten classes; the published diffusion models are trained without.
        common: the keys of `DataModule`.
    """

    how_to_get = (
        f"it must hold one of {', '.join(_SOURCES)} from https://www.cs.toronto.edu/~kriz/cifar.html; "
        "or set data.download=true (170 MB)"
    )

    downloadable = True

    def __init__(self, *, classes: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.classes = classes

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, 32, 32)

    @property
    def num_classes(self) -> int | None:
        return 10 if self.classes else None

    def open_split(self, name: SplitName) -> Split:
        part = "train" if name == "train" else "test"
        return self.prepared(f"cifar10-{part}", "as published", lambda: self._contents(part))

    def _contents(self, part: str) -> Contents:
        source = self.find(*_SOURCES, "test_batch", "test_batch.bin")
        if source is None and not self.download:
            raise DataError(f"no CIFAR-10 in {self.folder}: {self.how_to_get}")
        if source is not None and source.name.startswith("test_batch"):
            source = source.parent  # data.root is the unpacked folder itself
        stems = ["test_batch"] if part == "test" else [f"data_batch_{i}" for i in range(1, 6)]
        return Contents(10_000 * len(stems), self._blocks(source, stems))

    def _blocks(self, source: Path | None, stems: list[str]) -> Iterator[Block]:
        yield from read_batches(source or download(_URLS, _SHA256, self.folder), stems)


def read_batches(source: Path, stems: list[str]) -> Iterator[Block]:
    """The batches of these names, in their order, from a folder or archive of either version.

    Raises:
        DataError: if the archive or a batch is damaged, incomplete, or names foreign classes.
    """
    files = _folder_files(source, stems) if source.is_dir() else _archive_files(source, stems)
    for stem in stems:
        for name in (stem, f"{stem}.bin"):
            if name in files:
                data, where = files.pop(name), f"{name} in {source}"
                yield _read_binary(data, where) if name.endswith(".bin") else _read_pickle(data, where)
                break
        else:
            raise DataError(f"{stem} is missing in {source}: download CIFAR-10 again")


def _folder_files(folder: Path, stems: list[str]) -> dict[str, bytes]:
    files = [folder / name for stem in stems for name in (stem, f"{stem}.bin")]
    return {file.name: file.read_bytes() for file in files if file.is_file()}


def _archive_files(path: Path, stems: list[str]) -> dict[str, bytes]:
    wanted = {name for stem in stems for name in (stem, f"{stem}.bin")}
    files = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in wanted else None
                if file is not None:
                    files[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is cut short, damaged or not a tar.gz archive: download it again") from error
    return files


def _read_binary(data: bytes, where: str) -> Block:
    """Rows of 1 label byte and 3072 pixel bytes."""
    if not data or len(data) % (1 + _PIXELS):
        raise DataError(f"{where} has {len(data)} bytes, not a multiple of {1 + _PIXELS}: download it again")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return _block(rows[:, 1:], rows[:, 0], where)


def _read_pickle(data: bytes, where: str) -> Block:
    """A dictionary with ``data`` uint8 [n, 3072] and ``labels``."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.array(batch[b"labels"])
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    except Exception as error:  # an unpickler raises anything on damaged data
        raise DataError(f"{where} is cut short or not a CIFAR-10 batch: download it again") from error
    if not (
        isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (len(labels), _PIXELS)
    ):
        raise DataError(f"{where} does not hold one row of {_PIXELS} bytes per label: download it again")
    return _block(pixels, labels, where)


def _block(rows: np.ndarray, labels: np.ndarray, where: str) -> Block:
    if len(labels) == 0 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{where} has labels that are not 0..9: download it again")
    return Block(rows.reshape(-1, 3, 32, 32), labels.astype(np.int64))


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and plain containers; a pickle that names anything else could run any code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise DataError(
                f"names {module}.{name}, which no CIFAR-10 batch does: do not open it, download it again"
            )
        return self._ALLOWED[module, name]
