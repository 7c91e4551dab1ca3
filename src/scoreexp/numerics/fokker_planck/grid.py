"""The vertex-centred pixel grid: coordinates, differences and the quadrature that defines mass.

Pixel (i, j) sits at (i h_row, j h_col); without an explicit spacing the image covers the unit square, h =
1/(H - 1). Border pixels own half a cell and corner pixels a quarter, so that mass is the trapezoid rule

    M = sum_ij w_ij p_ij,    w_ij = h_row h_col c_i c_j,    c = 1/2 at both ends of an axis and 1 between,

the sum that the reflecting five-point Laplacian and the cosine transform of type I conserve exactly.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

MIN_SIDE = 3  # a second-order one-sided difference needs three nodes


@dataclass(frozen=True)
class Grid:
    """Grid of ``shape`` (H, W) with ``spacing`` (h_row, h_col).

    >>> grid = Grid.of((3, 5))
    >>> grid.spacing, float(grid.weights.sum()), grid.points[:, -1, -1]
    ((0.5, 0.25), 1.0, array([1., 1.]))
    """

    shape: tuple[int, int]
    spacing: tuple[float, float]

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing: float | tuple[float, float] | None = None) -> "Grid":
        """Grid of an image of this shape; ``spacing=None`` puts it on the unit square.

        Raises ValueError for a side below 3 pixels (so for 1 x N images) and for a spacing that is not
        positive.
        """
        if len(shape) != 2 or min(shape) < MIN_SIDE:
            raise ValueError(f"grid {shape} is too small: both sides must have at least {MIN_SIDE} pixels")
        height, width = shape
        if spacing is None:
            spacing = (1 / (height - 1), 1 / (width - 1))
        row, col = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        if not (0 < row < np.inf and 0 < col < np.inf):
            raise ValueError(
                f"spacing {spacing} must be positive: give one step, one per axis, or None for 1/(H-1)"
            )
        return cls((height, width), (float(row), float(col)))

    @cached_property
    def widths(self) -> tuple[Array, Array]:
        """Cell widths along the rows [H] and columns [W], half at both ends."""
        row, col = (np.full(n, h) for n, h in zip(self.shape, self.spacing))
        row[[0, -1]] /= 2
        col[[0, -1]] /= 2
        return row, col

    @cached_property
    def weights(self) -> Array:
        """Trapezoid weights w[H, W], the cell areas; ``(weights * p).sum()`` is the mass."""
        return np.outer(*self.widths)

    @cached_property
    def points(self) -> Array:
        """Coordinates [2, H, W]: row coordinate, column coordinate."""
        axes = (np.arange(n) * h for n, h in zip(self.shape, self.spacing))
        return np.stack(np.meshgrid(*axes, indexing="ij"))

    def gradient(self, field: Array, *, edge_order: int = 2) -> Array:
        """Gradient [..., 2, H, W] of field[..., H, W], central, at the border one-sided of ``edge_order``."""
        out = np.empty((*field.shape[:-2], 2, *field.shape[-2:]), field.dtype)
        for component in range(2):
            self.derivative(field, component, edge_order=edge_order, out=out[..., component, :, :])
        return out

    def derivative(self, field: Array, component: int, *, edge_order: int = 2, out: Array) -> Array:
        """One component of ``gradient``, [..., H, W], written to ``out``."""
        axis, h = component - 2, self.spacing[component]
        f, d = field.swapaxes(axis, -1), out.swapaxes(axis, -1)
        if axis == -1 and field.flags.c_contiguous and out.flags.c_contiguous:
            flat, inner = (
                field.reshape(-1),
                out.reshape(-1)[1:-1],
            )  # one long line; its ends of rows are set below
            np.subtract(flat[2:], flat[:-2], out=inner)
            inner *= 1 / (2 * h)
        else:
            np.subtract(f[..., 2:], f[..., :-2], out=d[..., 1:-1])
            d[..., 1:-1] *= 1 / (2 * h)
        if edge_order == 1:
            d[..., 0] = (f[..., 1] - f[..., 0]) / h
            d[..., -1] = (f[..., -1] - f[..., -2]) / h
        else:
            d[..., 0] = (4 * f[..., 1] - 3 * f[..., 0] - f[..., 2]) / (2 * h)
            d[..., -1] = (3 * f[..., -1] - 4 * f[..., -2] + f[..., -3]) / (2 * h)
        return out


def mass(log_p: ArrayLike, spacing: float | tuple[float, float] | None = None) -> Array:
    """Mass sum_ij w_ij exp(log_p_ij) of log_p[..., H, W] under the trapezoid weights, shape [...].

    >>> import numpy as np
    >>> mass(np.log(np.full((2, 5, 5), 3.0))).round(6)
    array([3., 3.])
    """
    log_p = np.asarray(log_p, dtype=np.float64)
    grid = Grid.of(log_p.shape[-2:], spacing)
    return (grid.weights * np.exp(log_p)).sum(axis=(-2, -1))
