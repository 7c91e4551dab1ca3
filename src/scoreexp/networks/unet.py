"""A residual U-Net F(x, c_noise, cond) for score-based diffusion models.

The network works on preconditioned inputs: it sees ``c_in x_t`` and ``c_noise = log(sigma / alpha) / 4``,
never a raw scale. Its form follows Ho et al. (2020): residual blocks with group normalisation and SiLU, an
embedding of the noise level added inside each block, self-attention at chosen resolutions, strided
convolutions down, nearest-neighbour upsampling and a convolution up. Every block on the way down has a skip
connection to its mirror image on the way up; the skip s joins the stream h as h + W s with a 1x1
convolution W. This is a 1x1 convolution of the concatenation (h, s) whose first half is the identity: it
copies nothing, and it leaves the widths, and so the parameters, to the 3x3 kernels.

Activations and kernels stay in the channels_last memory format, in which a batch of images is a matrix of
pixels by channels: the fast layout of the convolutions on CPU and on tensor cores, and that of attention
too.
"""

import math
from collections.abc import Iterator
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt, ProbabilityBelowOne
from scoreexp.networks.layers import (
    GROUP_SIZE,
    Conditioning,
    GroupNorm,
    SelfAttention,
    by_level,
    check_image_shape,
    last_levels,
    start_at_zero,
)


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + shift)))), the last convolution starting at zero.

    Args:
        channels: width of the input and of the output.
        hidden_channels: width between the two convolutions, and of ``shift``.
        dropout: probability of zeroing an activation before the last convolution.
    """

    def __init__(self, channels: int, hidden_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels)
        self.conv1 = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.norm2 = GroupNorm(hidden_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = start_at_zero(nn.Conv2d(hidden_channels, channels, 3, padding=1))

    def forward(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """``x[B, channels, H, W]``, ``shift[B, hidden_channels]`` or None -> the shape of x."""
        h = self.conv1(F.silu(self.norm1(x)))
        if shift is not None:
            # in place, one pass less: a convolution does not need its output again
            h.add_(shift[:, :, None, None])
        return self.conv2(self.dropout(F.silu(self.norm2(h)))).add_(x)


class AttentionBlock(nn.Module):
    """A residual block followed by self-attention."""

    def __init__(self, block: ResidualBlock, attention: SelfAttention) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, shift: Tensor | None) -> Tensor:
        return self.attention(self.block(x, shift))


class DownLevel(NamedTuple):
    """One resolution on the way down: the stream shrinks, then passes the blocks, and each block leaves a skip."""

    downsample: nn.Module | None  # a convolution; None at full resolution
    blocks: list[nn.Module]


class UpLevel(NamedTuple):
    """One resolution on the way up: the stream grows, then every block takes one skip by its merging convolution."""

    upsample: (
        nn.Module | None
    )  # a convolution that follows the nearest-neighbour upsampling; None at the lowest resolution
    merges: list[nn.Module]  # convolutions
    blocks: list[nn.Module]


class UNet(nn.Module):
    """Residual U-Net with noise-level and optional class conditioning.

    Reference: "Denoising Diffusion Probabilistic Models", Ho, Jain, Abbeel, 2020,
        https://arxiv.org/abs/2006.11239.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.UNet(event_shape=(3, 8, 8), num_classes=10, channels=16, multipliers=(1, 2), blocks=1)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 **
            (len(multipliers) - 1)``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for,
            is the null label of the unconditional model. None: no class embedding.
        channels: width at full resolution; multiples of 16 are fastest.
        multipliers: width of each level in units of ``channels``; each level has half the resolution of the
            one before.
        blocks: residual blocks per level, on the way down and again on the way up.
        attention_resolutions: heights in pixels of the levels whose last block, on either way, is followed by
            self-attention, for images of ``event_shape``; heights that no level has count for nothing, and
            the middle of the network always attends.
        heads: attention heads.
        hidden_ratio: width between the two convolutions of a block in units of the block's, rounded up to a
            multiple of 16 (of the largest divisor of 16 that divides the block's width); one number, or one per
            level, fine to coarse.
        embedding_channels: width of the conditioning vector, even; None: ``2 * channels``.
        dropout: probability of zeroing an activation before the last convolution of a block.
        time_conditioning: False makes the network ignore ``c_noise``.

    Raises:
        ValueError: if the event shape does not divide by the downsampling factor (naming the nearest sizes
            allowed), or another argument is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 32,
        multipliers: tuple[PositiveInt, ...] = (1, 2, 2),
        blocks: PositiveInt = 2,
        attention_resolutions: tuple[PositiveInt, ...] = (16,),
        heads: PositiveInt = 1,
        hidden_ratio: PositiveFloat | tuple[PositiveFloat, ...] = 1.0,
        embedding_channels: PositiveInt | None = None,
        dropout: ProbabilityBelowOne = 0.0,
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        ratios = (
            [hidden_ratio] * len(multipliers) if isinstance(hidden_ratio, (int, float)) else [*hidden_ratio]
        )
        if len(ratios) != len(multipliers):
            raise ValueError(
                f"hidden_ratio has {len(ratios)} values for {len(multipliers)} levels: give one number, or one per level"
            )
        if not multipliers:
            raise ValueError("multipliers is empty: give at least one, for the finest level")
        self.downsampling_factor = 2 ** (len(multipliers) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)

        image_channels = event_shape[0]
        embedding = 2 * channels if embedding_channels is None else embedding_channels
        widths = [channels * multiplier for multiplier in multipliers]
        hidden = [
            _rounded_up(ratio * width, math.gcd(width, GROUP_SIZE)) for ratio, width in zip(ratios, widths)
        ]

        def block(level: int, attends: bool) -> nn.Module:
            residual = ResidualBlock(widths[level], hidden[level], dropout)
            return AttentionBlock(residual, SelfAttention(widths[level], heads)) if attends else residual

        def blocks_of(level: int) -> list[nn.Module]:
            attends = event_shape[1] >> level in attention_resolutions
            return [block(level, attends and i == blocks - 1) for i in range(blocks)]

        # Modules are made and registered by kind, not by level: a seed's initial weights, the keys of checkpoints
        # and the optimiser's order of parameters depend on it.
        fine_to_coarse = range(len(widths))
        self.stem = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        down = [blocks_of(level) for level in fine_to_coarse]
        downsample = [nn.Conv2d(fine, coarse, 3, stride=2, padding=1) for fine, coarse in pairwise(widths)]
        self.down = nn.ModuleList(chain.from_iterable(down))
        self.downsample = nn.ModuleList(downsample)

        self.middle = block(fine_to_coarse[-1], True)

        up = [blocks_of(level) for level in reversed(fine_to_coarse)]
        upsample = [nn.Conv2d(coarse, fine, 3, padding=1) for coarse, fine in pairwise(widths[::-1])]
        merges = [[nn.Conv2d(width, width, 1) for _ in range(blocks)] for width in widths[::-1]]
        self.up = nn.ModuleList(chain.from_iterable(up))
        self.upsample = nn.ModuleList(upsample)
        self.merge = nn.ModuleList(chain.from_iterable(merges))
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = start_at_zero(nn.Conv2d(widths[0], image_channels, 3, padding=1))

        self.conditioning = Conditioning(embedding, time_conditioning, num_classes)
        # one linear layer for all blocks, in the order in which they run; the bias is that of each one's first convolution
        one_way = [width for width in hidden for _ in range(blocks)]
        self.hidden = [*one_way, hidden[-1], *one_way[::-1]]
        self.shifts = (
            None if self.conditioning.is_empty else nn.Linear(embedding, sum(self.hidden), bias=False)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def way_down(self) -> list[DownLevel]:
        """The levels, read from the registered modules: one that was replaced (quantised, adapted) is the one that runs."""
        levels = len(self.downsample) + 1
        return [
            DownLevel(*parts)
            for parts in zip(last_levels(self.downsample, levels), by_level(self.down, levels))
        ]

    @property
    def way_up(self) -> list[UpLevel]:
        """As ``way_down``, from the lowest resolution."""
        levels = len(self.upsample) + 1
        kinds = last_levels(self.upsample, levels), by_level(self.merge, levels), by_level(self.up, levels)
        return [UpLevel(*parts) for parts in zip(*kinds)]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Args:
            x: ``[B, C, H, W]``, the preconditioned input, of about unit variance.
            c_noise: ``[B]``, log(sigma / alpha) / 4, in about -2.5..1.5.
            cond: ``[B]`` class labels (long) in 0..num_classes, or None for the null label.

        Raises:
            ValueError: if H or W does not divide by the downsampling factor, or labels are given to a
                network without classes.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        embedding = self.conditioning(c_noise, cond)
        shifts: Iterator[Tensor | None] = (
            repeat(None) if self.shifts is None else iter(self.shifts(embedding).split(self.hidden, dim=1))
        )
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for down in self.way_down:
            if down.downsample is not None:
                h = down.downsample(h)
            for block in down.blocks:
                h = block(h, next(shifts))
                skips.append(h)
        h = self.middle(h, next(shifts))
        for up in self.way_up:
            if up.upsample is not None:
                h = up.upsample(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            for merge, block in zip(up.merges, up.blocks):
                h = block(merge(skips.pop()).add_(h), next(shifts))
        return self.conv_out(F.silu(self.norm_out(h)))


def _rounded_up(width: float, unit: int) -> int:
    return math.ceil(width / unit) * unit
