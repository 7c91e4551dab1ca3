"""What an image file holds, whichever library reads or writes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np

from scoreexp.core.errors import UserError
from scoreexp.data.suffixes import WRITABLE

BitDepth = Literal[8, 16, 32]

MAX_PIXELS = 100_000_000
DEEPEST = 65535  # the largest value of 16 bits
SUFFIXES: dict[int, tuple[str, ...]] = {8: WRITABLE, 16: (".png", ".tif", ".tiff"), 32: (".tif", ".tiff")}
WITH_ALPHA = (".png", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112
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
    """An image cannot be read or written; the message names the file, what is allowed and the remedy."""


@dataclass(frozen=True)
class Picture:
    """An image and what its file holds besides the pixels.

    >>> picture = Picture(np.full((8, 8, 3), 0.5, np.float32), bit_depth=16)
    >>> picture.pixels.shape, picture.alpha is None
    ((8, 8, 3), True)

    Args:
        pixels: float32 ``[H, W, C]``, C = 1 (gray) or 3 (RGB), values in [0, 1].
        alpha: float32 ``[H, W]`` in [0, 1], 0 is transparent, or None.
        bit_depth: of a channel in the file; 32 is floating point.
        mode: the colours of the file, as Pillow names them.
        exif: camera data without the orientation, or nothing.
        icc: colour profile, or nothing.
        white: the value of white in a 16-bit file, 65535 but for cameras that fill fewer bits.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: BitDepth = 8
    mode: str = "RGB"
    exif: bytes = b""
    icc: bytes = b""
    white: int = DEEPEST


class Kind(NamedTuple):
    """What the head of an image file says of it.

    Attributes:
        width: in pixels, of the upright image.
        height: in pixels.
        channels: 1 (gray) or 3 (RGB).
        alpha: whether it may be transparent.
        bit_depth: of a channel; 32 is floating point.
        mode: the colours of the file, as Pillow names them.
    """

    width: int
    height: int
    channels: int
    alpha: bool
    bit_depth: BitDepth
    mode: str


def picture_of(
    values: np.ndarray, orientation: int, mode: str, exif: bytes, icc: bytes, white: int = DEEPEST
) -> Picture:
    """The image of an array ``[H, W]`` or ``[H, W, C]`` as it is stored, C = 2 and 4 with alpha.

    >>> picture = picture_of(np.zeros((2, 3), np.uint8), orientation=6, mode="L", exif=b"", icc=b"")
    >>> picture.pixels.shape  # turned upright
    (3, 2, 1)
    """
    values = values.reshape(*values.shape[:2], -1)
    upright = np.ascontiguousarray(_UPRIGHT.get(orientation, lambda x: x)(values))
    unit = unit_values(upright, white)
    has_alpha = unit.shape[-1] in (2, 4)
    alpha = unit_values(upright[..., -1]) if has_alpha else None  # full scale, whatever white is
    return Picture(
        pixels=np.ascontiguousarray(unit[..., :-1]) if has_alpha else unit,
        alpha=alpha,
        bit_depth=cast(BitDepth, {"uint8": 8, "uint16": 16}.get(values.dtype.name, 32)),
        mode=mode,
        exif=exif,
        icc=icc,
        white=white,
    )


def unit_values(values: np.ndarray, white: int = DEEPEST) -> np.ndarray:
    """Values of a file as float32 in units of its white.

    >>> unit_values(np.array([0, 51, 255], np.uint8))
    array([0. , 0.2, 1. ], dtype=float32)
    """
    return values.astype(np.float32) / np.float32({"uint8": 255, "uint16": white}.get(values.dtype.name, 1))


def sixteen_bit(values: np.ndarray, white: int = DEEPEST) -> np.ndarray:
    """``floor(white clip(x, 0, 1) + 1/2)`` as uint16.

    >>> sixteen_bit(np.array([-0.1, 0.5, 1.0], np.float32))
    array([    0, 32768, 65535], dtype=uint16)
    """
    return (values.clip(0, 1) * np.float32(white) + np.float32(0.5)).astype(np.uint16)


def listed(suffixes: tuple[str, ...]) -> str:
    return ", ".join(suffixes)


def depths_of(suffix: str) -> str:
    return " or ".join(str(depth) for depth, suffixes in SUFFIXES.items() if suffix in suffixes) + " bits"


def too_large(path: Path, size: tuple[int, int] | None, max_pixels: int) -> ImageError:
    found = f"{size[0]} x {size[1]}" if size else "far too many"
    return ImageError(f"{path} has {found} pixels; at most {max_pixels} are allowed: crop or shrink it first")


def several(path: Path, count: int, more: str = "") -> ImageError:
    return ImageError(
        f"{path} holds {count} images; one is needed: save the wanted one as its own file{more}"
    )
