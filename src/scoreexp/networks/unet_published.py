"""The U-Net of the published score-embedding program, for comparisons with its figures.

Five widths 64-128-256-512-1024 of two 3x3 convolutions each, every one followed by group normalisation in 8
groups and ReLU; 2x2 max-pooling down; bilinear interpolation up, which keeps the width, so that the first
convolution on the way up takes 1024 + 512 channels to 512; self-attention at the bottleneck; a last 1x1
convolution. No layer starts at zero. The program also computes an embedding of the time (394,240 parameters)
and never uses it: it has no effect on any value and is left out here, which leaves 35,591,299 of 35,985,539
parameters for three channels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import GroupNorm, SelfAttention, check_image_shape

GROUPS = 8


class DoubleConvolution(nn.Sequential):
    """relu(norm(conv(relu(norm(conv(x)))))) with 3x3 convolutions and 8 groups."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            GroupNorm(out_channels, GROUPS),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            GroupNorm(out_channels, GROUPS),
            nn.ReLU(),
        )


class UNetPublished(nn.Module):
    """Double-convolution U-Net with bottleneck attention, which sees neither the noise level nor a class.

    References: "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov Projection", Lau, Na,
    Wan, 2025, https://arxiv.org/abs/2511.17634, and the program that belongs to it; the form is that of "U-Net:
    Convolutional Networks for Biomedical Image Segmentation", Ronneberger, Fischer, Brox, 2015,
    https://arxiv.org/abs/1505.04597.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.UNetPublished(event_shape=(3, 8, 8), widths=(8, 16))
    >>> network(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape, network.downsampling_factor
    (torch.Size([1, 3, 8, 8]), 2)

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 ** (len(widths)
            - 1)``.
        num_classes: not used (data sets that have classes may be trained on).
        widths: channels of each level, fine to coarse, multiples of 8.

    Raises:
        ValueError: if the event shape does not divide by the downsampling factor, or a width is not a positive
            multiple of 8.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024),
    ) -> None:
        super().__init__()
        if not widths or any(width % GROUPS for width in widths):
            raise ValueError(f"widths={tuple(widths)} must be one or more multiples of {GROUPS}")
        self.downsampling_factor = 2 ** (len(widths) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        self.down = nn.ModuleList([DoubleConvolution(a, b) for a, b in pairwise((event_shape[0], *widths))])
        self.attention = SelfAttention(widths[-1], groups=GROUPS, zero_start=False)
        self.up = nn.ModuleList([DoubleConvolution(a + b, b) for a, b in pairwise(widths[::-1])])
        self.conv_out = nn.Conv2d(widths[0], event_shape[0], 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``; ``c_noise`` and ``cond`` are not used.

        Raises:
            ValueError: if H or W does not divide by the downsampling factor.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        h = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            if level > 0:
                skips.append(h)
                h = F.max_pool2d(h, 2)
            h = convolutions(h)
        h = self.attention(h)
        for convolutions in self.up:
            h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
            h = convolutions(torch.cat([skips.pop(), h], dim=1))
        return self.conv_out(h)
