"""Images from and to files without loss: depth, transparency, colour profile and camera data survive.

Read: PNG, JPEG, TIFF, WebP, BMP and GIF with 8 or 16 bits per channel, TIFF also in floating point;
black-and-white, gray, palette and RGB, with or without transparency. Written: the same except GIF, whose
palette would add noise of its own. An image is turned upright when it is read. Refused with one line that
says why: CMYK and other colour spaces (converting them needs a profile), further bands, animations, stacks and files of
several pages (which one is meant?), damaged files and everything else that would have to be guessed.

One reader decides everything about a file, from the same bytes: tifffile for TIFF, imagecodecs for PNG files of 16 bits,
Pillow for the rest.

Values are in [0, 1]. Only floating point files may go beyond that, within [-10, 10] and with a mean in
[0, 1], because an observation ``y = x + sigma z`` can be stored exactly in no other way.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from scoreexp.data.image_file import DEEPEST as DEEPEST
from scoreexp.data.image_file import MAX_PIXELS, ORIENTATION, Kind, listed, picture_of, several, too_large
from scoreexp.data.image_file import ImageError as ImageError
from scoreexp.data.image_file import Picture as Picture
from scoreexp.data.image_writing import check_writable as check_writable
from scoreexp.data.image_writing import write_image as write_image
from scoreexp.data.suffixes import READABLE as READABLE
from scoreexp.data.suffixes import WRITABLE as WRITABLE
from scoreexp.data.suffixes import suffix_of
from scoreexp.data.tiff import read_tiff, tiff_kind

T = TypeVar("T")

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")  # never EPS, for which Pillow starts another program
FEW_BITS = 4096  # a 16-bit file with no value from here on probably holds 12 bits
_GRAY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I")


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, white_level: int | None = None) -> Picture:
    """Read an image from a file, upright.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(f"{folder}/grey.png", np.full((2, 3), 0.2))
    ...     picture = read_image(f"{folder}/grey.png")
    >>> picture.pixels[..., 0], picture.bit_depth
    (array([[0.2, 0.2, 0.2],
           [0.2, 0.2, 0.2]], dtype=float32), 8)

    Args:
        path: the file.
        max_pixels: the most pixels (each takes 12 bytes of memory or more).
        white_level: the value of white in a file of 16 bits, 65535 if it is None; brighter values are kept.

    Raises:
        ImageError: the file is missing, cannot be opened, is not one whole image of a supported kind, or
            has more than ``max_pixels`` pixels.
    """
    white = DEEPEST if white_level is None else white_level
    return _opened(
        Path(path),
        max_pixels,
        lambda path: read_tiff(path, max_pixels, white),
        lambda path, head: _read_with_pillow(path, head, max_pixels, white),
    )


def read_kind(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Kind:
    """What the head of a file says of its image, without decoding it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(f"{folder}/grey.png", np.full((2, 3), 0.2))
    ...     read_kind(f"{folder}/grey.png")
    Kind(width=3, height=2, channels=1, alpha=False, bit_depth=8, mode='L')

    Raises:
        ImageError: as ``read_image``, as far as the head tells.
    """
    return _opened(Path(path), max_pixels, lambda path: tiff_kind(path, max_pixels), _kind_by_pillow)


def few_bits(picture: Picture) -> str | None:
    """A warning that an image of 16 bits seems to hold fewer, or None.

    A camera of 12 bits writes 0 to 4095 into files of 16, which are then nearly black.

    >>> few_bits(Picture(np.full((2, 2, 1), 4000 / 65535, np.float32), bit_depth=16))
    'its largest value is 4000 of 65535: are these 12 bits, with white at 4095?'
    """
    largest = float(picture.pixels.max()) * picture.white
    if picture.bit_depth != 16 or picture.white != DEEPEST or not 255 < largest < FEW_BITS:
        return None
    return f"its largest value is {largest:.0f} of 65535: are these 12 bits, with white at {FEW_BITS - 1}?"


def _opened(path: Path, max_pixels: int, tiff: Callable[[Path], T], other: Callable[[Path, bytes], T]) -> T:
    """What the reader for this kind of file makes of it, every error as ``ImageError``."""
    if os.path.isdir(path):
        raise ImageError(f"{path} is a folder; give the name of an image file")
    try:
        if not path.is_file() and os.path.exists(path):
            raise ImageError(f"{path} is a device or pipe; give the name of an image file")
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
        raise ImageError(f"{path} is empty (0 bytes); give a whole image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
            warnings.simplefilter("ignore", UserWarning)  # of damage in what surrounds the pixels
            return tiff(path) if head[:2] in (b"II", b"MM") else other(path, head)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{path} needs more memory than there is: crop or shrink it first") from None
    except Image.DecompressionBombError:
        raise too_large(path, None, max_pixels) from None
    except (Image.UnidentifiedImageError, tifffile.TiffFileError):
        raise ImageError(
            f"{path} is not an image of a supported kind or its beginning is damaged; "
            f"supported are {listed(READABLE)}: convert it first"
        ) from None
    except Exception as error:  # decoders raise exceptions of any kind on damaged data
        raise ImageError(
            f"{path} is damaged or incomplete ({' '.join(str(error).split()) or type(error).__name__}); "
            "get a whole copy of it"
        ) from error


def list_images(folder: str | Path, more: tuple[str, ...] = ()) -> list[Path]:
    """All image files in a folder and the folders in it, by relative path, numbers in their order (2, 10).

    Files of ``more`` suffixes count too.

    Hidden files and folders are left out. Links to folders are followed, but into no folder twice.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("10.png", "2.jpg", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in list_images(folder)]
    ['2.jpg', '10.png']

    Raises:
        ImageError: ``folder`` is not a folder, or holds no image of a supported kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; give the name of a folder of images")
    found = [path for path in walk(folder) if suffix_of(path) in READABLE + more]
    if not found:
        raise ImageError(f"{folder} holds no images; supported are {listed(READABLE + more)}")
    return sorted(found, key=lambda path: [_natural(part) for part in path.relative_to(folder).parts])


def walk(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` but hidden ones and those in hidden folders; links are followed, into no folder twice.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("shown.txt", ".hidden"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in walk(Path(folder))]
    ['shown.txt']
    """
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _natural(name: str) -> tuple[list[str | int], str]:
    pieces = re.split(r"(\d+)", name.casefold())  # text and numbers take turns
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], name


def _read_with_pillow(path: Path, head: bytes, max_pixels: int, white: int) -> Picture:
    """Any supported file of 8 bits per channel, or a PNG file of 16."""
    bits = _png_bits(head)
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise too_large(path, image.size, max_pixels)
        # The further images of a camera's MPO file belong to the first: a depth or brightness map.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise several(path, image.n_frames)  # type: ignore[attr-defined]
        mode, icc = image.mode, image.info.get("icc_profile") or b""
        values = imagecodecs.png_decode(path.read_bytes()) if bits == 16 else _eight_bit(path, image, bits)
        exif = image.getexif()
        orientation = exif.pop(ORIENTATION, 1)
        raw = image.info.get("exif", b"") if orientation == 1 else b""  # as it is, if it may stay so
        if raw:
            raw = b"Exif\0\0" + raw.removeprefix(b"Exif\0\0")  # WebP has it without this start
        kept = raw or (exif.tobytes() if exif else b"")
        return picture_of(values, orientation, mode, kept, icc, white if bits == 16 else DEEPEST)


def _kind_by_pillow(path: Path, head: bytes) -> Kind:
    with Image.open(path, formats=FORMATS) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5
        width, height = image.size[::-1] if turned else image.size
        deep = _png_bits(head) == 16
        gray = head[25] in (0, 4) if deep else image.mode in _GRAY_MODES
        alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return Kind(width, height, 1 if gray else 3, alpha, 16 if deep else 8, image.mode)


def _png_bits(head: bytes) -> int:
    """Bits per channel, or per palette index, of a PNG file; 8 for other files."""
    return head[24] if head[:4] == b"\x89PNG" else 8


def _eight_bit(path: Path, image: Image.Image, bits: int) -> np.ndarray:
    mode, transparent = image.mode, image.info.get("transparency")
    if mode == "L" and isinstance(transparent, int):
        # Pillow brings the values of 2 and 4 bits to 0..255, but not the transparent one
        image.info["transparency"] = transparent * 255 // (2**bits - 1)
    if mode == "1":
        image = image.convert("L")
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if transparent is not None or mode == "PA" else "RGB")
    elif mode in ("1", "L", "RGB"):
        image = image.convert(image.mode + ("" if transparent is None else "A"))
    elif mode not in ("LA", "RGBA"):
        raise ImageError(
            f"{path} has colours of kind {mode}; black-and-white, gray, palette and RGB are supported: "
            "convert it to RGB with its colour profile first"
        )
    return np.asarray(image)
