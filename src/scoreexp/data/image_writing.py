"""Images to files, whole or not at all."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from scoreexp.core.ranges import to_uint8
from scoreexp.data.image_file import (
    SUFFIXES,
    WITH_ALPHA,
    ImageError,
    Picture,
    depths_of,
    listed,
    sixteen_bit,
    unit_values,
)
from scoreexp.data.suffixes import WRITABLE
from scoreexp.system.atomic import atomic_write

_PNG_HEADER = 33  # bytes of the signature and of the first chunk
TIFF_TEXT = (270, 271, 272, 305, 306, 315, 316, 33432)  # description, make, model, software, time, ...


def write_image(
    path: str | Path, picture: Picture | np.ndarray, *, like: Picture | None = None, overwrite: bool = False
) -> None:
    """Write an image to a file, whole or not at all; folders that are missing are made.

    Values of 8 and 16 bit files are clipped to [0, 1] and rounded, floating point files hold them as they
    are. JPEG is written with quality 95 and full colour resolution, WebP without loss (it has no gray, so
    gray becomes RGB). All formats but BMP keep the colour profile; camera data survive too, of TIFF files of
    more than 8 bits only the descriptive text and the resolution.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(f"{folder}/new/grey.png", np.full((8, 8), 0.5))
    ...     Path(folder, "new", "grey.png").is_file()
    True

    Args:
        path: the suffix chooses the format, one of ``WRITABLE``.
        picture: the pixels: a ``Picture``, or an array ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]`` that is
            floating point in [0, 1] or uint8.
        like: take depth, transparency, camera data and colour profile from here, as of the file that was
            processed.
        overwrite: replace an existing file.

    Raises:
        ImageError: see ``check_writable``; the array is no image or holds NaN; or the file system refuses.
    """
    path = Path(path)
    picture = _with_pixels(path, picture, like)
    check_writable(path, like=picture, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            _encode(temporary, picture)
    # ValueError: beyond the limits of the format, such as its largest size
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot write {path} ({reason}); choose another place or format") from error


def check_writable(path: str | Path, *, like: Picture | None = None, overwrite: bool = False) -> None:
    """Refuse, before any work is done, a path to which ``write_image`` cannot write an image like ``like``.

    >>> check_writable("new.jpg", like=Picture(np.zeros((8, 8, 3), np.float32), bit_depth=16))
    Traceback (most recent call last):
    scoreexp.data.image_file.ImageError: cannot write new.jpg: the image has 16 bits per channel and ...

    Raises:
        ImageError: the suffix is not one of ``WRITABLE`` or its format cannot hold the depth or the
            transparency; the file exists and ``overwrite`` is false; the path is a folder; or its folder
            cannot be made or written to.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        raise ImageError(f"cannot write {path}: its suffix must be one of {listed(WRITABLE)}")
    if like is not None and suffix not in SUFFIXES[like.bit_depth]:
        depth = "floating point values" if like.bit_depth == 32 else f"{like.bit_depth} bits per channel"
        raise ImageError(
            f"cannot write {path}: the image has {depth} and {suffix} holds {depths_of(suffix)}; "
            f"choose {listed(SUFFIXES[like.bit_depth])}"
        )
    if like is not None and like.alpha is not None and suffix not in WITH_ALPHA:
        raise ImageError(
            f"cannot write {path}: the image is partly transparent, which {suffix} cannot hold; "
            f"choose {listed(WITH_ALPHA)}"
        )
    check_place(path, overwrite=overwrite)


def check_place(path: Path, *, overwrite: bool = False) -> None:
    """Refuse a path to which no file can be written.

    Raises:
        ImageError: it is taken, and ``overwrite`` is false; it is a folder; or its folder cannot be made or written to.
    """
    if os.path.isdir(path):
        raise ImageError(f"cannot write {path}: it is a folder; give the name of a file")
    if os.path.exists(path) and not overwrite:
        raise ImageError(f"cannot write {path}: it exists; choose another name or allow overwriting it")
    folder = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        reason = "is not writable" if folder.is_dir() else "is not a folder"
        raise ImageError(f"cannot write {path}: {folder} {reason}; choose another folder")


def _with_pixels(path: Path, picture: Picture | np.ndarray, like: Picture | None) -> Picture:
    if isinstance(picture, Picture):
        pixels, like = picture.pixels, like or picture
    else:
        pixels, like = picture, like or Picture(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype == np.uint8:
        pixels = unit_values(pixels)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape or pixels.dtype.kind != "f":
        raise ImageError(
            f"cannot write {path}: an array of shape {pixels.shape} and type {pixels.dtype} is no image; "
            "[H, W], [H, W, 1] or [H, W, 3] in floating point or uint8 is needed"
        )
    if not np.isfinite(pixels).all():
        raise ImageError(f"cannot write {path}: the image has values that are not finite; find their origin")
    if like.alpha is not None and like.alpha.shape != pixels.shape[:2]:
        raise ImageError(
            f"cannot write {path}: the image has {pixels.shape[:2]} pixels and its transparency "
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
        white=like.white,
    )


def _encode(path: Path, picture: Picture) -> None:
    values = picture.pixels
    alpha = None if picture.alpha is None else picture.alpha[..., None]
    if picture.bit_depth == 16:
        values = sixteen_bit(values, picture.white)
        alpha = None if alpha is None else sixteen_bit(alpha)
    if alpha is not None:
        values = np.concatenate([values, alpha], axis=2)
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
    """A PNG file with 16 bits per channel; profile and camera data are put behind its header.

    Reference: Portable Network Graphics Specification (Third Edition), W3C, 2025, https://www.w3.org/TR/png-3/
    """

    # put in by hand: imagecodecs writes pixels only, and Pillow 8 bits per colour
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    data = imagecodecs.png_encode(np.ascontiguousarray(values.squeeze(2) if values.shape[2] == 1 else values))
    more = chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)) if picture.icc else b""
    more += chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0")) if picture.exif else b""
    return bytes(data[:_PNG_HEADER]) + more + bytes(data[_PNG_HEADER:])


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
            for tag in TIFF_TEXT
            if tag in exif
        ],
        software=False,
        metadata=None,
        **options,
    )
