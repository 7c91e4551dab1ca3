r"""Noise that the lines of an image share, beside that of each pixel: of rows, or of the elements of a line scanner.

.. math:: y_{ij} = x_{ij} + n_{ij} + r_i + f, \qquad
          C = \mathrm{diag}(v) + a \sum_i 1_i 1_i^T + b\, 1 1^T

has an inverse and a determinant in closed form, row by row (Sherman-Morrison) and then for the plane.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scoreexp.observations.noise.base import NoiseModel

Axis = Literal["rows", "columns"]


class Lines(NamedTuple):
    """What lines share in a noise.

    Attributes:
        sigma: standard deviation of the offsets, in the units of the model, or one for each channel.
        axis: the lines that have them.
        noise: the noise without them.
    """

    sigma: float | tuple[float, ...]
    axis: Axis
    noise: "NoiseModel"


def per_channel(value: float | Sequence[float], like: Tensor, name: str) -> float | Tensor:
    """``value``, for each channel in the shape that ``like [B, C, H, W]`` is multiplied with.

    >>> per_channel([1.0, 2.0], torch.zeros(5, 2, 3, 3), "sigma").shape
    torch.Size([2, 1, 1])

    Raises:
        ValueError: it has another number of channels.
    """
    if isinstance(value, int | float):
        return value
    if like.ndim < 3 or like.shape[-3] != len(value):
        raise ValueError(
            f"{name} has {len(value)} values, for as many channels, and the data are {tuple(like.shape)}: give one number, "
            "or one for each channel"
        )
    return torch.tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1, 1)


def require_lines(x: Tensor, name: str) -> None:
    """Refuse data that are no images ``[B, *, H, W]``.

    Raises:
        ValueError: they are not.
    """
    if x.ndim < 3:
        raise ValueError(
            f"{name} is for images [B, *, H, W], not {tuple(x.shape)}: take another noise for points"
        )


def log_density(
    residual: Tensor, variance: Tensor, of_row: float | Tensor, of_plane: float | Tensor = 0.0
) -> Tensor:
    """Log-density ``[B]`` in nats of ``N(0, C)`` at the residuals ``[B, *, H, W]``, see the module's formula.

    >>> log_density(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2), of_row=1.0).round(decimals=4)
    tensor([-4.7744])

    Args:
        residual: ``y - x``.
        variance: ``v`` of each pixel.
        of_row: ``a``, or one for each channel ``[C, 1, 1]``.
        of_plane: ``b``, likewise.
    """
    of_row, of_plane = (
        part[..., 0] if isinstance(part, Tensor) else residual.new_tensor(part) for part in (of_row, of_plane)
    )
    weight, weighted = (1 / variance).sum(-1), (residual / variance).sum(-1)
    gain = 1 + of_row * weight
    squares = (residual**2 / variance).sum(-1) - of_row * weighted**2 / gain
    logarithm = variance.log().sum(-1) + gain.log()
    weight, weighted = ((part / gain).sum(-1, keepdim=True) for part in (weight, weighted))
    gain = 1 + of_plane * weight
    squares = squares.flatten(1).sum(1) - (of_plane * weighted**2 / gain).flatten(1).sum(1)
    logarithm = logarithm.flatten(1).sum(1) + gain.log().flatten(1).sum(1)
    return -0.5 * (squares + logarithm + residual[0].numel() * math.log(2 * math.pi))
