"""The only place where values change their range.

Models, schedules and samplers work with images in [-1, 1]; users, files and metrics with images in
[0, 1]. The map x -> 2x - 1 doubles every difference, so noise of standard deviation sigma in the user's
units has 2 sigma inside. Noise legitimately leaves both ranges; nothing here clips except ``to_uint8``, the
last step before a file.
"""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)
Scalar = TypeVar("Scalar", float, Tensor, np.ndarray)

# bfloat16 values near 1 are 0.004 apart: a round trip through [-1, 1] may be off by that.
UNIT_TOLERANCE = 0.01


def to_model(x: Array) -> Array:
    """``2x - 1``: values of [0, 1] to [-1, 1], any shape; noise outside [0, 1] is kept.

    >>> to_model(torch.tensor([0.0, 0.5, 1.0]))
    tensor([-1.,  0.,  1.])

    Raises:
        ValueError: integer values (they would be in 0..255).
    """
    _require_floating(x, "[0, 1]")
    return 2 * x - 1


def to_unit(x: Array) -> Array:
    """``(x + 1) / 2``: values of [-1, 1] to [0, 1], any shape, without clipping.

    >>> to_unit(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])

    Raises:
        ValueError: integer values.
    """
    _require_floating(x, "[-1, 1]")
    return (x + 1) / 2


def to_uint8(x: Array) -> Array:
    """``floor(255 clip(x, 0, 1) + 1/2)``: values of [0, 1] to 0..255, clipped, halves rounded up.

    Every saved image, grid and feature extractor uses this one conversion. It inverts ``k / 255`` exactly.

    >>> to_uint8(torch.tensor([-0.1, 0.5, 1.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)

    Raises:
        ValueError: integer values, or values that are not numbers.
    """
    _require_floating(x, "[0, 1]")
    if isinstance(x, Tensor):
        _require_numbers(bool(x.isnan().any()))
        return (x.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)  # the cast drops the fraction
    _require_numbers(bool(np.isnan(x).any()))
    return (x.astype(np.float32).clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def sigma_to_model(sigma: Scalar) -> Scalar:
    """``2 sigma``: standard deviation of noise on [0, 1] to that of the same noise on [-1, 1].

    >>> sigma_to_model(0.1)
    0.2
    """
    return 2 * sigma


def sigma_to_unit(sigma: Scalar) -> Scalar:
    """``sigma / 2``: standard deviation of noise on [-1, 1] to that of the same noise on [0, 1].

    >>> sigma_to_unit(0.5)
    0.25
    """
    return sigma / 2


def check_unit(x: Tensor, name: str) -> None:
    """Refuse values outside [0, 1], beyond a rounding tolerance of 0.01, and values that are not numbers.

    >>> check_unit(torch.tensor([-1.0, 1.0]), "image")
    Traceback (most recent call last):
    ValueError: image has values in [-1, 1]; they must be in [0, 1]: use to_unit for ...

    Raises:
        ValueError: with the range that was found and ``name`` in its message.
    """
    if x.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(x))
    if not (low >= -UNIT_TOLERANCE and high <= 1 + UNIT_TOLERANCE):  # also false for NaN
        raise ValueError(
            f"{name} has values in [{low:.4g}, {high:.4g}]; they must be in [0, 1]: "
            "use to_unit for values in [-1, 1], divide by 255 for 8-bit values"
        )


def _require_floating(x: Tensor | np.ndarray, expected: str) -> None:
    floating = x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)
    if not floating:
        raise ValueError(
            f"values have type {x.dtype}; floating point values in {expected} are needed: "
            "divide 8-bit values by 255"
        )


def _require_numbers(has_nan: bool) -> None:
    if has_nan:
        raise ValueError(
            "the image has values that are not numbers (NaN), which no file can show: find their origin"
        )


def of_255(level: float) -> str:
    """What a level is in units of [0, 1] if it was meant in those of 8-bit files.

    >>> of_255(25)
    '25 of 255 is 0.098'
    """
    return f"{level:.6g} of 255 is {level / 255:.3f}"
