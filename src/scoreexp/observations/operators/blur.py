r"""Blur: convolution with a kernel.

.. math:: (A x)_{ij} = \sum_{a, b} k_{ab}\, x_{i + c - a,\, j + d - b}, \qquad (c, d) \text{ the middle of the kernel } k .

Two borders. ``periodic``: the image continues on its other side; the Fourier transform diagonalises ``A``. ``valid``: only
where the kernel lies inside, so ``y`` is smaller than ``x`` by the kernel less one pixel and nothing is assumed of what lies
beyond; this is what a camera does. Both are computed by the Fourier transform: where the kernel lies inside, the periodic
continuation has no part. ``python -m benchmarks.restoration_blur`` measures it beside torch's convolutions.

Reference: P. C. Hansen, J. G. Nagy, D. P. O'Leary, "Deblurring Images: Matrices, Spectra, and Filtering", 2006, chapter 4.
"""

import math
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat
from scoreexp.observations.operators.base import SVD, LinearOperator
from scoreexp.observations.operators.sides import Size, require_sides, sides

Border = Literal["periodic", "valid"]


class Blur(LinearOperator):
    """Every channel convolved with the same kernel.

    >>> import torch
    >>> box = torch.ones(3, 3) / 9
    >>> Blur(box, size=8, border="valid")(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 6, 6])

    Args:
        kernel: ``[h, w]`` with odd sides; usually >= 0 with the sum 1, which keeps the brightness.
        size: of ``x``: pixels a side, or (height, width).
        border: ``periodic`` or ``valid``.

    Raises:
        ValueError: the kernel is larger than the image, has an even side, is not finite or is 0.
    """

    @checked
    def __init__(self, kernel: Tensor, size: Size, border: Border = "periodic") -> None:
        if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
            raise ValueError(
                f"the kernel has shape {tuple(kernel.shape)}: give [h, w] with odd sides, padded with zeros"
            )
        if not (kernel.isfinite().all() and kernel.any()):
            raise ValueError("the kernel is 0 or holds values that are not finite: give another")
        self.size, self.border = sides(size), border
        self.kernel = kernel.to(torch.float64)
        if any(k > s for k, s in zip(kernel.shape, self.size, strict=True)):
            raise ValueError(
                f"the kernel of {kernel.shape[0]} x {kernel.shape[1]} is larger than the image of {self.size[0]} x "
                f"{self.size[1]}: give a smaller one"
            )

    def __call__(self, x: Tensor) -> Tensor:
        require_sides(x, self.size, self)
        found = self._filtered(x, self._transfer(x))
        if self.border == "periodic":
            return found
        top, left = (side // 2 for side in self.kernel.shape)
        height, width = self._valid
        return found[..., top : top + height, left : left + width]

    def adjoint(self, y: Tensor) -> Tensor:
        require_sides(y, self.size if self.border == "periodic" else self._valid, self)
        if self.border == "valid":
            down, right = (side // 2 for side in self.kernel.shape)
            y = F.pad(y, (right, right, down, down))
        return self._filtered(y, self._transfer(y).conj())

    def svd(self, like: Tensor) -> SVD:
        if self.border != "periodic":
            return super().svd(like)
        transfer = torch.fft.fft2(self._wrapped()).to(device=like.device)
        singular = transfer.abs()
        phase = torch.where(singular > 0, transfer / torch.where(singular > 0, singular, 1), 1)
        phase = phase.to(torch.complex128 if like.dtype == torch.float64 else torch.complex64)
        return SVD(
            singular.to(like.dtype),
            lambda x: torch.fft.fft2(x, norm="ortho"),
            lambda c: torch.fft.ifft2(c, norm="ortho").real,
            lambda y: phase.conj() * torch.fft.fft2(y, norm="ortho"),
        )

    @property
    def _valid(self) -> tuple[int, int]:
        return self.size[0] - self.kernel.shape[0] + 1, self.size[1] - self.kernel.shape[1] + 1

    def _wrapped(self) -> Tensor:
        """The kernel on the grid of the image, its middle at the origin, ``[H, W]`` float64."""
        (h, w), (height, width) = self.kernel.shape, self.size
        padded = F.pad(self.kernel, (0, width - w, 0, height - h))
        return padded.roll((-(h // 2), -(w // 2)), (0, 1))

    @cached_property
    def _half_spectrum(self) -> Tensor:
        """The Fourier transform of the kernel, complex128 on the CPU, non-negative frequencies of the columns."""
        return torch.fft.rfft2(self._wrapped())

    def _transfer(self, like: Tensor) -> Tensor:
        dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return self._half_spectrum.to(like.device, dtype)

    def _filtered(self, x: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * transfer, s=self.size)


class GaussianBlur(Blur):
    r"""A Gaussian kernel sampled at the pixels, ``k \propto exp(-(a^2 + b^2) / (2 sigma^2))``, cut at four sigma.

    >>> round(float(GaussianBlur(sigma=1.6, size=32).kernel.sum()), 6)
    1.0

    Args:
        sigma: standard deviation in pixels, > 0.
        size: of ``x``: pixels a side, or (height, width).
        border: ``periodic`` or ``valid``.

    Raises:
        ValueError: see ``Blur``.
    """

    @checked
    def __init__(self, sigma: FinitePositiveFloat = 1.6, *, size: Size, border: Border = "periodic") -> None:
        reach = max(1, math.ceil(4 * sigma))
        line = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
        line = line / line.sum()
        super().__init__(line[:, None] * line, size, border)


class MotionBlur(Blur):
    """A straight line of uniform weight, drawn through the middle of the kernel: motion during the exposure.

    >>> MotionBlur(length=3.0, angle=90.0, size=16).kernel.shape
    torch.Size([3, 3])

    Args:
        length: of the line in pixels, >= 1.
        angle: in degrees, counter-clockwise from the horizontal.
        size: of ``x``: pixels a side, or (height, width).
        border: ``periodic`` or ``valid``.

    Raises:
        ValueError: see ``Blur``.
    """

    @checked
    def __init__(
        self,
        length: FinitePositiveFloat = 15.0,
        angle: float = 45.0,
        *,
        size: Size,
        border: Border = "periodic",
    ) -> None:
        if not (length >= 1 and math.isfinite(length) and math.isfinite(angle)):
            raise ValueError(
                f"length={length}, angle={angle}: choose a length in pixels >= 1 and an angle in degrees"
            )
        reach = max(1, math.ceil((length - 1) / 2))
        # points of the line, each shared bilinearly between four pixels
        samples = 16 * math.ceil(length)
        along = torch.linspace(-0.5, 0.5, samples, dtype=torch.float64) * (length - 1)
        row = reach - along * math.sin(math.radians(angle))
        column = reach + along * math.cos(math.radians(angle))
        kernel = torch.zeros(2 * reach + 2, 2 * reach + 2, dtype=torch.float64)
        top, left = (row + 1e-9).floor(), (column + 1e-9).floor()
        down, right = row - top, column - left
        for i, u in ((0, 1 - down), (1, down)):
            for j, v in ((0, 1 - right), (1, right)):
                kernel.index_put_((top.long() + i, left.long() + j), u * v, accumulate=True)
        kernel = kernel[: 2 * reach + 1, : 2 * reach + 1]
        super().__init__(kernel / kernel.sum(), size, border)
