"""Arrays of numpy, and the pages of a TIFF file."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile

from scoreexp.data.image_file import DEEPEST, ORIENTATION, ImageError, several
from scoreexp.data.image_writing import TIFF_TEXT
from scoreexp.data.scan import LARGEST_UNIT, Scan, require_size
from scoreexp.data.tiff import COMPRESSIONS, check_segments, images_under

_NUMBERS = "uif"
_WIDEST = 8  # bytes of a value


def read_npy(path: Path) -> Scan:
    """An array ``[H, W]``, ``[N, H, W]``, or ``[H, W, C]`` and ``[N, H, W, C]`` with 1 or 3 channels.

    Raises:
        ImageError: it is none, or holds no numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise ImageError(
            f"{path} is no array of numpy, or damaged ({error}): save it with numpy.save"
        ) from error
    shape = array.shape
    if array.dtype.kind not in _NUMBERS or array.dtype.itemsize > _WIDEST or array.ndim not in (2, 3, 4):
        raise ImageError(
            f"{path} is an array of shape {shape} and type {array.dtype}; numbers [H, W], [N, H, W] or [N, H, W, C] are "
            "needed"
        )
    has_channels = array.ndim == 4 or (array.ndim == 3 and shape[-1] in (1, 3))
    if has_channels and shape[-1] not in (1, 3):
        raise ImageError(f"{path} has {shape[-1]} channels in its last axis: 1 (gray) or 3 (RGB) are needed")
    channels = shape[-1] if has_channels else 1
    sides = shape[:-1] if has_channels else shape
    pages = (*((1,) if len(sides) == 2 else ()), *sides, channels)
    require_size(path, pages)

    def encode(made: np.ndarray) -> bytes:
        file = io.BytesIO()
        np.save(file, made.reshape(shape))
        return file.getvalue()

    return Scan(path, np.array(array).reshape(pages), encode)


def read_pages(path: Path) -> Scan:
    """All pages of a TIFF file, gray or RGB, of one size and type; previews are left out.

    Raises:
        ImageError: they differ, or are of a kind that is not supported.
    """
    with tifffile.TiffFile(path) as file:
        pages = [page for page in cast(Any, file.pages) if not page.is_reduced]
        first: Any = pages[0]
        images = images_under(file, first)
        if len(pages) > 1 and images > 1 and images != len(pages):
            raise several(path, len(pages))
        count = len(pages) if len(pages) > 1 else images
        kinds = {(page.shape, page.dtype, int(page.photometric), page.compression) for page in pages}
        gray, rgb = (
            first.axes == "YX" and int(first.photometric) == 1,
            first.axes == "YXS" and first.samplesperpixel == 3,
        )
        if len(kinds) > 1 or not (gray or rgb) or first.dtype is None or first.dtype.kind not in _NUMBERS:
            raise ImageError(
                f"{path} holds pages of {len(kinds)} kinds, the first {first.dtype} with the axes {first.axes}; gray or "
                "RGB, all pages of one size and type, are supported: convert it first"
            )
        if first.bitspersample not in (8, 16, 32, 64) or first.compression not in COMPRESSIONS:
            raise ImageError(
                f"{path} has pages of {first.bitspersample} bits, compression {first.compression}: "
                "save it with 8, 16 or 32 bits, uncompressed or with Deflate"
            )
        shape = (count, *first.shape[:2], 3 if rgb else 1)
        require_size(path, shape)
        for page in pages:
            check_segments(path, file, page, shape[1] * shape[2])
        stack = (
            np.stack([page.asarray() for page in pages])
            if len(pages) > 1
            else cast(Any, file.series[0].asarray())
        )
        if stack.size != int(np.prod(shape)):
            raise several(path, count)
        options = [_options(page) for page in pages]
    own = options * (count // len(options)) if len(options) < count else options

    def encode(made: np.ndarray) -> bytes:
        target = io.BytesIO()
        with tifffile.TiffWriter(target, bigtiff=made.nbytes > 2**31) as writer:
            for page, more in zip(made, own, strict=True):
                writer.write(
                    page if rgb else page[..., 0],
                    photometric="rgb" if rgb else "minisblack",
                    compression="zlib",
                    metadata=None,
                    software=False,
                    contiguous=False,
                    **more,
                )
        return target.getvalue()

    return Scan(path, stack.reshape(shape), encode)


def _options(page: Any) -> dict[str, Any]:
    """What is written again of the directory of a page: its text, resolution, orientation and colour profile."""
    text = {tag: page.tags.valueof(tag) for tag in TIFF_TEXT}
    if str(text.get(270) or "").startswith('{"shape"'):  # tifffile's note on the shape of an array
        text[270] = None
    extra: list[tuple[Any, ...]] = [
        (tag, 2, None, str(value).encode("utf-8"), True) for tag, value in text.items() if value
    ]
    if (turned := page.tags.valueof(ORIENTATION, 1)) != 1:
        extra.append((ORIENTATION, 3, 1, int(turned), True))
    options: dict[str, Any] = {"extratags": extra, "iccprofile": page.iccprofile or None}
    resolution = [page.tags.valueof(tag) for tag in (282, 283)]
    if all(isinstance(value, tuple) and value[0] > 0 and value[1] > 0 for value in resolution):
        options |= {"resolution": tuple(resolution), "resolutionunit": int(page.tags.valueof(296, 2))}
    return options


def span_of(scan: Scan, white_level: int | None) -> tuple[float, float] | None:
    """The stored values of black and white: those of the type, or [0, 1]; None where they are the extremes of the file."""
    dtype = scan.values.dtype
    if dtype == np.uint8:
        return 0.0, 255.0
    if dtype == np.uint16:
        return 0.0, float(white_level or DEEPEST)
    if dtype.kind != "f":
        return None
    finite = scan.values[np.isfinite(scan.values)]
    is_unit = (
        finite.size > 0
        and 0 <= float(finite.mean(dtype=np.float64)) <= 1
        and float(np.abs(finite).max()) <= LARGEST_UNIT
    )
    return (0.0, 1.0) if is_unit else None
