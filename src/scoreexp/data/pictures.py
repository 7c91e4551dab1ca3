"""Reading images: one, or many at once.

Threads do for many: Pillow releases the interpreter while it decodes and resizes.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image

from scoreexp.data.cache import Block
from scoreexp.data.errors import DataError
from scoreexp.data.image_io import ImageError, Picture, read_image

WhiteLevel = Annotated[int, (">=", 2), ("<=", 65535), "such as 4095 for 12 bits"]

_PER_BLOCK = 256
_MAX_PIXELS = 1 << 22  # of an image of CelebA or FFHQ; the largest has 1024 x 1024


def fingerprint(parts: Iterable[object]) -> str:
    """A short name for a list of files (their names, and where they may change also sizes and times).

    >>> fingerprint(["1.png", "2.png"]) == fingerprint(["2.png", "1.png"])
    False
    """
    return hashlib.blake2b("\n".join(map(str, parts)).encode(), digest_size=6).hexdigest()


def picture_blocks(
    names: Sequence[str], decode: Callable[[str], np.ndarray], *, skip_bad: bool
) -> Iterator[Block]:
    """Decode ``names`` in order, in as many threads as there are processors.

    >>> decode = lambda name: np.full((1, 8, 8), int(name), np.uint8)
    >>> [block] = picture_blocks(["3", "5"], decode, skip_bad=False)
    >>> block.values[:, 0, 0, 0], block.names
    (array([3, 5], dtype=uint8), ('3', '5'))

    Args:
        names: what to decode.
        decode: name to uint8 ``[C, H, W]``; raises ``DataError`` for an image that cannot be used.
        skip_bad: leave such images out instead of raising.
    """

    def attempt(name: str) -> np.ndarray | DataError:
        try:
            return decode(name)
        except DataError as error:
            if not skip_bad:
                raise DataError(f"{error}; or set data.on_bad_image=skip") from error
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(names), _PER_BLOCK):
            part = names[start : start + _PER_BLOCK]
            results = list(zip(part, pool.map(attempt, part), strict=True))
            good = [(name, pixels) for name, pixels in results if isinstance(pixels, np.ndarray)]
            yield Block(
                np.stack([pixels for _, pixels in good]) if good else np.empty((0, 1, 1, 1), np.uint8),
                names=tuple(name for name, _ in good),
                skipped=tuple(str(error) for _, error in results if isinstance(error, DataError)),
            )


def decode_rgb(data: bytes, where: Path | str) -> np.ndarray:
    """Decode an 8-bit PNG or JPEG to RGB, uint8 ``[H, W, 3]``.

    >>> file = io.BytesIO()
    >>> Image.new("L", (3, 2), 128).save(file, "PNG")
    >>> decode_rgb(file.getvalue(), "grey.png").shape
    (2, 3, 3)

    Raises:
        DataError: if the data are empty, cut short, not an image or one of more than four million pixels.
    """
    if not data:
        raise DataError(f"{where} has 0 bytes: copy or unpack it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damage in what surrounds the pixels
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _MAX_PIXELS decides
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels")
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise exceptions of any kind on damaged data
        raise DataError(f"{where} is damaged or not an image ({error}): copy or unpack it again") from error


def read_picture(path: Path, white_level: int | None = None) -> Picture:
    """``image_io.read_image`` with its errors as ``DataError``.

    >>> read_picture(Path("none.png"))
    Traceback (most recent call last):
    scoreexp.data.errors.DataError: none.png does not exist; check its name (the current folder is ...)
    """
    try:
        return read_image(path, white_level=white_level)
    except ImageError as error:
        raise DataError(str(error)) from error


def with_channels(picture: Picture, channels: int) -> np.ndarray:
    """Pixels ``[H, W, channels]`` on white; grey to colour by repetition, colour to grey by Rec. 601 luma.

    >>> red = Picture(np.float32([[[1.0, 0.0, 0.0]]]))
    >>> with_channels(red, 1)
    array([[[0.299]]], dtype=float32)
    """
    pixels = picture.pixels
    if picture.alpha is not None:
        alpha = picture.alpha[..., None]
        pixels = alpha * pixels + (1 - alpha)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return pixels @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
