"""Blind-spot networks: a pixel of the output that does not depend on the same pixel of the input."""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pixel_shuffle, pixel_unshuffle

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import check_image_shape


def to_lattices(x: Tensor, stride: int) -> Tensor:
    """Pixel-shuffle down-sampling: the ``stride^2`` lattices of ``x[B, C, H, W]``, ``[B stride^2, C, H/stride, W/stride]``.

    >>> to_lattices(torch.arange(4.0).reshape(1, 1, 2, 2), 2).flatten()
    tensor([0., 1., 2., 3.])
    """
    return pixel_unshuffle(x, stride).unflatten(1, (-1, stride**2)).transpose(1, 2).flatten(0, 1)


def from_lattices(x: Tensor, stride: int) -> Tensor:
    """The inverse of ``to_lattices``."""
    return pixel_shuffle(x.unflatten(0, (-1, stride**2)).transpose(1, 2).flatten(1, 2), stride)


class CentreMasked(nn.Conv2d):
    """A convolution whose kernel has a hole in its centre, while ``blind``."""

    def forward(self, x: Tensor, blind: bool = True) -> Tensor:
        weight = self.weight
        if blind:
            seen = torch.ones_like(weight[:1, :1])
            seen[..., weight.shape[-2] // 2, weight.shape[-1] // 2] = 0
            weight = weight * seen
        return conv2d(x, weight, self.bias, padding=self.padding)


class Dilated(nn.Module):
    """A residual block of a 3 x 3 convolution with holes and a 1 x 1 convolution."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(torch.relu(self.spread(x)))


class BlindSpot(nn.Module):
    r"""Two branches, each a convolution with a hole and then dilated ones that cannot fill it again.

    After a kernel of side ``2 d - 1`` without its centre, dilations of ``d`` add multiples of ``d`` to offsets of less than
    ``d`` that are not 0, so that no path leads from a pixel to itself (``d = 2, 3``). Borders are zero: mirrored ones would
    show a pixel to itself.

    ``blind`` is that function. What the network is as a denoiser, its ``forward``, is either

    - ``centre=False``: ``blind`` of each of the ``stride^2`` lattices of the image (pixel-shuffle down-sampling), whose
      pixels are so far apart that the noise is independent; for ``objectives.SDAP``; or
    - ``centre=True``: the same weights with the centres of the kernels, at full resolution; for
      ``objectives.DownsampledInvariance``.

    The preconditioning must not add the input to the output: ``precond=x0``. The noise level is not used.

    References:
        Y. Pan, X. Liu, X. Liao, Y. Cao, C. Ren, "Random Sub-Samples Generation for Self-Supervised Real Image Denoising",
        2023, https://arxiv.org/abs/2307.16825;
        Y. Jang, K. Lee, G. Park, S. Kim, N. I. Cho, "Self-supervised Image Denoising with Downsampled Invariance Loss and
        Conditional Blind-Spot Network", 2023, https://arxiv.org/abs/2304.09507.

    >>> network = BlindSpot(event_shape=(1, 8, 8), channels=8, blocks=1)
    >>> x = torch.zeros(1, 1, 8, 8, requires_grad=True)
    >>> network.blind(x)[0, 0, 3, 4].backward()
    >>> x.grad[0, 0, 3, 4], bool(x.grad[0, 0, 3, 3] != 0)
    (tensor(0.), True)

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: not used.
        channels: of the hidden layers (128 in the papers).
        blocks: dilated blocks of each branch (9 in the papers).
        stride: of the lattices; 1 takes the image as it is.
        centre: whether the denoiser sees the pixel itself.

    Raises:
        ValueError: the event shape is not that of an image with sides divisible by ``stride``, or there are lattices and a
            centre.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 48,
        blocks: PositiveInt = 3,
        stride: PositiveInt = 2,
        centre: bool = False,
    ) -> None:
        super().__init__()
        if centre and stride > 1:
            raise ValueError(f"stride={stride}: a network that sees the centre sees all pixels, set stride=1")
        self.downsampling_factor, self.centre = stride, centre
        check_image_shape(tuple(event_shape), stride)
        self.enter = nn.Conv2d(event_shape[0], channels, 1)
        self.holes = nn.ModuleList(CentreMasked(channels, channels, 2 * d - 1, padding=d - 1) for d in (2, 3))
        self.branches = nn.ModuleList(
            nn.Sequential(
                *[Dilated(channels, d) for _ in range(blocks)], nn.Conv2d(channels, channels, 1), nn.ReLU()
            )
            for d in (2, 3)
        )
        self.leave = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, event_shape[0], 1),
        )

    def blind(self, x: Tensor, c_noise: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``, of which no pixel depends on the same one of ``x``; any H and W."""
        return self._through(x, blind=True)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The denoiser, see above; ``c_noise`` and ``cond`` are not used."""
        if self.centre:
            return self._through(x, blind=False)
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        return from_lattices(self.blind(to_lattices(x, self.downsampling_factor)), self.downsampling_factor)

    def _through(self, x: Tensor, blind: bool) -> Tensor:
        x = torch.relu(self.enter(x))
        parts = [
            branch(torch.relu(hole(x, blind))) for hole, branch in zip(self.holes, self.branches, strict=True)
        ]
        return self.leave(torch.cat(parts, 1))
