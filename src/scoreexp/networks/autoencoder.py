"""A plain convolutional auto-encoder, the low baseline of learned denoisers."""

from itertools import pairwise

from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import check_image_shape


class ConvAutoencoder(nn.Module):
    """Strided 3x3 convolutions ``C - 32 - 64`` and transposed ones back, ReLU between them, no skip connection.

    All that leaves the encoder is ``64 x H/4 x W/4``. It is trained to return the clean image (``precond=x0``) at one noise
    level; ``c_noise`` and class labels are not used. It is the classical half of the comparison of J. Kim et al., "Quantum
    Convolutional Autoencoder", 2024, scored there by SSIM on MNIST; the quantum half is not here.

    >>> import torch
    >>> network = ConvAutoencoder(event_shape=(1, 28, 28))
    >>> network(torch.zeros(2, 1, 28, 28), torch.zeros(2)).shape
    torch.Size([2, 1, 28, 28])

    Args:
        event_shape: (C, H, W) of one image, H and W divisible by 2 for each width.
        num_classes: not used.
        widths: channels after each halving of the resolution.

    Raises:
        ValueError: there is no width, or H or W is not divisible.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (32, 64),
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError(f"widths={tuple(widths)} must be one or more numbers of channels")
        self.downsampling_factor = 2 ** len(widths)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        sizes = (event_shape[0], *widths)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            encoder += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
            decoder += [nn.ReLU(), nn.ConvTranspose2d(outputs, inputs, 4, stride=2, padding=1)][::-1]
        self.layers = nn.Sequential(*encoder, *decoder[::-1][1:])

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``; ``c_noise`` and ``cond`` are not used.

        Raises:
            ValueError: if H or W is not divisible.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        return self.layers(x)
