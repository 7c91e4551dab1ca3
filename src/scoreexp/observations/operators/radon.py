r"""The parallel-beam Radon transform of computed tomography, as a sparse matrix.

.. math:: (A x)_{\theta, u} = \sum_{i, j} w(s_{ij}(\theta) - u)\, x_{ij}, \qquad
          s_{ij}(\theta) = (j - c) \cos\theta - (i - c) \sin\theta + c, \quad w(s) = \max(1 - |s|, 0) ,

row i, column j, centre ``c = N // 2``: each pixel is shared linearly between the two detectors next to its projection. The
geometry is that of ``skimage.transform.radon``, which turns the image instead; the two differ by their interpolation.

Reference: A. C. Kak, M. Slaney, "Principles of Computerized Tomographic Imaging", 1988, chapter 3.
"""

import math
import warnings
from typing import Any, Self

import torch
from scipy.sparse import coo_array
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.observations.operators.base import LinearOperator

Key = tuple[torch.dtype, torch.device]
Matrices = dict[Key, Tensor]
_KEY: Key = (torch.float64, torch.device("cpu"))


class Radon(LinearOperator):
    """Sinograms ``[B, C, angles, size]`` of square images ``[B, C, size, size]``, angles evenly spaced in [0, pi).

    Over a full turn, [0, 2 pi), every ray but those of the first detector of an even number is measured twice.

    Pixels whose projection falls beyond the row of detectors, in the corners, are not seen there.

    >>> import torch
    >>> Radon(size=8, angles=5)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 5, 8])

    Args:
        size: pixels a side, and number of detectors.
        angles: number of projections.
        full_turn: over [0, 2 pi), as ``restorers.SinogramFlicking`` takes them.

    Raises:
        ValueError: if a size is not positive, or an image has another one.
    """

    @checked
    def __init__(self, size: PositiveInt, angles: PositiveInt = 60, full_turn: bool = False) -> None:
        self.size, self.angles, self.full_turn = size, angles, full_turn
        matrix = _matrix(size, angles, 2 * math.pi if full_turn else math.pi)
        self._forward, self._backward = {_KEY: _by_rows(matrix)}, {_KEY: _by_rows(matrix.T)}

    def __call__(self, x: Tensor) -> Tensor:
        return self._applied(
            (self._forward, self._backward), x, (self.size, self.size), (self.angles, self.size)
        )

    def adjoint(self, y: Tensor) -> Tensor:
        return self._applied(
            (self._backward, self._forward), y, (self.angles, self.size), (self.size, self.size)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and torch cannot copy its matrices

    def _applied(
        self, pair: tuple[Matrices, Matrices], x: Tensor, taken: tuple[int, int], given: tuple[int, int]
    ) -> Tensor:
        """The product with the first matrix of the pair, of which copies are kept for each dtype and device."""
        if x.shape[-2:] != taken:
            raise ValueError(f"Radon takes {taken[0]} x {taken[1]} values here, not {tuple(x.shape[-2:])}")
        flat = x.reshape(-1, taken[0] * taken[1]).T
        key = (x.dtype, x.device)
        for matrices in pair:
            if key not in matrices:
                matrices[key] = matrices[_KEY].to(device=x.device, dtype=x.dtype)
        product: Tensor = _Product.apply(flat, pair[0][key], pair[1][key])
        return product.T.reshape(*x.shape[:-2], *given)


class _Product(torch.autograd.Function):
    """``A x`` with the gradient ``A^T g`` of the transpose that is known; torch would transpose anew each time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.swapped = (transpose, matrix)
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradients[0], *ctx.swapped), None, None


def _by_rows(matrix: coo_array) -> Tensor:
    """In compressed rows, whose products are some ten times faster than those of coordinates."""
    rows = matrix.tocsr()
    starts, columns, values = (torch.from_numpy(part) for part in (rows.indptr, rows.indices, rows.data))
    with warnings.catch_warnings(action="ignore"):  # torch calls the layout a beta
        return torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=False)


def _matrix(size: int, angles: int, turn: float) -> coo_array:
    """``[angles size, size size]``, float64."""
    centre = size // 2
    theta = (torch.arange(angles, dtype=torch.float64) * (turn / angles))[:, None, None]
    row, column = torch.meshgrid(*[torch.arange(size, dtype=torch.float64) - centre] * 2, indexing="ij")
    place = column * torch.cos(theta) - row * torch.sin(theta) + centre  # [angles, size, size]
    lower = place.floor()
    share = place - lower
    pixel = torch.arange(size * size).reshape(size, size).expand_as(place)
    first = (torch.arange(angles) * size)[:, None, None].expand_as(place)
    rows, columns, values = [], [], []
    for detector, weight in ((lower, 1 - share), (lower + 1, share)):
        seen = (detector >= 0) & (detector < size) & (weight > 0)
        rows.append((first + detector.long())[seen])
        columns.append(pixel[seen])
        values.append(weight[seen])
    places = (torch.cat(rows).numpy(), torch.cat(columns).numpy())
    return coo_array((torch.cat(values).numpy(), places), shape=(angles * size, size * size))
