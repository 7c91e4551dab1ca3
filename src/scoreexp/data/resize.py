"""Crops and antialiased resizing, fixed to Pillow's implementation.

Preprocessing is part of a result: the filter and the crop of every data set are named in its recipe and
never left to a default of the library.
"""

from typing import Literal

import numpy as np
from PIL import Image

Filter = Literal["box", "bilinear", "bicubic", "lanczos"]

_FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def centre_square(pixels: np.ndarray, side: int | None = None) -> np.ndarray:
    """The central square of ``pixels[H, W, ...]`` with the given side; by default the largest.

    >>> centre_square(np.arange(8).reshape(2, 4))
    array([[1, 2],
           [5, 6]])
    """
    height, width = pixels.shape[:2]
    side = min(height, width) if side is None else side
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def resized(pixels: np.ndarray, size: int, resample: Filter) -> np.ndarray:
    """``pixels[H, W, C]`` resized to ``[size, size, C]`` by Pillow's antialiased filter.

    uint8 stays uint8 (Pillow rounds); float32 in [0, 1] is resized channel by channel and clipped back to
    [0, 1], because lanczos and bicubic overshoot.

    >>> resized(np.eye(4, dtype=np.float32)[..., None], 2, "box")[..., 0]
    array([[0.5, 0. ],
           [0. , 0.5]], dtype=float32)
    """
    if pixels.shape[:2] == (size, size):
        return pixels
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        return np.asarray(image.resize((size, size), _FILTERS[resample])).reshape(size, size, -1)
    channels = [
        Image.fromarray(np.ascontiguousarray(pixels[..., c], dtype=np.float32)).resize(
            (size, size), _FILTERS[resample]
        )
        for c in range(pixels.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)
