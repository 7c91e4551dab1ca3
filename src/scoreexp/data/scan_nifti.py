"""NIfTI-1 and NIfTI-2 in single files, plain or compressed by gzip: the header is read here, and written as it was.

Reference: the NIfTI-1 and NIfTI-2 data formats, Neuroimaging Informatics Technology Initiative, https://nifti.nimh.nih.gov
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scoreexp.data.image_file import ImageError
from scoreexp.data.scan import MAX_VALUES, Scan, require_size

_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
_LARGEST_START = 16 << 20  # bytes before the values: header and extensions


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    slope: float
    intercept: float


def read_nifti(path: Path) -> Scan:
    """The slices of a volume, or of several, ``[slices, rows, columns, 1]``: the first axis of the file is that of columns.

    Header, extensions, affine and scaling are written as they were.

    Raises:
        ImageError: the file is damaged, a header without its values, or holds colours, vectors or complex values.
    """
    is_packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if is_packed else path.open("rb") as file:
            head = file.read(_LARGEST_START)
            header = _header(path, head)
            size = math.prod(header.shape) * header.dtype.itemsize
            rest = header.start + size - len(head)
            data = head + (file.read(rest) if rest > 0 else b"")  # no more than the header announces
            tail = data[header.start + size :] + file.read(_LARGEST_START)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{path} is damaged or incomplete ({error}): get a whole copy of it") from error
    if len(data) < header.start + size:
        raise ImageError(
            f"{path} is cut short ({len(data)} bytes of {header.start + size}): get a whole copy of it"
        )
    start, dtype = data[: header.start], header.dtype
    pages = np.frombuffer(data, dtype, math.prod(header.shape), header.start).reshape(header.shape)

    def encode(values: np.ndarray) -> bytes:
        made = start + np.ascontiguousarray(values, dtype).tobytes() + tail
        return gzip.compress(made, mtime=0) if is_packed else made

    return Scan(path, pages, encode, slope=header.slope, intercept=header.intercept)


def _header(path: Path, head: bytes) -> _Header:
    order = next(
        (order for order in "<>" if head[:4] in (struct.pack(f"{order}i", n) for n in (348, 540))), None
    )
    if order is None:
        raise ImageError(f"{path} is no NIfTI file: its first four bytes are not the size of a header")
    is_first = struct.unpack_from(f"{order}i", head)[0] == 348
    at = _FIRST if is_first else _SECOND
    if len(head) < (348 if is_first else 540) or head[slice(*at.magic)][:3] not in (b"n+1", b"n+2"):
        raise ImageError(
            f"{path} is a header without values (.hdr and .img), or damaged: save it as one .nii file"
        )
    count, *sides = struct.unpack_from(order + at.sides, head, at.sides_from)
    kind, (slope, intercept) = (
        struct.unpack_from(f"{order}h", head, at.kind)[0],
        struct.unpack_from(order + at.scaling, head, at.scaling_from),
    )
    start = int(struct.unpack_from(order + at.start, head, at.start_from)[0])
    if kind not in _TYPES:
        raise ImageError(
            f"{path} holds values of type {kind} (colours, complex or longer numbers); integers up to 32 bits and floating "
            "point up to 64 are supported: convert it first"
        )
    if not 2 <= count <= 7 or min(sides[:count]) < 1 or math.prod(sides[:count]) > MAX_VALUES:
        raise ImageError(
            f"{path} has the sides {sides[: max(0, min(count, 7))]}: from 2 to 7, each at least 1, are needed"
        )
    if count > 4 and sides[4] > 1:
        raise ImageError(f"{path} holds vectors of {sides[4]} values: save each component as a file")
    if not 0 <= start <= _LARGEST_START:
        raise ImageError(f"{path} is damaged (its values start at byte {start}): get a whole copy of it")
    width, height, *others = sides[:count]
    shape = (math.prod(others), height, width, 1)
    require_size(path, shape)
    has_scaling = math.isfinite(slope) and slope != 0 and math.isfinite(intercept)
    scaling = (float(slope), float(intercept)) if has_scaling else (1.0, 0.0)
    return _Header(shape, np.dtype(order + _TYPES[kind]), start, *scaling)


class _Layout(NamedTuple):
    """Where a version of the header has its fields, and their types."""

    magic: tuple[int, int]
    sides: str
    sides_from: int
    kind: int
    start: str
    start_from: int
    scaling: str
    scaling_from: int


_FIRST = _Layout((344, 348), "8h", 40, 70, "f", 108, "2f", 112)
_SECOND = _Layout((4, 12), "8q", 16, 12, "q", 168, "2d", 176)
