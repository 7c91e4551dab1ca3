"""NCSN++ and DDPM++, the U-Nets of score-based modelling through stochastic differential equations.

Both are one network with other options. Beside the U-Net of Ho et al. (2020) it has: residual blocks that
resample inside themselves (BigGAN), every sum of two branches divided by sqrt(2) so that the variance stays
that of its terms, more blocks per level, attention after every block of a level that attends, and, for
NCSN++, resampling through a low-pass filter (FIR), Gaussian Fourier features of the noise level, and a
pyramid of the shrunk input that enters at every level, with for large images a pyramid of outputs too.

Two parts of the published networks belong to the preconditioning here. The division of the output by sigma is
``c_out`` of ``ScorePrediction``. The input is ``c_in x_t``, of unit variance, where the published NCSN++ sees
``x_t`` itself, whose standard deviation reaches ``sigma_max``. The published DDPM++ embeds 999 t; here, where
networks know the noise level and not the time, its positional features are those of ``c_noise``.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt, ProbabilityBelowOne
from scoreexp.networks.layers import (
    Conditioning,
    GroupNorm,
    NoiseFeatures,
    SelfAttention,
    by_level,
    check_image_shape,
    last_levels,
    start_at_zero,
)

MEAN_VARIANCE = 1 / math.sqrt(2)
"""Scale of a sum of two independent terms at which its variance is the mean of theirs."""


class FIRFilter(nn.Module):
    """The separable low-pass filter (1, 3, 3, 1) / 8, on each channel by itself; zeros lie outside the image.

    Reference: "Making Convolutional Networks Shift-Invariant Again", Zhang, 2019,
        https://arxiv.org/abs/1904.11486.

    Args:
        stride: distance between the pixels of the result.
        padding: rows and columns of zeros put around the image; stride 2 and padding 1 halve its size.
    """

    kernel: Tensor

    def __init__(self, stride: int, padding: int) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(taps, taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernel.expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernels, stride=self.stride, padding=self.padding, groups=x.shape[1])


class FIRUpsample(FIRFilter):
    """Twice the size: zeros put between the pixels, then ``FIRFilter`` times 4, which keeps constants."""

    def __init__(self) -> None:
        super().__init__(stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kernels = 4 * self.kernel.expand(x.shape[1], 1, 4, 4)
        return F.conv_transpose2d(x, kernels, stride=self.stride, padding=self.padding, groups=x.shape[1])


class FineGroupNorm(GroupNorm):
    """Group normalisation in the published groups: 32 of them, or groups of 4 channels if those are fewer."""

    def __init__(self, channels: int) -> None:
        groups = math.gcd(channels, max(1, min(channels // 4, 32)))
        nn.GroupNorm.__init__(self, groups, channels, eps=1e-6)


class GaussianFourierFeatures(nn.Module):
    """cos(2 pi w_k l), sin(2 pi w_k l) of l = log(sigma / alpha) = 4 ``c_noise``, with w_k ~ N(0, scale^2), fixed.

    Reference: "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains",
        Tancik et al., 2020, https://arxiv.org/abs/2006.10739.

    Args:
        features: number of features, even.
        scale: standard deviation of the frequencies, in periods per unit of l.
    """

    frequencies: Tensor

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(features // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        """``c_noise[B]`` -> ``[B, features]``."""
        phase = 8 * math.pi * c_noise[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class FeatureConditioning(Conditioning):
    """The conditioning vector silu(MLP(``features``) + class embedding).

    Args:
        features: maps ``c_noise[B]`` to ``[B, number]``.
        number: number of features.
        channels: width of the vector.
        num_classes: as of ``Conditioning``.
    """

    def __init__(self, features: nn.Module, number: int, channels: int, num_classes: int | None) -> None:
        super().__init__(channels, time_conditioning=False, num_classes=num_classes)
        self.noise_embedding = nn.Sequential(
            features, nn.Linear(number, channels), nn.SiLU(), nn.Linear(channels, channels)
        )


class Attention(SelfAttention):
    """Self-attention with the published normalisation and its sum divided by sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = FineGroupNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return MEAN_VARIANCE * super().forward(x)


class ResidualBlock(nn.Module):
    """(W r(x) + conv(dropout(silu(norm(conv(r(silu(norm(x)))) + shift))))) / sqrt(2), then attention if asked.

    r is ``resample``; W is a 1x1 convolution, left out where r is the identity and the widths agree. The last
    convolution starts at zero.

    Reference: "Large Scale GAN Training for High Fidelity Natural Image Synthesis", Brock, Donahue, Simonyan,
        2018, https://arxiv.org/abs/1809.11096.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        embedding_channels: width of the conditioning vector.
        dropout: probability of zeroing an activation before the last convolution.
        resample: changes the resolution, or None.
        attends: follow the block by self-attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        *,
        resample: nn.Module | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.resample = nn.Identity() if resample is None else resample
        self.norm1 = FineGroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shift = nn.Linear(embedding_channels, out_channels)
        self.norm2 = FineGroupNorm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        keeps = resample is None and in_channels == out_channels
        self.shortcut = nn.Identity() if keeps else nn.Conv2d(in_channels, out_channels, 1)
        self.attention = Attention(out_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        h = h + self.shift(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.attention(MEAN_VARIANCE * (self.shortcut(self.resample(x)) + h))


class InputSkip(nn.Module):
    """Progressive input: the image, shrunk once more, enters by a 1x1 convolution."""

    def __init__(self, image_channels: int, channels: int, shrink: nn.Module) -> None:
        super().__init__()
        self.shrink = shrink
        self.conv = nn.Conv2d(image_channels, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and pyramid (twice their size) -> both at the size of the activations."""
        pyramid = self.shrink(pyramid)
        return h + self.conv(pyramid), pyramid


class InputResidual(nn.Module):
    """Progressive input: the pyramid is itself a residual stream, shrunk by a convolution of stride 2.

    Args:
        in_channels: width of the pyramid on entry.
        channels: width of the activations, and of the pyramid from here on.
        fir: filter before the convolution.
    """

    def __init__(self, in_channels: int, channels: int, fir: bool) -> None:
        super().__init__()
        self.filter = FIRFilter(stride=1, padding=2) if fir else nn.Identity()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=0 if fir else 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and pyramid (twice their size) -> both at the size of the activations."""
        h = MEAN_VARIANCE * (h + self.conv(self.filter(pyramid)))
        return h, h


class Readout(nn.Module):
    """conv(silu(norm(h))): an image from activations, zero at the start."""

    def __init__(self, channels: int, image_channels: int) -> None:
        super().__init__()
        self.norm = FineGroupNorm(channels)
        self.conv = nn.Conv2d(channels, image_channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


def initialise(module: nn.Module) -> None:
    """The published start: weights uniform of variance 2 / (fan in + fan out), biases zero, branches and outputs zero.

    Queries, keys and values start at a tenth of that variance. To be applied to children before parents.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        for weight in module.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight, gain=math.sqrt(0.1))
        start_at_zero(module.out)
    elif isinstance(module, ResidualBlock):
        start_at_zero(module.conv2)
    elif isinstance(module, Readout):
        start_at_zero(module.conv)


class DownLevel(NamedTuple):
    """One resolution on the way down: the stream shrinks, the pyramid joins it, and it passes the blocks.

    A skip is left where the stream enters the first block and behind every block.
    """

    downsample: nn.Module | None  # a ResidualBlock, as all blocks; None at full resolution
    joint: (
        nn.Module | None
    )  # an InputSkip or InputResidual; None at full resolution, and without progressive input
    blocks: list[nn.Module]


class UpLevel(NamedTuple):
    """One resolution on the way up: the stream grows, and every block takes one skip of this resolution with it."""

    upsample: nn.Module | None  # None at the lowest resolution
    blocks: list[nn.Module]
    readout: nn.Module | None  # a Readout, its part of the output; None where only finer levels have one


class NCSNpp(nn.Module):
    """NCSN++ (``embedding: fourier``, ``fir``, progressive) and DDPM++ (``positional``, neither), continuous.

    Reference: "Score-Based Generative Modeling through Stochastic Differential Equations", Song et al., 2021,
        https://arxiv.org/abs/2011.13456, appendix H.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.NCSNpp(event_shape=(3, 8, 8), channels=16, multipliers=(1, 2), blocks=1)
    >>> network(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape, network.downsampling_factor
    (torch.Size([1, 3, 8, 8]), 2)

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 **
            (len(multipliers) - 1)``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for,
            is the null label of the unconditional model. None, as published: no class embedding.
        channels: width at full resolution; the conditioning vector is four times as wide.
        multipliers: width of each level in units of ``channels``; each level has half the resolution of the
            one before.
        blocks: residual blocks per level on the way down; there is one more on the way up.
        attention_resolutions: heights in pixels of the levels that attend, for images of ``event_shape``:
            after every block on the way down and after the last on the way up. Heights that no level has
            count for nothing, and the middle of the network always attends.
        dropout: probability of zeroing an activation before the last convolution of a block.
        embedding: features of the noise level: ``fourier`` (Gaussian frequencies) or ``positional``
            (geometric ones).
        fourier_scale: standard deviation of the Gaussian frequencies, in periods per unit of log(sigma / alpha).
        fir: resample through the filter (1, 3, 3, 1); False: mean of 2 x 2 pixels down, nearest neighbour up.
        progressive_input: how the shrunk input enters each level: ``none``, ``input_skip`` (by a 1x1
            convolution) or ``residual`` (by a residual stream of its own).
        progressive_output: ``none``: the finest level makes the output. ``output_skip``: every level adds to it.
        gradient_checkpointing: compute every block again in the backward pass instead of keeping its
            activations: a third more time for far less memory.

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
        channels: PositiveInt = 128,
        multipliers: tuple[PositiveInt, ...] = (1, 2, 2, 2),
        blocks: PositiveInt = 4,
        attention_resolutions: tuple[PositiveInt, ...] = (16,),
        dropout: ProbabilityBelowOne = 0.0,
        embedding: Literal["fourier", "positional"] = "fourier",
        fourier_scale: PositiveFloat = 16.0,
        fir: bool = True,
        progressive_input: Literal["none", "input_skip", "residual"] = "residual",
        progressive_output: Literal["none", "output_skip"] = "none",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ValueError("multipliers is empty: give at least one, for the finest level")
        self.downsampling_factor = 2 ** (len(multipliers) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)

        image_channels = event_shape[0]
        widths = [channels * multiplier for multiplier in multipliers]
        lowest = len(widths) - 1
        shrink = FIRFilter(stride=2, padding=1) if fir else nn.AvgPool2d(2)
        grow = FIRUpsample() if fir else nn.Upsample(scale_factor=2.0, mode="nearest")
        block = partial(ResidualBlock, embedding_channels=4 * channels, dropout=dropout)

        def attends(level: int) -> bool:
            return event_shape[1] >> level in attention_resolutions

        def joint(level: int) -> InputSkip | InputResidual | None:
            if progressive_input == "input_skip":
                return InputSkip(image_channels, widths[level - 1], shrink)
            if progressive_input == "residual":
                pyramid = image_channels if level == 1 else widths[level - 2]
                return InputResidual(pyramid, widths[level - 1], fir)
            return None

        def down_level(level: int) -> DownLevel:
            # until the first block, the stream and the pyramid that joins it have the width of the finer level
            entry, width = widths[max(level - 1, 0)], widths[level]
            return DownLevel(
                block(entry, entry, resample=shrink) if level > 0 else None,
                joint(level) if level > 0 else None,
                [block(w, width, attends=attends(level)) for w in [entry] + [width] * (blocks - 1)],
            )

        def up_level(level: int) -> UpLevel:
            entry, width = widths[min(level + 1, lowest)], widths[level]
            streams = [entry] + [width] * blocks
            skips = [width] * blocks + [widths[max(level - 1, 0)]]
            attending = [False] * blocks + [attends(level)]
            return UpLevel(
                block(entry, entry, resample=grow) if level < lowest else None,
                [block(h + s, width, attends=a) for h, s, a in zip(streams, skips, attending)],
                Readout(width, image_channels) if level == 0 or progressive_output == "output_skip" else None,
            )

        features: nn.Module
        if embedding == "fourier":
            features, number = GaussianFourierFeatures(2 * channels, fourier_scale), 2 * channels
        else:
            features, number = NoiseFeatures(channels), channels
        self.conditioning = FeatureConditioning(features, number, 4 * channels, num_classes)

        self.stem = nn.Conv2d(image_channels, widths[0], 3, padding=1)
        way_down = [down_level(level) for level in range(len(widths))]
        way_up = [up_level(level) for level in reversed(range(len(widths)))]

        # Registered by kind, not by level: a seed's initial weights, the keys of checkpoints and the optimiser's order
        # of parameters depend on it.
        self.down = nn.ModuleList(block for level in way_down for block in level.blocks)
        self.downsample = _present(level.downsample for level in way_down)
        self.progressive_input = _present(level.joint for level in way_down)
        self.middle = nn.ModuleList(
            [block(widths[-1], widths[-1], attends=True), block(widths[-1], widths[-1])]
        )
        self.up = nn.ModuleList(block for level in way_up for block in level.blocks)
        self.upsample = _present(level.upsample for level in way_up)
        self.grow = grow
        self.readouts = _present(level.readout for level in way_up)
        self.gradient_checkpointing = gradient_checkpointing
        self.apply(initialise)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def way_down(self) -> list[DownLevel]:
        """The levels, read from the registered modules: one that was replaced (quantised, adapted) is the one that runs."""
        levels = len(self.downsample) + 1
        singles = (last_levels(kind, levels) for kind in (self.downsample, self.progressive_input))
        return [DownLevel(*parts) for parts in zip(*singles, by_level(self.down, levels))]

    @property
    def way_up(self) -> list[UpLevel]:
        """As ``way_down``, from the lowest resolution."""
        levels = len(self.upsample) + 1
        kinds = (
            last_levels(self.upsample, levels),
            by_level(self.up, levels),
            last_levels(self.readouts, levels),
        )
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
        pyramid = x.contiguous(memory_format=torch.channels_last)
        h = self.stem(pyramid)
        skips = []
        for down in self.way_down:
            if down.downsample is not None:
                h = self._run(down.downsample, h, embedding)
            if down.joint is not None:
                h, pyramid = down.joint(h, pyramid)
            skips.append(h)
            for block in down.blocks:
                h = self._run(block, h, embedding)
                skips.append(h)
        for middle in self.middle:
            h = self._run(middle, h, embedding)
        images = []
        for up in self.way_up:
            if up.upsample is not None:
                h = self._run(up.upsample, h, embedding)
            for block in up.blocks:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), embedding)
            if up.readout is not None:
                images.append(up.readout(h))
        image = images[0]
        for part in images[1:]:
            image = self.grow(image) + part
        return image

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, use_reentrant=False)
        return block(h, embedding)


def _present(modules: Iterable[nn.Module | None]) -> nn.ModuleList:
    return nn.ModuleList(module for module in modules if module is not None)
