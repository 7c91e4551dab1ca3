r"""Operators across channels: gray from colour, bands from a few components, and their inverses.

.. math:: (A x)_{c'} = \sum_c M_{c' c}\, x_c .

With ``M`` the Rec. 601 weights it is Pillow's conversion to gray; with ``M = E [bands, r]`` of a cube of low rank it takes
the reduced image to the bands, as in L. Pang et al., "HIR-Diff: Unsupervised Hyperspectral Image Restoration Via Improved
Diffusion Models", 2024, https://arxiv.org/abs/2402.15865.
"""

import torch
from torch import Tensor

from scoreexp.observations.operators.base import SVD, LinearOperator

REC_601 = (0.299, 0.587, 0.114)  # red, green, blue


class ChannelMix(LinearOperator):
    """``M`` applied to the channels of every pixel, ``[B, C, H, W] -> [B, C', H, W]``.

    >>> import torch
    >>> ChannelMix(torch.ones(1, 3) / 3)(torch.ones(1, 3, 4, 4)).shape
    torch.Size([1, 1, 4, 4])

    Args:
        matrix: ``M [C', C]``.

    Raises:
        ValueError: the matrix is none, or an image has another number of channels.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or not matrix.isfinite().all():
            raise ValueError(
                f"the matrix has shape {tuple(matrix.shape)}: give finite values [channels of y, channels of x]"
            )
        self.matrix = matrix.to(torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        return self._mixed(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._mixed(self.matrix.T, y)

    def svd(self, like: Tensor) -> SVD:
        if self.matrix.shape[0] > self.matrix.shape[1]:
            return super().svd(
                like
            )  # more values than unknowns: the coefficients of y do not fit the shape of x
        u, s, vh = torch.linalg.svd(self.matrix, full_matrices=True)
        padded = torch.zeros(len(vh), dtype=torch.float64)
        padded[: len(s)] = s
        wide = torch.zeros(len(vh), len(u), dtype=torch.float64)
        wide[: len(s)] = u.T
        return SVD(
            padded[:, None, None].to(like),
            lambda x: self._mixed(vh, x),
            lambda c: self._mixed(vh.T, c),
            lambda y: self._mixed(wide, y),
        )

    def pinv(self, y: Tensor) -> Tensor:
        return self._mixed(torch.linalg.pinv(self.matrix), y)

    def _mixed(self, matrix: Tensor, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != matrix.shape[1]:
            raise ValueError(
                f"{type(self).__name__} takes {matrix.shape[1]} channels [B, {matrix.shape[1]}, H, W] here, not "
                f"{tuple(x.shape)}: give such images"
            )
        return torch.einsum("dc,bchw->bdhw", matrix.to(x), x)


class Grayscale(ChannelMix):
    """Gray from red, green and blue with the weights of Rec. 601, as Pillow's mode L, without its rounding.

    >>> Grayscale().matrix
    tensor([[0.2990, 0.5870, 0.1140]], dtype=torch.float64)
    """

    def __init__(self) -> None:
        super().__init__(torch.tensor([REC_601], dtype=torch.float64))
