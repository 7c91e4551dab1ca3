r"""Operators that act on rows and columns separately, and so have the singular value decompositions of two small matrices.

.. math:: A x = R\, x\, C^T, \qquad R = U_R S_R V_R^T,\ C = U_C S_C V_C^T \quad\Rightarrow\quad
          V^T x = V_R^T x V_C,\quad s_{ij} = (S_R)_i (S_C)_j .

Reference: P. C. Hansen, J. G. Nagy, D. P. O'Leary, "Deblurring Images: Matrices, Spectra, and Filtering", 2006, section 4.4.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.observations.operators.base import SVD, LinearOperator
from scoreexp.observations.operators.sides import Size, require_sides, sides

Filter = Literal["bicubic", "bilinear", "lanczos", "box"]


class Separable(LinearOperator):
    """``y = R x C^T`` of every channel.

    >>> import torch
    >>> mean = torch.full((1, 2), 0.5)
    >>> Separable(mean, mean)(torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 3, 1, 1])

    Args:
        rows: ``R [h, H]``.
        columns: ``C [w, W]``, with h <= H and w <= W.

    Raises:
        ValueError: a matrix has another shape.
    """

    @checked
    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        for name, matrix in (("rows", rows), ("columns", columns)):
            if matrix.ndim != 2 or matrix.shape[0] > matrix.shape[1]:
                raise ValueError(
                    f"{name} has shape {tuple(matrix.shape)}: give [fewer or as many, sides of x]"
                )
        self.rows, self.columns = rows.to(torch.float64), columns.to(torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        require_sides(x, (self.rows.shape[1], self.columns.shape[1]), self)
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        require_sides(y, (self.rows.shape[0], self.columns.shape[0]), self)
        return self.rows.to(y).T @ y @ self.columns.to(y)

    def svd(self, like: Tensor) -> SVD:
        (u_r, s_r, v_r), (u_c, s_c, v_c) = (tuple(part.to(like) for part in parts) for parts in self._factors)
        height, width = self.rows.shape[1], self.columns.shape[1]

        def ut(y: Tensor) -> Tensor:
            return F.pad(u_r.T @ y @ u_c, (0, width - len(s_c), 0, height - len(s_r)))

        singular = F.pad(s_r[:, None] * s_c, (0, width - len(s_c), 0, height - len(s_r)))
        return SVD(singular, lambda x: v_r.T @ x @ v_c, lambda c: v_r @ c @ v_c.T, ut)

    @cached_property
    def _factors(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """``(U, S, V)`` of the two matrices, V square."""
        found = []
        for matrix in (self.rows, self.columns):
            u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
            found.append((u, s, vh.T))
        return found


class SuperResolution(Separable):
    """Images reduced as Pillow reduces them: ``Image.resize`` of floating-point images, to rounding in float32.

    The filter is stretched by the factor, so that it averages what a pixel covers, and cut and renormalised at the border.

    >>> import torch
    >>> SuperResolution(factor=4, size=32)(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 3, 8, 8])

    Reference: R. G. Keys, "Cubic convolution interpolation for digital image processing", 1981,
    https://doi.org/10.1109/TASSP.1981.1163711 (a = -0.5).

    Args:
        factor: by which height and width are divided, >= 1.
        size: of ``x``: pixels a side, or (height, width).
        filter: the interpolation filter.

    Raises:
        ValueError: the factor does not divide the size; the message has the nearest sizes.
    """

    @checked
    def __init__(self, factor: PositiveInt = 4, *, size: Size, filter: Filter = "bicubic") -> None:
        height, width = sides(size)
        if height % factor or width % factor:
            low, high = ([n * factor for n in (height // factor + k, width // factor + k)] for k in (0, 1))
            raise ValueError(
                f"factor={factor} does not divide the size {height} x {width}: crop the image to {low[0]} x {low[1]}, or "
                f"pad it to {high[0]} x {high[1]}"
            )
        self.factor = factor
        super().__init__(reduction(height, factor, filter), reduction(width, factor, filter))


def reduction(side: int, factor: int, filter: Filter) -> Tensor:
    """The matrix ``[side / factor, side]`` of one axis, float64; its rows have the sum 1."""
    function, support = FILTERS[filter]
    reach = support * factor
    centre = (torch.arange(side // factor, dtype=torch.float64)[:, None] + 0.5) * factor
    first = (centre - reach + 0.5).floor().clamp(min=0)
    last = (centre + reach + 0.5).floor().clamp(max=side)
    place = torch.arange(side, dtype=torch.float64)
    inside = (place >= first) & (place < last)
    weights = torch.where(inside, function((place + 0.5 - centre) / factor), 0)
    return weights / weights.sum(1, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    inner = ((a + 2) * x - (a + 3)) * x**2 + 1
    outer = ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {  # and the half-width at factor 1
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
    "lanczos": (_lanczos, 3.0),
    "box": (_box, 0.5),
}
