"""Pictures from and to files without loss: depth, transparency, colour profile and camera data survive.

Read: PNG, JPEG, TIFF, WebP, BMP and GIF with 8 or 16 bits per channel, TIFF also in floating point;
black-and-white, gray, palette and RGB, with or without transparency. Written: the same except GIF, whose
palette would add noise of its own. A picture is turned upright when it is read. Refused with one line that
says why: CMYK and other colour spaces (converting them needs a profile), animations and files of several
pages (which one is meant?), damaged files and everything else that would have to be guessed.

Values are in [0, 1]. Only floating point files may go beyond that, within [-10, 10] and with a mean in
[0, 1], because an observation ``y = x + sigma z`` can be stored exactly in no other way.
"""

import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import tifffile
from PIL import Image

from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_uint8
from scoreexp.data.suffixes import READABLE as READABLE
from scoreexp.data.suffixes import WRITABLE as WRITABLE
from scoreexp.system.atomic import atomic_write

BitDepth = Literal[8, 16, 32]

MAX_PIXELS = 100_000_000
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")  # never EPS, for which Pillow starts another program
SUFFIXES: dict[int, tuple[str, ...]] = {8: WRITABLE, 16: (".png", ".tif", ".tiff"), 32: (".tif", ".tiff")}
WITH_ALPHA = (".png", ".tif", ".tiff", ".webp")

_ORIENTATION, _EXIF_BLOCK, _GPS_BLOCK = 0x0112, 0x8769, 0x8825
# Most tags of a TIFF file describe the layout of that very file; these describe the picture.
_TIFF_TEXT = (270, 271, 272, 305, 306, 315, 316, 33432)  # description, make, model, software, time, ...
_TIFF_KEPT = (*_TIFF_TEXT, 282, 283, 296, _EXIF_BLOCK, _GPS_BLOCK)
# Colours (0: gray with white as zero, 1: gray, 2: RGB), channels, alpha (1: colours are multiplied by it).
_TIFF_KINDS = (
    *((0, 1, ()), (1, 1, ()), (2, 3, ())),
    *((1, 2, (1,)), (1, 2, (2,)), (2, 4, (1,)), (2, 4, (2,))),
)
# EXIF orientation -> what turns the stored array upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


class ImageError(UserError):
    """A picture cannot be read or written; the message names the file, what is allowed and the remedy."""


@dataclass(frozen=True)
class Picture:
    """A picture and what its file holds besides the pixels.

    Arguments:
        pixels: float32 ``[H, W, C]``, C = 1 (gray) or 3 (RGB), values in [0, 1].
        alpha: float32 ``[H, W]`` in [0, 1], 0 is transparent, or None.
        bit_depth: of a channel in the file; 32 is floating point.
        mode: the colours of the file, as Pillow names them.
        exif: camera data without the orientation, or nothing.
        icc: colour profile, or nothing.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: BitDepth = 8
    mode: str = "RGB"
    exif: bytes = b""
    icc: bytes = b""


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture from a file, upright.

    Raises:
        ImageError: the file is missing, cannot be opened, is not one whole picture of a supported kind, or
            has more than ``max_pixels`` pixels (each takes 12 bytes of memory or more).
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder; give the name of a picture file")
    try:
        if not path.is_file() and os.path.exists(path):
            raise ImageError(f"{path} is a device or pipe; give the name of a picture file")
        with path.open("rb") as file:
            head = file.read(26)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            f"{path} does not exist; check its name (the current folder is {Path.cwd()})"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path} cannot be opened ({reason}); check its name and permissions") from None
    if not head:
        raise ImageError(f"{path} is empty (0 bytes); give a whole picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            warnings.simplefilter("ignore", UserWarning)  # of damage in what surrounds the pixels
            if head[:2] in (b"II", b"MM"):
                return _read_tiff(path, max_pixels)
            return _read_with_pillow(path, max_pixels, deep=head[:4] == b"\x89PNG" and head[24] == 16)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} needs more memory than there is: crop or shrink it first") from None
    except Image.DecompressionBombError:
        raise _too_large(path, None, max_pixels) from None
    except (Image.UnidentifiedImageError, tifffile.TiffFileError):
        raise ImageError(
            f"{path} is not a picture of a supported kind or its beginning is damaged; "
            f"supported are {_names(READABLE)}: convert it first"
        ) from None
    except Exception as error:  # decoders raise exceptions of any kind on damaged data
        raise ImageError(
            f"{path} is damaged or incomplete ({' '.join(str(error).split()) or type(error).__name__}); "
            "get a whole copy of it"
        ) from error


def write_image(
    path: str | Path, picture: Picture | np.ndarray, *, like: Picture | None = None, overwrite: bool = False
) -> None:
    """Write a picture to a file, whole or not at all; folders that are missing are made.

    Values of 8 and 16 bit files are clipped to [0, 1] and rounded, floating point files hold them as they
    are. JPEG is written with quality 95 and full colour resolution, WebP without loss (it has no gray, so
    gray becomes RGB). All formats but BMP keep the colour profile; camera data survive too, of TIFF files of
    more than 8 bits only the descriptive text and the resolution.

    Arguments:
        path: the suffix chooses the format, one of ``WRITABLE``.
        picture: the pixels: a ``Picture``, or an array ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` that is
            floating point in [0, 1] or uint8.
        like: take depth, transparency, camera data and colour profile from here, as of the file that was
            processed.
        overwrite: replace an existing file.

    Raises:
        ImageError: see ``check_writable``; the array is no picture or holds NaN; or the file system refuses.
    """
    path = Path(path)
    picture = _with_pixels(path, picture, like)
    check_writable(path, like=picture, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            _encode(temporary, picture)
    except (
        OSError,
        ValueError,
    ) as error:  # ValueError: beyond the limits of the format, such as its largest size
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot write {path} ({reason}); choose another place or format") from error


def check_writable(path: str | Path, *, like: Picture | None = None, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a path to which ``write_image`` cannot write a picture like ``like``.

    Raises:
        ImageError: the suffix is not one of ``WRITABLE`` or its format cannot hold the depth or the
            transparency; the file exists and ``overwrite`` is false; the path is a folder; or its folder
            cannot be made or written to.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(f"cannot write {path}: its suffix must be one of {_names(WRITABLE)}")
    if like is not None and suffix not in SUFFIXES[like.bit_depth]:
        depth = "floating point values" if like.bit_depth == 32 else f"{like.bit_depth} bits per channel"
        raise ImageError(
            f"cannot write {path}: the picture has {depth} and {suffix} holds {_depths(suffix)}; "
            f"choose {_names(SUFFIXES[like.bit_depth])}"
        )
    if like is not None and like.alpha is not None and suffix not in WITH_ALPHA:
        raise ImageError(
            f"cannot write {path}: the picture is partly transparent, which {suffix} cannot hold; "
            f"choose {_names(WITH_ALPHA)}"
        )
    if os.path.isdir(path):
        raise ImageError(f"cannot write {path}: it is a folder; give the name of a file")
    if os.path.exists(path) and not overwrite:
        raise ImageError(f"cannot write {path}: it exists; choose another name or allow overwriting it")
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "is not writable" if folder.is_dir() else "is not a folder"
        raise ImageError(f"cannot write {path}: {folder} {reason}; choose another folder")


def list_images(folder: str | Path) -> list[Path]:
    """All picture files in a folder and the folders in it, by relative path, numbers in their order (2, 10).

    Hidden files and folders are left out and links to folders are not followed.

    Raises:
        ImageError: ``folder`` is not a folder, or holds no picture of a supported kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; give the name of a folder of pictures")
    found = [
        path
        for path in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
        if path.suffix.lower() in READABLE
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ImageError(f"{folder} holds no pictures; supported are {_names(READABLE)}")
    return sorted(found, key=lambda path: [_natural(part) for part in path.relative_to(folder).parts])


def _natural(name: str) -> tuple[list[str | int], str]:
    pieces = re.split(r"(\d+)", name.casefold())  # text and numbers take turns
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _read_with_pillow(path: Path, max_pixels: int, *, deep: bool = False) -> Picture:
    """Any supported file of 8 bits per channel, or a PNG file of 16."""
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise _too_large(path, image.size, max_pixels)
        # The further pictures of a camera's MPO file belong to the first: a depth or brightness map.
        if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "TIFF"):
            raise _several(path, image.n_frames)  # type: ignore[attr-defined]
        mode, icc = image.mode, image.info.get("icc_profile") or b""
        values = _deep_png(path, image) if deep else _eight_bit(path, image)
        exif = image.getexif()
        if image.format == "TIFF":  # Pillow has turned it upright
            return _picture(values, 1, mode, _kept_of_tiff(path), icc)
        orientation = exif.pop(_ORIENTATION, 1)
        raw = image.info.get("exif", b"") if orientation == 1 else b""  # as it is, if it may stay so
        if raw:
            raw = b"Exif\0\0" + raw.removeprefix(b"Exif\0\0")  # WebP has it without this start
        return _picture(values, orientation, mode, raw or (exif.tobytes() if exif else b""), icc)


def _eight_bit(path: Path, image: Image.Image) -> np.ndarray:
    mode, transparent = image.mode, "transparency" in image.info
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if transparent or mode == "PA" else "RGB")
    elif mode in ("1", "L", "RGB"):
        image = image.convert({"1": "L"}.get(mode, mode) + ("A" if transparent else ""))
    elif mode not in ("LA", "RGBA"):
        raise ImageError(
            f"{path} has colours of kind {mode}; black-and-white, gray, palette and RGB are supported: "
            "convert it to RGB with its colour profile first"
        )
    return np.asarray(image)


def _deep_png(path: Path, image: Image.Image) -> np.ndarray:
    """All 16 bits of a PNG file's channels.

    Pillow keeps them for gray; of other colours it takes one byte of the two: the raw mode says which.
    """

    def decode(raw_mode: str | None) -> np.ndarray:
        with Image.open(path, formats=("PNG",)) as copy:
            if raw_mode is not None:
                cast(Any, copy).tile = [(*copy.tile[0][:3], raw_mode)]
            return np.asarray(copy).astype(np.uint16)

    stored = cast(Any, image).tile[0][3]
    if stored == "I;16B":
        values = decode(None)[..., None]
    elif stored == "LA;16B":  # the four bytes of a pixel as if they were four channels
        pairs = decode("RGBA")
        values = pairs[..., 0::2] << 8 | pairs[..., 1::2]
    else:
        values = decode(f"{image.mode};16B") << 8 | decode(f"{image.mode};16L")
    transparent = image.info.get("transparency")
    if transparent is None:
        return values
    opaque = (values != np.array(transparent)).any(axis=-1, keepdims=True)
    return np.concatenate([values, opaque * np.uint16(65535)], axis=-1)


def _read_tiff(path: Path, max_pixels: int) -> Picture:
    with tifffile.TiffFile(path) as file:
        pages = [page for page in cast(Any, file.pages) if not page.is_reduced]  # without previews
        if len(pages) != 1:
            raise _several(path, len(pages))
        page = pages[0]
        if page.imagewidth * page.imagelength > max_pixels:
            raise _too_large(path, (page.imagewidth, page.imagelength), max_pixels)
        if page.bitspersample <= 8:
            return _read_with_pillow(path, max_pixels)
        kinds = (int(page.photometric), page.samplesperpixel, tuple(int(kind) for kind in page.extrasamples))
        if (
            kinds not in _TIFF_KINDS
            or page.axes not in ("YX", "YXS", "SYX")
            or page.bitspersample not in (16, 32, 64)
            or page.dtype not in ("uint16", "float16", "float32", "float64")
        ):
            raise ImageError(
                f"{path} holds {page.samplesperpixel} channels of {page.bitspersample} bits, type {page.dtype}, "
                f"in colours {page.photometric.name}; gray or RGB, with or without alpha, in 8 or 16 bits or "
                "floating point is supported: convert it first"
            )
        if page.compression not in (1, 8, 32946):  # none, Deflate and its old number
            raise ImageError(
                f"{path} is compressed with {getattr(page.compression, 'name', page.compression)}, which is not "
                "supported beyond 8 bits; save it uncompressed or with Deflate"
            )
        _check_strips(path, file, page, max_pixels)
        values = page.asarray()
        values = np.moveaxis(values, 0, -1) if page.axes == "SYX" else values.reshape(*values.shape[:2], -1)
        if page.photometric == 0 and values.dtype == np.uint16:  # white is zero
            values = 65535 - values
        if kinds[2] == (1,):  # colours are multiplied by alpha
            unit = _unit(values)
            unit[..., :-1] /= np.where(unit[..., -1:] > 0, unit[..., -1:], 1)
            values = _sixteen_bit(unit) if values.dtype == np.uint16 else unit
        orientation = page.tags.valueof(_ORIENTATION, 1)
        mode = ("I;16" if values.dtype == np.uint16 else "F") if values.shape[-1] < 3 else "RGB"
        picture = _picture(values, orientation, mode, _kept_of_tiff(path), page.iccprofile or b"")
    if picture.bit_depth == 32:
        _check_float(path, picture.pixels)
    return picture


def _check_strips(path: Path, file: tifffile.TiffFile, page: Any, max_pixels: int) -> None:
    """Refuse strips or tiles that are larger than the picture, or that unpack to more than they should hold."""
    room = math.prod(page.chunks) * page.dtype.itemsize
    if math.prod(page.chunks) > 8 * max_pixels or sum(page.databytecounts) > file.filehandle.size:
        raise ImageError(f"{path} is damaged (its strips or tiles are too large); get a whole copy of it")
    if page.compression == 1:
        return
    for data, _ in cast(Any, file.filehandle.read_segments(page.dataoffsets, page.databytecounts)):
        if data is not None and len(zlib.decompressobj().decompress(data, room + 1)) > room:
            raise ImageError(f"{path} unpacks to more than its size says; get a whole copy of it")


def _check_float(path: Path, pixels: np.ndarray) -> None:
    low, high, mean = float(pixels.min()), float(pixels.max()), float(pixels.mean(dtype=np.float64))
    if not (low >= -10 and high <= 10 and 0 <= mean <= 1):  # also false for NaN
        raise ImageError(
            f"{path} has floating point values in [{low:.4g}, {high:.4g}] with mean {mean:.4g}; they must be "
            "in [0, 1] apart from noise: rescale them"
        )


def _kept_of_tiff(path: Path) -> bytes:
    with path.open("rb") as file:
        exif = Image.Exif()
        exif.load_from_fp(file)
        kept = Image.Exif()
        for tag in _TIFF_KEPT:
            # tifffile's note on the shape of an array must not survive a change of that shape.
            if tag in exif and not str(exif[tag]).startswith('{"shape"'):
                kept[tag] = exif.get_ifd(tag) if tag in (_EXIF_BLOCK, _GPS_BLOCK) else exif[tag]
        return kept.tobytes() if kept else b""


def _picture(values: np.ndarray, orientation: int, mode: str, exif: bytes, icc: bytes) -> Picture:
    values = values.reshape(*values.shape[:2], -1)
    upright = np.ascontiguousarray(_UPRIGHT.get(orientation, lambda x: x)(values))
    unit = _unit(upright)
    has_alpha = unit.shape[-1] in (2, 4)
    return Picture(
        pixels=np.ascontiguousarray(unit[..., :-1]) if has_alpha else unit,
        alpha=unit[..., -1].copy() if has_alpha else None,
        bit_depth=cast(BitDepth, {"uint8": 8, "uint16": 16}.get(values.dtype.name, 32)),
        mode=mode,
        exif=exif,
        icc=icc,
    )


def _unit(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32) / np.float32({"uint8": 255, "uint16": 65535}.get(values.dtype.name, 1))


def _sixteen_bit(values: np.ndarray) -> np.ndarray:
    return (values.clip(0, 1) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)


def _with_pixels(path: Path, picture: Picture | np.ndarray, like: Picture | None) -> Picture:
    if isinstance(picture, Picture):
        pixels, like = picture.pixels, like or picture
    else:
        pixels, like = picture, like or Picture(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == np.uint8:
        pixels = _unit(pixels)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape or pixels.dtype.kind != "f":
        raise ImageError(
            f"cannot write {path}: an array of shape {pixels.shape} and type {pixels.dtype} is no picture; "
            "[H, W], [H, W, 1] or [H, W, 3] in floating point or uint8 is needed"
        )
    if not np.isfinite(pixels).all():
        raise ImageError(
            f"cannot write {path}: the picture has values that are not finite; find their origin"
        )
    if like.alpha is not None and like.alpha.shape != pixels.shape[:2]:
        raise ImageError(
            f"cannot write {path}: the picture has {pixels.shape[:2]} pixels and its transparency "
            f"{like.alpha.shape}; they must be equal"
        )
    same_colours = like.pixels.reshape(*like.pixels.shape[:2], -1).shape[2] == pixels.shape[2]
    return Picture(
        pixels=pixels.astype(np.float32),
        alpha=like.alpha,
        bit_depth=like.bit_depth,
        mode=like.mode,
        exif=like.exif,
        icc=like.icc if same_colours else b"",  # a profile belongs to gray or to RGB
    )


def _encode(path: Path, picture: Picture) -> None:
    values = picture.pixels
    if picture.alpha is not None:
        values = np.concatenate([values, picture.alpha[..., None]], axis=2)
    if picture.bit_depth == 16:
        values = _sixteen_bit(values)
    suffix = path.suffix.lower()
    if picture.bit_depth > 8 and suffix == ".png":
        path.write_bytes(_deep_png_bytes(values, picture))
    elif picture.bit_depth > 8:
        _write_deep_tiff(path, values, picture)
    else:
        options: dict[str, Any] = {".webp": {"lossless": True, "exact": True}}.get(suffix, {})
        if suffix in (".jpg", ".jpeg"):
            options = {"quality": 95, "subsampling": 0}
        if suffix != ".bmp":
            options |= {"exif": picture.exif} if picture.exif else {}
            options |= {"icc_profile": picture.icc} if picture.icc else {}
        eight_bit = to_uint8(values)
        Image.fromarray(eight_bit[..., 0] if eight_bit.shape[2] == 1 else eight_bit).save(path, **options)


def _deep_png_bytes(values: np.ndarray, picture: Picture) -> bytes:
    """A PNG file with 16 bits per channel, each row stored as its difference from the one above.

    Pillow writes such files for gray only.

    Reference: Portable Network Graphics Specification (Third Edition), W3C, 2025, https://www.w3.org/TR/png-3/
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(">u2", order="C").view(np.uint8).reshape(height, -1)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)  # 2 is the filter "Up"
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
    ]
    if picture.icc:
        parts.append(chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)))
    if picture.exif:
        parts.append(chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
    parts += [chunk(b"IDAT", zlib.compress(filtered.tobytes())), chunk(b"IEND", b"")]
    return b"".join(parts)


def _write_deep_tiff(path: Path, values: np.ndarray, picture: Picture) -> None:
    exif = Image.Exif()
    if picture.exif:
        exif.load(picture.exif)
    options: dict[str, Any] = {}
    if exif.get(282, 0) > 0 and exif.get(283, 0) > 0:
        options |= {
            "resolution": (float(exif[282]), float(exif[283])),
            "resolutionunit": int(exif.get(296, 2)),
        }
    tifffile.imwrite(
        path,
        values if values.shape[2] > 1 else values[..., 0],
        photometric="rgb" if values.shape[2] > 2 else "minisblack",
        planarconfig="contig" if values.shape[2] > 1 else None,
        extrasamples=None if picture.alpha is None else ["unassalpha"],
        compression="zlib",
        iccprofile=picture.icc or None,
        extratags=[
            (tag, 2, None, str(exif[tag]).encode("ascii", "replace"), True)
            for tag in _TIFF_TEXT
            if tag in exif
        ],
        software=False,
        metadata=None,
        **options,
    )


def _names(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffixes)


def _depths(suffix: str) -> str:
    return " or ".join(str(depth) for depth, suffixes in SUFFIXES.items() if suffix in suffixes) + " bits"


def _too_large(path: Path, size: tuple[int, int] | None, max_pixels: int) -> ImageError:
    found = f"{size[0]} x {size[1]}" if size else "far too many"
    return ImageError(f"{path} has {found} pixels; at most {max_pixels} are allowed: crop or shrink it first")


def _several(path: Path, count: int) -> ImageError:
    return ImageError(f"{path} holds {count} pictures; one is needed: save the wanted one as its own file")
