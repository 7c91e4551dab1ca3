"""TIFF files: tifffile decides everything about them and decodes them, with the codecs of imagecodecs.

One image of gray, RGB or palette colours is read, with or without alpha, in 1 to 16 bits or floating point, in strips or
tiles, one plane or several, of any compression in ``COMPRESSIONS``. Everything that would have to be guessed is refused:
further bands, signed values, stacks.
"""

import io
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import tifffile
from PIL import Image

from scoreexp.data.image_file import (
    DEEPEST,
    ORIENTATION,
    BitDepth,
    ImageError,
    Kind,
    Picture,
    picture_of,
    several,
    sixteen_bit,
    too_large,
    unit_values,
)
from scoreexp.data.image_writing import TIFF_TEXT

OF_PAGES = "; denoise takes volume=false for an image each, volume=true for all as one volume"
MAX_DIRECTORIES = 64  # of one file: an image, its previews and its resolutions
# none, CCITT, LZW, JPEG, Deflate and its old number, PackBits, LZMA, Zstandard, WebP
COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32946, 32773, 34925, 50000, 50001)
_WITH_A_SIZE_OF_THEIR_OWN = (7, 50001)  # formats inside of the format
_EXIF_BLOCK, _GPS_BLOCK = 0x8769, 0x8825
# Most tags of a TIFF file describe the layout of that very file; these describe the image.
_KEPT = (*TIFF_TEXT, 282, 283, 296, _EXIF_BLOCK, _GPS_BLOCK)
_GRAY_WHITE_ZERO, _GRAY, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
# Colours, channels, alpha (1: colours are multiplied by it; of four channels without a word the last is alpha).
_KINDS = (
    *((_GRAY_WHITE_ZERO, 1, ()), (_GRAY, 1, ()), (_RGB, 3, ()), (_PALETTE, 1, ()), (_YCBCR, 3, ())),
    *((_GRAY, 2, (1,)), (_GRAY, 2, (2,)), (_RGB, 4, (1,)), (_RGB, 4, (2,)), (_RGB, 4, ())),
)
_DTYPES = ("bool", "uint8", "uint16", "float16", "float32", "float64")


def read_tiff(path: Path, max_pixels: int, white: int = DEEPEST) -> Picture:
    """The one image of a file, upright.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(f"{folder}/deep.tif", np.full((2, 3), 65535, np.uint16))
    ...     picture = read_tiff(Path(folder, "deep.tif"), max_pixels=6)
    >>> picture.pixels.shape, picture.bit_depth
    ((2, 3, 1), 16)

    Raises:
        ImageError: it is not one image of a supported kind.
    """
    with tifffile.TiffFile(path) as file:
        page = _only_page(path, file, max_pixels)
        check_segments(path, file, page, max_pixels)
        values = _decoded(path, page)
        picture = picture_of(
            values,
            page.tags.valueof(ORIENTATION, 1),
            _mode(page),
            _kept(path, page),
            page.iccprofile or b"",
            white if values.dtype == np.uint16 else DEEPEST,
        )
    if picture.bit_depth == 32:
        _check_float(path, picture.pixels)
    return picture


def tiff_kind(path: Path, max_pixels: int) -> Kind:
    """What the directories of a file say of its image.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tifffile.imwrite(f"{folder}/deep.tif", np.full((2, 3), 65535, np.uint16))
    ...     tiff_kind(Path(folder, "deep.tif"), max_pixels=6)
    Kind(width=3, height=2, channels=1, alpha=False, bit_depth=16, mode=...)

    Raises:
        ImageError: as ``read_tiff``, as far as they tell.
    """
    with tifffile.TiffFile(path) as file:
        page = _only_page(path, file, max_pixels)
        size = (page.imagewidth, page.imagelength)
        width, height = size[::-1] if page.tags.valueof(ORIENTATION, 1) >= 5 else size
        channels = 3 if int(page.photometric) in (_RGB, _PALETTE, _YCBCR) else 1
        return Kind(width, height, channels, page.samplesperpixel in (2, 4), _bit_depth(page), _mode(page))


def _only_page(path: Path, file: tifffile.TiffFile, max_pixels: int) -> Any:
    """The directory of the one image, of a supported kind and size."""
    pages = []
    for number, page in enumerate(cast(Any, file.pages)):
        if number == MAX_DIRECTORIES:
            raise ImageError(
                f"{path} holds more than {MAX_DIRECTORIES} images; one is needed: save it as its own file{OF_PAGES}"
            )
        if not page.is_reduced:  # a preview
            pages.append(page)
    if len(pages) != 1:
        raise several(path, len(pages), OF_PAGES)
    page = pages[0]
    if (images := images_under(file, page)) != 1:
        raise several(path, images, OF_PAGES)
    if page.imagewidth * page.imagelength > max_pixels:
        raise too_large(path, (page.imagewidth, page.imagelength), max_pixels)
    kind = (int(page.photometric), page.samplesperpixel, tuple(int(kind) for kind in page.extrasamples))
    is_jpeg = int(page.photometric) == _YCBCR and page.compression != 7
    if (
        kind not in _KINDS
        or is_jpeg
        or page.axes not in ("YX", "YXS", "SYX")
        or str(page.dtype) not in _DTYPES
    ):
        colours = "CMYK" if page.photometric == 5 else page.photometric.name
        raise ImageError(
            f"{path} holds {page.samplesperpixel} channels of {page.bitspersample} bits, type {page.dtype}, in colours "
            f"{colours}{_bands(kind[2])}; gray or RGB, with or without alpha, in 8 or 16 bits or floating "
            "point is supported: convert it first"
        )
    if page.compression not in COMPRESSIONS:
        raise ImageError(
            f"{path} is compressed with {getattr(page.compression, 'name', page.compression)}, which is not supported: "
            "save it uncompressed or with Deflate"
        )
    return page


def _bands(extra: tuple[int, ...]) -> str:
    """In words, the bands beyond colours and alpha."""
    unknown = len([kind for kind in extra if kind not in (1, 2)])
    return f", {unknown} of them of unknown meaning" if unknown else ""


def images_under(file: tifffile.TiffFile, page: Any) -> int:
    """How many images are stored under one directory: some writers put a whole stack there."""
    if page.is_imagej:
        return int((file.imagej_metadata or {}).get("images", 1))
    if page.is_stk:
        return int(page.tags[33629].count)
    shapes = [entry.get("shape", ()) for entry in file.shaped_metadata or ()] if page.is_shaped else []
    own = math.prod(page.shape)
    return max([page.imagedepth, *(math.prod(shape) // own for shape in shapes if shape)])


def check_segments(path: Path, file: tifffile.TiffFile, page: Any, max_pixels: int) -> None:
    """Refuse strips or tiles that are larger than the image, before memory is taken for them."""
    too_long = sum(page.databytecounts) > file.filehandle.size
    if math.prod(page.chunks) > 8 * max_pixels or too_long:
        raise ImageError(f"{path} is damaged (its strips or tiles are too large); get a whole copy of it")
    if page.compression in _WITH_A_SIZE_OF_THEIR_OWN:
        room = math.prod(page.chunks)
        segments = file.filehandle.read_segments(page.dataoffsets, page.databytecounts)
        for data, _ in cast(Any, segments):
            with Image.open(io.BytesIO(data or b""), formats=("JPEG", "WEBP")) as segment:
                if segment.width * segment.height > room:
                    raise ImageError(f"{path} unpacks to more than its size says; get a whole copy of it")


def _decoded(path: Path, page: Any) -> np.ndarray:
    """The values ``[H, W]`` or ``[H, W, C]``: uint8, uint16 or floating point, white is the largest."""
    values = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if page.photometric == _PALETTE:
        return (page.colormap >> 8).astype(np.uint8).T[values]
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind == "u":
        bits, full = page.bitspersample, {1: 255, 2: DEEPEST}[values.dtype.itemsize]
        if bits not in (8, 16):  # to the full range, exactly for 1, 2 and 4 bits
            values = np.round(values * (full / (2**bits - 1))).astype(values.dtype)
        if page.photometric == _GRAY_WHITE_ZERO:
            values = full - values
    elif page.photometric == _GRAY_WHITE_ZERO:
        raise ImageError(f"{path} holds floating point values with white as zero: convert it first")
    if tuple(map(int, page.extrasamples)) == (1,):  # colours are multiplied by alpha
        unit = unit_values(values)
        unit[..., :-1] /= np.where(unit[..., -1:] > 0, unit[..., -1:], 1)
        full = {1: 255, 2: DEEPEST}.get(values.dtype.itemsize if values.dtype.kind == "u" else 0, 0)
        values = sixteen_bit(unit, full).astype(values.dtype) if full else unit
    return values


def _bit_depth(page: Any) -> BitDepth:
    if page.dtype.kind == "f":
        return 32
    return 16 if page.dtype.itemsize == 2 and page.photometric != _PALETTE else 8


def _mode(page: Any) -> str:
    """The colours as Pillow names them."""
    if page.photometric == _PALETTE:
        return "P"
    if page.bitspersample == 1:
        return "1"
    colours, depth = page.samplesperpixel, _bit_depth(page)
    if depth == 8:
        return {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[colours]
    return {16: "I;16", 32: "F"}[depth] if colours < 3 else "RGB"


def _check_float(path: Path, pixels: np.ndarray) -> None:
    low, high, mean = float(pixels.min()), float(pixels.max()), float(pixels.mean(dtype=np.float64))
    if not math.isfinite(mean):
        raise ImageError(f"{path} has values that are not finite, such as NaN: replace them")
    if not (low >= -10 and high <= 10 and 0 <= mean <= 1):
        whole = bool((pixels == np.round(pixels)).all())
        raise ImageError(
            f"{path} has floating point values in [{low:.4g}, {high:.4g}] with mean {mean:.4g}; they must be in [0, 1] "
            f"apart from noise: {'divide the counts by their number at white' if whole else 'rescale them'}"
        )


def _kept(path: Path, page: Any) -> bytes:
    """The tags that describe the image, as EXIF data; of a BigTIFF file, which EXIF cannot quote, the text alone."""
    kept = Image.Exif()
    if page.parent.is_bigtiff:
        for tag in TIFF_TEXT:
            if isinstance(text := page.tags.valueof(tag), str):
                kept[tag] = text
    else:
        exif = Image.Exif()
        with path.open("rb") as file:
            exif.load_from_fp(file)
            for tag in _KEPT:
                if tag in exif:
                    kept[tag] = exif.get_ifd(tag) if tag in (_EXIF_BLOCK, _GPS_BLOCK) else exif[tag]
    # tifffile's note on the shape of an array must not survive a change of that shape.
    if str(kept.get(270, "")).startswith('{"shape"'):
        del kept[270]
    return kept.tobytes() if kept else b""
