r"""Part of the Fourier transform of an image: magnetic resonance imaging with one coil.

.. math:: A x = (F x)|_{k \in \Omega}, \qquad F \text{ the unitary two-dimensional Fourier transform} .

Reference: M. Lustig, D. Donoho, J. M. Pauly, "Sparse MRI: The Application of Compressed Sensing for Rapid MR Imaging", 2007,
https://doi.org/10.1002/mrm.21391.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import Probability
from scoreexp.observations.operators.base import LinearOperator
from scoreexp.observations.operators.sides import Size, require_sides, sides


class FourierMask(LinearOperator):
    """The chosen frequencies ``[B, C, m, 2]`` of real images, as real and imaginary part.

    A real image has conjugate values at opposite frequencies, so a singular value is 1 where both of two are
    measured (or a frequency is its own opposite), and 1 / sqrt(2) where one is. The pseudo-inverse averages the two.

    >>> import torch
    >>> omega = torch.zeros(8, 8, dtype=torch.bool)
    >>> omega[:, :2] = True
    >>> FourierMask(omega)(torch.ones(1, 1, 8, 8)).shape
    torch.Size([1, 1, 16, 2])

    Args:
        omega: ``[H, W]``, true where a frequency is measured, in the order of ``torch.fft.fft2`` (the mean first).

    Raises:
        ValueError: no frequency is measured, or an image has another size.
    """

    @checked
    def __init__(self, omega: Tensor) -> None:
        if omega.ndim != 2 or not omega.any():
            raise ValueError(
                f"omega has shape {tuple(omega.shape)} and {int(omega.sum())} frequencies: give [H, W] with some"
            )
        self.omega = omega != 0
        self._index = self.omega.flatten().nonzero().flatten()

    def __call__(self, x: Tensor) -> Tensor:
        require_sides(x, (self.omega.shape[0], self.omega.shape[1]), self)
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho").flatten(-2)[..., self._index.to(x.device)])

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self._on_grid(y), norm="ortho").real

    def pinv(self, y: Tensor) -> Tensor:
        measured = self.omega.to(y)
        opposite = measured.flip(0, 1).roll((1, 1), (0, 1))
        return torch.fft.ifft2(self._on_grid(y) * 2 / (measured + opposite).clamp(min=1), norm="ortho").real

    def _on_grid(self, y: Tensor) -> Tensor:
        """``y[B, C, m, 2]`` at its frequencies ``[B, C, H, W]``, complex, 0 elsewhere."""
        if tuple(y.shape[-2:]) != (len(self._index), 2):
            raise ValueError(
                f"y has shape {tuple(y.shape)}, but {len(self._index)} frequencies are measured: give [B, C, m, 2]"
            )
        values = torch.view_as_complex(y.contiguous())
        grid = values.new_zeros(*values.shape[:-1], self.omega.numel())
        return grid.index_copy(-1, self._index.to(y.device), values).unflatten(-1, self.omega.shape)


class CartesianMRI(FourierMask):
    """Whole columns of frequencies: a band around the mean and random others.

    >>> float(CartesianMRI(size=32, share=0.5).omega.float().mean())
    0.5

    Args:
        size: pixels a side, or (height, width).
        share: of the columns that are measured, in (0, 1].
        centre: share of the columns that lie around the mean and are always measured, at most ``share``.
        seed: names the columns.

    Raises:
        ValueError: ``centre`` exceeds ``share``, or no column is measured.
    """

    @checked
    def __init__(
        self, size: Size, share: Probability = 0.25, centre: Probability = 0.08, seed: int = 0
    ) -> None:
        height, width = sides(size)
        if not 0 <= centre <= share <= 1:
            raise ValueError(f"share={share}, centre={centre}: choose 0 <= centre <= share <= 1")
        distance = torch.fft.fftfreq(width).abs()
        chance = torch.rand(width, generator=generator(seed, "mri"))
        inner = distance.argsort(stable=True)[: round(centre * width)]
        chance[inner] = -1.0
        omega = torch.zeros(height, width, dtype=torch.bool)
        omega[:, chance.argsort()[: round(share * width)]] = True
        super().__init__(omega)
