r"""The Haar transform of images, one level: an orthonormal change of basis in every square of 2 x 2 pixels.

.. math:: \begin{pmatrix} LL \\ LH \\ HL \\ HH \end{pmatrix} = \frac12 \begin{pmatrix}
          1 & 1 & 1 & 1 \\ 1 & -1 & 1 & -1 \\ 1 & 1 & -1 & -1 \\ 1 & -1 & -1 & 1 \end{pmatrix}
          \begin{pmatrix} x_{00} \\ x_{01} \\ x_{10} \\ x_{11} \end{pmatrix}

The matrix is symmetric and its own inverse.

Reference: S. Mallat, "A Theory for Multiresolution Signal Decomposition: The Wavelet Representation", 1989,
https://doi.org/10.1109/34.192463.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_MATRIX = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


def haar(x: Tensor) -> Tensor:
    """The four bands of each channel, ``[B, 4 C, H / 2, W / 2]``: LL, LH, HL and HH of the first, then of the next.

    >>> haar(torch.ones(1, 1, 2, 2)).flatten()
    tensor([2., 0., 0., 0.])

    Args:
        x: ``[B, C, H, W]``.

    Raises:
        ValueError: H or W is odd.
    """
    if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}: give [B, C, H, W] with even H and W, or crop it")
    return _in_each_square(F.pixel_unshuffle(x, 2))


def inverse_haar(bands: Tensor) -> Tensor:
    """The image ``[B, C, H, W]`` of its bands ``[B, 4 C, H / 2, W / 2]``.

    >>> inverse_haar(torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1))
    tensor([[[[1., 1.],
              [1., 1.]]]])

    Raises:
        ValueError: 4 does not divide the number of bands.
    """
    if bands.ndim != 4 or bands.shape[1] % 4:
        raise ValueError(
            f"bands have the shape {tuple(bands.shape)}: give [B, 4 C, H / 2, W / 2], as haar returns"
        )
    return F.pixel_shuffle(_in_each_square(bands), 2)


def _in_each_square(x: Tensor) -> Tensor:
    matrix = torch.tensor(_MATRIX, dtype=x.dtype, device=x.device) / 2
    return torch.einsum("ij,bcjhw->bcihw", matrix, x.unflatten(1, (-1, 4))).flatten(1, 2)
