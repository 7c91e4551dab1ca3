"""A 3-D U-Net for cubes of bands and for volumes: small, without normalisation."""

from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import NoiseFeatures, check_image_shape, start_at_zero

_EMBEDDING = 32


class UNet3D(nn.Module):
    r"""Residual blocks of 3 x 3 x 3 convolutions over bands, rows and columns of a cube ``[D, H, W]``.

    The bands are an axis of the convolutions, not channels: the network learns how neighbouring bands go together and takes
    cubes of any number of them. Rows and columns enter as 2 x 2 blocks and are halved between levels; the bands keep their
    resolution. A block is

    .. math:: h \leftarrow h + W_2\, \mathrm{relu}\bigl((1 + g(c_{noise}))\, W_1 h\bigr)

    and ``factorised`` makes each convolution one of 1 x 3 x 3 and one of 3 x 1 x 1 after it, with 12 in place of 27 weights
    for each pair of channels. There is no normalisation, whose statistics would be those of a tile.

    References: I. Vyse, R. Dagli et al., "Beyond the Visible: Jointly Attending to Spectral and Spatial Dimensions with
    HSI-Diffusion for the FINCH Spacecraft", 2024, https://arxiv.org/abs/2406.10724 (diffusion over bands, rows and
    columns together; theirs is latent); Ö. Çiçek et al., "3D U-Net: Learning Dense Volumetric Segmentation from Sparse
    Annotation", 2016, https://arxiv.org/abs/1606.06650; D. Tran et al., "A Closer Look at Spatiotemporal Convolutions
    for Action Recognition", 2018, https://arxiv.org/abs/1711.11248 (factorised convolutions).

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.UNet3D(event_shape=(5, 8, 8), widths=(8, 16), blocks=1)
    >>> network(torch.zeros(2, 7, 8, 12), torch.zeros(2)).shape
    torch.Size([2, 7, 8, 12])

    Args:
        event_shape: (D, H, W) of one cube, D at least 2; H and W divisible by ``2 ** len(widths)``.
        num_classes: not used.
        widths: channels at 1/2, 1/4, ... of the resolution.
        blocks: residual blocks on the way down, and on the way up, of each level but the last, which has twice as many.
        factorised: convolutions of 1 x 3 x 3 and 3 x 1 x 1 in place of 3 x 3 x 3.

    Raises:
        ValueError: the cube has one band, H or W is not divisible, or a number is not positive.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: Annotated[tuple[PositiveInt, ...], "such as 16, 32"] = (16, 32),
        blocks: PositiveInt = 1,
        factorised: bool = False,
    ) -> None:
        super().__init__()
        self.downsampling_factor = 2 ** len(widths)
        self._check(tuple(event_shape))
        pairs = list(pairwise(widths))
        self.embedding = nn.Sequential(
            NoiseFeatures(_EMBEDDING), nn.Linear(_EMBEDDING, _EMBEDDING), nn.SiLU()
        )
        self.stem = nn.Conv3d(5, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(_stage(width, blocks, factorised) for width in widths[:-1])
        self.downs = nn.ModuleList(
            nn.Conv3d(fine, coarse, (1, 2, 2), stride=(1, 2, 2)) for fine, coarse in pairs
        )
        self.middle = _stage(widths[-1], 2 * blocks, factorised)
        self.ups = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, (1, 2, 2), stride=(1, 2, 2)) for fine, coarse in pairs
        )
        self.decoders = nn.ModuleList(_stage(width, blocks, factorised) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], 4, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, D, H, W]`` -> ``[B, D, H, W]``, D >= 2; ``cond`` is not used.

        Raises:
            ValueError: the cubes have one band, or H or W is not divisible by the downsampling factor.
        """
        self._check(tuple(x.shape[1:]))
        e = self.embedding(c_noise)
        h = F.pixel_unshuffle(x[:, :, None], 2).transpose(1, 2)  # [B, 4, D, H/2, W/2]
        plane = c_noise[:, None, None, None, None].to(h.dtype).expand(-1, 1, *h.shape[2:])
        h = self.stem(torch.cat([h, plane], 1))
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
        return F.pixel_shuffle(self.head(h).transpose(1, 2), 2)[:, :, 0]

    def _check(self, shape: tuple[int, ...]) -> None:
        check_image_shape(shape, self.downsampling_factor)
        if shape[0] < 2:
            raise ValueError(
                f"the cube has {shape[0]} band, and unet3d convolves over bands: take network=denoising_unet for images"
            )


class _Block(nn.Module):
    def __init__(self, width: int, factorised: bool) -> None:
        super().__init__()
        self.first, self.second = (_convolution(width, factorised, scale) for scale in (1.0, 0.2))
        self.gain = start_at_zero(nn.Linear(_EMBEDDING, width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = self.first(h) * (1 + self.gain(e))[:, :, None, None, None]
        return h + self.second(F.relu(inner))


def _convolution(width: int, factorised: bool, scale: float) -> nn.Sequential:
    """Starts with the gain that keeps the variance through a ReLU, times ``scale``."""
    sides = ((1, 3, 3), (3, 1, 1)) if factorised else ((3, 3, 3),)
    layers = []
    for number, side in enumerate(sides):
        layer = nn.Conv3d(width, width, side, padding=(side[0] // 2, side[1] // 2, side[2] // 2))
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if number else "relu")
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        layers.append(layer)
    layers[-1].weight.data *= scale
    return nn.Sequential(*layers)


def _stage(width: int, blocks: int, factorised: bool) -> nn.ModuleList:
    return nn.ModuleList(_Block(width, factorised) for _ in range(blocks))
