"""The regression baseline beside the score CNN."""

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import check_image_shape


class RegressionUNet(nn.Module):
    """3x3 convolutions ``C - 64 - 128``, 2x2 max-pooling, 2x2 transposed convolution ``128 - 64``, 3x3 convolution
    ``64 - C``; ReLU after all but the last.

    Published as a U-Net, of which it has one level and no skip connection. It is trained to return the clean image
    (``precond=x0``) at one noise level; ``c_noise`` and class labels are not used.

    Reference: Nguyen, Senequier, Arthaud, "Score-Based Denoising with Reverse-Time SDEs".

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.RegressionUNet(event_shape=(3, 8, 8), widths=(8, 16))
    >>> network(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W even.
        num_classes: not used.
        widths: channels of the two convolutions.

    Raises:
        ValueError: if H or W is odd, or a width is not positive.
    """

    downsampling_factor = 2

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, PositiveInt] = (64, 128),
    ) -> None:
        super().__init__()
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        channels, (fine, coarse) = event_shape[0], widths
        self.layers = nn.Sequential(
            nn.Conv2d(channels, fine, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(fine, coarse, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.ConvTranspose2d(coarse, fine, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(fine, channels, 3, padding=1),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``; ``c_noise`` and ``cond`` are not used.

        Raises:
            ValueError: if H or W is odd.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        return self.layers(x.contiguous(memory_format=torch.channels_last))
