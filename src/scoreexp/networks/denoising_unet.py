"""A U-Net without normalisation for images of any size, gray or colour: fast on CPUs, for denoising."""

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import NoiseFeatures, check_image_shape, start_at_zero

_EMBEDDING = 32


class DenoisingUNet(nn.Module):
    r"""Residual blocks at 1/2, 1/4, 1/8, ... of the resolution, with the noise level as a gain and as a plane.

    The image enters as its 2 x 2 blocks (space to depth), so that no layer works at full resolution. A block is

    .. math:: h \leftarrow h + W_2\, \mathrm{relu}\bigl((1 + g(c_{noise}))\, W_1 h\bigr)

    with 3 x 3 convolutions and one gain per channel, whose branch starts small. There is no normalisation: statistics
    of a tile are those of the tile, so a picture may be cut into tiles of any size. Images of one channel go
    through a network for three as three equal channels, of whose output the mean is taken.

    References: K. Zhang, W. Zuo, L. Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising",
    2018, https://arxiv.org/abs/1710.04026 (2 x 2 blocks, plane of the noise level); B. Lim et al., "Enhanced Deep Residual
    Networks for Single Image Super-Resolution", 2017, https://arxiv.org/abs/1707.02921 (blocks without normalisation);
    K. Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", 2021,
    https://arxiv.org/abs/2008.13751 (the U-Net of such blocks).

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.DenoisingUNet(event_shape=(3, 16, 16), widths=(16, 32), blocks=1)
    >>> network(torch.zeros(1, 3, 8, 12), torch.zeros(1)).shape, network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape
    (torch.Size([1, 3, 8, 12]), torch.Size([1, 1, 8, 8]))

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``2 ** len(widths)``.
        num_classes: not used.
        widths: channels at 1/2, 1/4, 1/8, ... of the resolution.
        blocks: residual blocks on the way down, and on the way up, of each level but the last, which has twice as many.

    Raises:
        ValueError: if H or W is not divisible, or a width or the number of blocks is not positive.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: Annotated[tuple[PositiveInt, ...], "such as 48, 64, 96"] = (48, 64, 96),
        blocks: PositiveInt = 2,
    ) -> None:
        super().__init__()
        self.downsampling_factor = 2 ** len(widths)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        self.channels = event_shape[0]
        pairs = list(pairwise(widths))
        self.embedding = nn.Sequential(
            NoiseFeatures(_EMBEDDING), nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU()
        )
        self.stem = nn.Conv2d(4 * self.channels + 1, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(_stage(width, blocks) for width in widths[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.middle = _stage(widths[-1], 2 * blocks)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(_stage(width, blocks) for width in widths[:-1])
        self.head = start_at_zero(nn.Conv2d(widths[0], 4 * self.channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``, or ``[B, 1, H, W]`` through three channels; ``cond`` is not used.

        Raises:
            ValueError: if H or W is not divisible by the downsampling factor, or the channels are neither one nor those
                of the network.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        if x.shape[1] == 1 < self.channels:
            return self(x.expand(-1, self.channels, -1, -1), c_noise).mean(1, keepdim=True)
        if x.shape[1] != self.channels:
            raise ValueError(
                f"images of {x.shape[1]} channels for a network of {self.channels}: give images of {self.channels}, or "
                "restore each channel by itself"
            )
        e = self.embedding(c_noise)
        h = F.pixel_unshuffle(x, 2)
        plane = c_noise[:, None, None, None].to(h.dtype).expand(-1, 1, *h.shape[2:])
        h = self.stem(torch.cat([h, plane], 1).contiguous(memory_format=torch.channels_last))
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            for block in encoder:  # type: ignore[attr-defined]
                h = block(h, e)
            skips.append(h)
            h = down(h)
        for block in self.middle:
            h = block(h, e)
        for decoder, up in reversed(list(zip(self.decoders, self.ups, strict=True))):
            h = up(h) + skips.pop()
            for block in decoder:  # type: ignore[attr-defined]
                h = block(h, e)
        return F.pixel_shuffle(self.head(h), 2)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.gain = start_at_zero(nn.Linear(_EMBEDDING, width))
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for layer, scale in ((self.first, 1.0), (self.second, 0.2)):
            start_at_zero(layer)
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= scale

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = self.first(h) * (1 + self.gain(e))[:, :, None, None]
        return h + self.second(F.relu(inner))


def _stage(width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(_Block(width) for _ in range(blocks))
