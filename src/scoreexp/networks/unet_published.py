"""The U-Net of the published score-embedding script, for comparisons with its figures.

Known of it, and kept: widths 64-128-256-512-1024, two 3x3 convolutions per level, self-attention at the
bottleneck, and an embedding of the time that is computed and never used. ``time_conditioning=False``, the
default, is that network without the parameters that have no effect; True adds the embedding after the first
convolution of every level.

Chosen here, because the paper does not fix it: group normalisation and SiLU after every convolution (a
normalisation over the batch would tie an image's score to the images beside it), 2x2 max-pooling down, 2x2
transposed convolutions up, concatenated skips, one attention head, a last 1x1 convolution. No layer starts
at zero but the attention's output.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.networks.layers import Conditioning, GroupNorm, SelfAttention, check_image_shape
from scoreexp.parameter_types import PositiveInt


class DoubleConvolution(nn.Module):
    """silu(norm(conv(silu(norm(conv(x)) + W e)))) with W e only where there is an embedding e."""

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = GroupNorm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.shift = None if embedding_channels is None else nn.Linear(embedding_channels, out_channels)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = self.norm1(self.conv1(x))
        if self.shift is not None:
            h = h + self.shift(embedding)[:, :, None, None]
        return F.silu(self.norm2(self.conv2(F.silu(h))))


class UNetPublished(nn.Module):
    """Double-convolution U-Net with bottleneck attention.

    Reference: "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov Projection",
        Lau, Na, Wan,
    2025, https://arxiv.org/abs/2511.17634; the form is that of "U-Net: Convolutional Networks for
    Biomedical Image Segmentation", Ronneberger, Fischer, Brox, 2015, https://arxiv.org/abs/1505.04597.

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 ** (len(widths)
            - 1)``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for,
            is the null label of the unconditional model. None, as published: no class embedding.
        widths: channels of each level, fine to coarse.
        time_conditioning: False, as published, ignores ``c_noise``.
        embedding_channels: width of the conditioning vector, even.

    Raises:
        ValueError: if the event shape does not divide by the downsampling factor, or another argument is
            out of its range.
    """

    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024),
        time_conditioning: bool = False,
        embedding_channels: PositiveInt = 256,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths={tuple(widths)} must be one or more positive numbers of channels")
        self.downsampling_factor = 2 ** (len(widths) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        self.conditioning = Conditioning(embedding_channels, time_conditioning, num_classes)
        embedding = None if self.conditioning.is_empty else embedding_channels
        coarse_to_fine = list(pairwise(widths[::-1]))
        self.down = nn.ModuleList(
            [DoubleConvolution(a, b, embedding) for a, b in pairwise((event_shape[0], *widths))]
        )
        self.attention = SelfAttention(widths[-1])
        self.upsample = nn.ModuleList([nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in coarse_to_fine])
        self.up = nn.ModuleList([DoubleConvolution(2 * b, b, embedding) for _, b in coarse_to_fine])
        self.conv_out = nn.Conv2d(widths[0], event_shape[0], 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]``, ``cond[B]`` (long labels) or None -> ``[B, C, H, W]``.

        Raises:
            ValueError: if H or W does not divide by the downsampling factor, or labels are given to a
                network without classes.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        embedding = self.conditioning(c_noise, cond)
        h = x.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            if level > 0:
                skips.append(h)
                h = F.max_pool2d(h, 2)
            h = convolutions(h, embedding)
        h = self.attention(h)
        for upsample, convolutions in zip(self.upsample, self.up):
            h = convolutions(torch.cat([skips.pop(), upsample(h)], dim=1), embedding)
        return self.conv_out(h)
