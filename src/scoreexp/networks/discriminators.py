r"""Discriminators D(x_s, x_t, c_noise) of denoising diffusion GANs: could ``x_s`` be the state before ``x_t``?

Both states are scaled to about unit variance, ``c_noise = log(sigma / alpha) / 4`` is that of t. D is a logit: positive for
pairs of the diffusion, negative for drawn ones.

Reference: Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs", 2022,
https://arxiv.org/abs/2112.07804.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import Conditioning, check_image_shape
from scoreexp.networks.mlp import LinearBlock
from scoreexp.numerics.haar import haar


class PointDiscriminator(nn.Module):
    """A residual perceptron over both states, for points.

    >>> discriminator = PointDiscriminator(event_shape=(2,), width=16, blocks=1)
    >>> discriminator(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3)).shape
    torch.Size([3])

    Args:
        event_shape: shape ``*`` of one sample.
        width: of the hidden layers.
        blocks: number of residual blocks.
        embedding_channels: width of the conditioning vector, even.

    Raises:
        ValueError: if an argument is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        width: PositiveInt = 128,
        blocks: PositiveInt = 3,
        embedding_channels: PositiveInt = 64,
    ) -> None:
        super().__init__()
        self.conditioning = Conditioning(embedding_channels, True, None)
        self.stem = nn.Linear(2 * math.prod(event_shape), width)
        self.blocks = nn.ModuleList(LinearBlock(width, embedding_channels) for _ in range(blocks))
        self.head = nn.Linear(width, 1)

    def forward(self, x_s: Tensor, x_t: Tensor, c_noise: Tensor) -> Tensor:
        """``x_s[B, *]``, ``x_t[B, *]``, ``c_noise[B]`` -> logits ``[B]``."""
        embedding = self.conditioning(c_noise, None)
        h = self.stem(torch.cat([x_s.flatten(1), x_t.flatten(1)], 1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(h))[:, 0]


class _Block(nn.Module):
    """Two convolutions to half the resolution beside a mean of 2 x 2 pixels; the first is shifted by the conditioning."""

    def __init__(self, channels: int, made: int, embedding_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, made, 3, padding=1)
        self.shift = nn.Linear(embedding_channels, made)
        self.conv2 = nn.Conv2d(made, made, 3, padding=1)
        self.skip = nn.Conv2d(channels, made, 1, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, 0.2)) + self.shift(embedding)[:, :, None, None]
        h = self.conv2(F.leaky_relu(h, 0.2)) + self.skip(x)
        return F.avg_pool2d(h / math.sqrt(2), 2, ceil_mode=True)


class ImageDiscriminator(nn.Module):
    """Residual convolutions down to a few pixels, whose features are averaged; for images of any size.

    >>> discriminator = ImageDiscriminator(event_shape=(1, 8, 8), channels=8, multipliers=(1, 2))
    >>> discriminator(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape
    torch.Size([3])

    Args:
        event_shape: (C, H, W) of one image.
        channels: width at full resolution.
        multipliers: width after each halving, in units of ``channels``.
        embedding_channels: width of the conditioning vector, even.

    Raises:
        ValueError: if an argument is out of its range, or there is no halving.
    """

    divides = 1  # H and W

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        channels: PositiveInt = 32,
        multipliers: tuple[PositiveInt, ...] = (2, 4, 4),
        embedding_channels: PositiveInt = 128,
    ) -> None:
        super().__init__()
        check_image_shape(tuple(event_shape), self.divides)
        if not multipliers:
            raise ValueError("multipliers is empty: give at least one")
        widths = [channels, *(channels * m for m in multipliers)]
        self.conditioning = Conditioning(embedding_channels, True, None)
        self.stem = self.make_stem(2 * event_shape[0], channels)
        self.blocks = nn.ModuleList(_Block(a, b, embedding_channels) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], 1)

    def make_stem(self, given: int, made: int) -> nn.Module:
        """From the channels of both states to features."""
        return nn.Conv2d(given, made, 3, padding=1)

    def forward(self, x_s: Tensor, x_t: Tensor, c_noise: Tensor) -> Tensor:
        """``x_s[B, C, H, W]``, ``x_t[B, C, H, W]``, ``c_noise[B]`` -> logits ``[B]``."""
        embedding = self.conditioning(c_noise, None)
        h = self.stem(torch.cat([x_s, x_t], 1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.leaky_relu(h, 0.2).mean((2, 3)))[:, 0]


class _HaarStem(nn.Module):
    """The Haar bands of every channel, mixed by a 1 x 1 convolution."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4 * given, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(haar(x))


class WaveletDiscriminator(ImageDiscriminator):
    """An ``ImageDiscriminator`` that begins with one level of the Haar transform: noise and structure come apart in it.

    Its first features are linear in the bands, at half the resolution.

    Reference: Q. Wang, L. Mahler, J. Steiglechner, F. Birk, K. Scheffler, G. Lohmann, "DISGAN: Wavelet-informed
    Discriminator Guides GAN to MRI Super-resolution with Noise Cleaning", 2023, https://arxiv.org/abs/2308.12084, for
    volumes.

    >>> discriminator = WaveletDiscriminator(event_shape=(1, 8, 8), channels=8, multipliers=(2,))
    >>> discriminator(torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape
    torch.Size([3])

    Args:
        event_shape: (C, H, W) of one image, H and W even.
        channels: width at half the resolution.
        multipliers: width after each further halving, in units of ``channels``.
        embedding_channels: width of the conditioning vector, even.
    """

    divides = 2

    def make_stem(self, given: int, made: int) -> nn.Module:
        return _HaarStem(given, made)
