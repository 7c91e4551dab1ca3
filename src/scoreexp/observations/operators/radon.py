r"""The parallel-beam Radon transform of computed tomography, as a sparse matrix.

.. math:: (A x)_{\theta, u} = \sum_{i, j} w(s_{ij}(\theta) - u)\, x_{ij}, \qquad
          s_{ij}(\theta) = (j - c) \cos\theta - (i - c) \sin\theta + c, \quad w(s) = \max(1 - |s|, 0) ,

row i, column j, centre ``c = N // 2``: each pixel is shared linearly between the two detectors next to its projection. The
geometry is that of ``skimage.transform.radon``, which turns the image instead; the two differ by their interpolation.

Reference: A. C. Kak, M. Slaney, "Principles of Computerized Tomographic Imaging", 1988, chapter 3.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.observations.operators.base import LinearOperator

Key = tuple[torch.dtype, torch.device]
_KEY: Key = (torch.float64, torch.device("cpu"))


class Radon(LinearOperator):
    """Sinograms ``[B, C, angles, size]`` of square images ``[B, C, size, size]``, angles evenly spaced in [0, pi).

    Pixels whose projection falls beyond the row of detectors, in the corners, are not seen there.

    >>> import torch
    >>> Radon(size=8, angles=5)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 5, 8])

    Args:
        size: pixels a side, and number of detectors.
        angles: number of projections.

    Raises:
        ValueError: if a size is not positive, or an image has another one.
    """

    @checked
    def __init__(self, size: PositiveInt, angles: PositiveInt = 60) -> None:
        self.size, self.angles = size, angles
        matrix = _matrix(size, angles)
        self._forward, self._backward = {_KEY: matrix}, {_KEY: matrix.t().coalesce()}

    def __call__(self, x: Tensor) -> Tensor:
        return self._applied(self._forward, x, (self.size, self.size), (self.angles, self.size))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._applied(self._backward, y, (self.angles, self.size), (self.size, self.size))

    def _applied(
        self, matrices: dict[Key, Tensor], x: Tensor, taken: tuple[int, int], given: tuple[int, int]
    ) -> Tensor:
        """The product with the matrix, of which a copy is kept for each dtype and device."""
        if x.shape[-2:] != taken:
            raise ValueError(f"Radon takes {taken[0]} x {taken[1]} values here, not {tuple(x.shape[-2:])}")
        flat = x.reshape(-1, taken[0] * taken[1]).T
        key = (x.dtype, x.device)
        if key not in matrices:
            matrices[key] = matrices[_KEY].to(device=x.device, dtype=x.dtype)
        return (matrices[key] @ flat).T.reshape(*x.shape[:-2], *given)


def _matrix(size: int, angles: int) -> Tensor:
    """``[angles size, size size]``, float64, sparse."""
    centre = size // 2
    theta = (torch.arange(angles, dtype=torch.float64) * (math.pi / angles))[:, None, None]
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
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    shape = (angles * size, size * size)
    return torch.sparse_coo_tensor(index, torch.cat(values), shape, check_invariants=False).coalesce()
