"""A lean residual U-Net F(x, c_noise, cond): made to learn much in few seconds, on CPU above all."""

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, NonNegativeInt, PositiveInt
from scoreexp.networks.layers import Conditioning, check_image_shape, start_at_zero


class ModulatedBlock(nn.Module):
    """x + gate conv(silu(conv(norm(x)) + shift)): one normalisation, over the channels of each pixel, without weights.

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        """``x[B, C, H, W]``, ``shift[B, C]``, ``gate[B, C]`` -> ``[B, C, H, W]``."""
        # channels_last is a matrix of pixels by channels: torch's fused norm of rows
        h = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)
        h = F.silu(self.conv1(h).add_(shift[:, :, None, None]))
        return torch.addcmul(x, self.conv2(h), gate[:, :, None, None])


class ModulatedUNet(nn.Module):
    """U-Net whose blocks are modulated by the noise level: a shift inside, and a gate that starts small, not at zero.

    Each block normalises once (``ModulatedBlock``), and its last convolution learns from the first step, since its gate is
    not 0. One skip connection per level joins the stream at each of its pixels: ``W_s s + up(W_h h)`` is the 1x1
    convolution of the concatenation ``(s, up(h))``, computed where there are fewest pixels. Convolutions that change the
    resolution start near the mean of a 2x2 square and near nearest-neighbour upsampling, skips near the identity, and the
    last convolution at 0.

    The last convolution gives for each pixel a summand b and one gain for each of some frequency bands of the input,
    ``F = b + sum_i m_i * band_i(x)``. Where an image is smooth, its denoiser shrinks fine bands, and at edges it keeps
    them: a product, which convolutions and SiLU learn slowly.

    References: W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers", 2023, https://arxiv.org/abs/2212.09748
    (modulation with a gate); M. Wainwright, E. Simoncelli, "Scale Mixtures of Gaussians and the Statistics of Natural
    Images", 1999 (why local gains); J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239 (the U-Net).

    >>> network = ModulatedUNet(event_shape=(3, 8, 8), num_classes=10, widths=(16, 32), blocks=(1, 2), bands=2)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 ** (len(widths) - 1)``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for,
            is the null label of the unconditional model. None: no class embedding.
        widths: channels of each level, fine to coarse; multiples of 16 are fastest.
        blocks: residual blocks of each level, on the way down and again on the way up.
        embedding_channels: width of the conditioning vector, even.
        gate: of each block at first.
        bands: frequency bands of the input that the output weighs, at most one per level; 0 for an output that is a sum
            alone.

    Raises:
        ValueError: if the event shape does not divide by the downsampling factor (naming the nearest sizes allowed),
            ``blocks`` and ``widths`` differ in length or are empty, or another argument is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (16, 32, 64, 96),
        blocks: tuple[PositiveInt, ...] = (1, 2, 2, 1),
        embedding_channels: PositiveInt = 64,
        gate: Annotated[FinitePositiveFloat, "0.1 to 0.3"] = 0.1,
        bands: NonNegativeInt = 3,
    ) -> None:
        super().__init__()
        if not widths or len(blocks) != len(widths):
            raise ValueError(
                f"blocks has {len(blocks)} values for the {len(widths)} levels of widths: give one per level, and at "
                "least one level"
            )
        if bands > len(widths):
            raise ValueError(f"bands={bands} for {len(widths)} levels: give at most one per level of widths")
        self.downsampling_factor = 2 ** (len(widths) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        self.levels, self.bands = tuple(blocks), bands
        way_down = [width for width, n in zip(widths, blocks) for _ in range(n)]
        self.channels = [*way_down, *way_down[::-1]]

        self.stem = nn.Conv2d(event_shape[0], widths[0], 3, padding=1)
        self.down = nn.ModuleList(ModulatedBlock(width) for width in way_down)
        self.up = nn.ModuleList(ModulatedBlock(width) for width in way_down[::-1])
        self.downsample = nn.ModuleList(_near_mean(fine, coarse) for fine, coarse in pairwise(widths))
        self.upsample = nn.ModuleList(_near_identity(coarse, fine) for fine, coarse in pairwise(widths))
        self.skip = nn.ModuleList(_near_identity(width, width) for width in widths[:-1])
        self.conv_out = start_at_zero(nn.Conv2d(widths[0], (1 + bands) * event_shape[0], 3, padding=1))

        self.conditioning = Conditioning(embedding_channels, True, num_classes)
        self.modulation = nn.Linear(embedding_channels, 2 * sum(self.channels))
        with torch.no_grad():
            for bias, start in zip(self.modulation.bias.chunk(2), (0.0, gate)):
                bias.fill_(start)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

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
        shifts, gates = self.modulation(self.conditioning(c_noise, cond)).chunk(2, dim=1)
        modulations = zip(shifts.split(self.channels, dim=1), gates.split(self.channels, dim=1))
        down, up = iter(self.down), iter(self.up)
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for level, blocks in enumerate(self.levels):
            if level:
                skips.append(h)
                h = self.downsample[level - 1](h)
            for _ in range(blocks):
                h = next(down)(h, *next(modulations))
        for level in reversed(range(len(self.levels))):
            if skips and level < len(self.levels) - 1:
                h = F.interpolate(self.upsample[level](h), scale_factor=2.0, mode="nearest")
                h = self.skip[level](skips.pop()).add_(h)
            for _ in range(self.levels[level]):
                h = next(up)(h, *next(modulations))
        found, *gains = self.conv_out(h).chunk(1 + self.bands, dim=1)
        for gain, band in zip(gains, bands_of(x, self.bands)):
            found = torch.addcmul(found, gain, band.to(found.dtype))
        return found


def bands_of(x: Tensor, bands: int) -> list[Tensor]:
    """A Laplacian pyramid at full size: differences of ever coarser means, and the coarsest; their sum is x.

    Reference: P. Burt, E. Adelson, "The Laplacian Pyramid as a Compact Image Code", 1983,
    https://doi.org/10.1109/TCOM.1983.1095851.

    >>> x = torch.arange(16.0).view(1, 1, 4, 4)
    >>> torch.allclose(sum(bands_of(x, 2)), x)
    True

    Args:
        x: ``[B, C, H, W]``, H and W divisible by ``2 ** (bands - 1)``.
        bands: their number; none for 0.
    """
    sizes = [2**i for i in range(1, bands)]
    means = [F.interpolate(F.avg_pool2d(x, n), scale_factor=float(n), mode="bilinear") for n in sizes]
    smooth = [x, *means][:bands]
    return [fine - coarse for fine, coarse in pairwise(smooth)] + smooth[-1:]


@torch.no_grad()
def _near_mean(fine: int, coarse: int) -> nn.Conv2d:
    """A random 2x2 convolution of stride 2 plus the means of 2x2 squares, channel i to i, i + fine, ..."""
    conv = nn.Conv2d(fine, coarse, 2, stride=2)
    for i in range(coarse):
        conv.weight[i, i % fine] += 0.25
    return conv


@torch.no_grad()
def _near_identity(given: int, made: int) -> nn.Conv2d:
    """A random 1x1 convolution plus the map of channels i, i + made, ... to their mean i."""
    conv = nn.Conv2d(given, made, 1)
    for i in range(given):
        conv.weight[i % made, i] += made / given
    return conv
