"""A diffusion transformer F(x, c_noise, cond) over patches of an image.

An image is cut into square patches, each of which is a token; blocks of self-attention and a perceptron follow, and every
token is put back in its place. Conditioning enters as the shift, scale and gate of each block (adaLN-Zero): gates start at
zero, so every block begins as the identity. Positions are sines and cosines of row and column, which exist for images of
any size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.networks.layers import Conditioning, attend, check_image_shape, start_at_zero

_LONGEST = 10_000.0  # ratio of the longest to the shortest wave of the positions, as in the paper


class TransformerBlock(nn.Module):
    """Self-attention over tokens and a perceptron: what the transformers share.

    Args:
        channels: of a token, divisible by ``heads``.
        heads: of the attention.
        hidden_ratio: width inside the perceptron in units of ``channels``.
    """

    def __init__(self, channels: int, heads: int, hidden_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        hidden = max(1, round(hidden_ratio * channels))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.linear1 = nn.Linear(channels, hidden)
        self.linear2 = nn.Linear(hidden, channels)

    def attention(self, h: Tensor) -> Tensor:
        """``h[B, tokens, channels]`` -> the shape of h."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(h).chunk(3, dim=2)
        )
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))

    def perceptron(self, h: Tensor) -> Tensor:
        """``h[B, tokens, channels]`` -> the shape of h."""
        return self.linear2(F.gelu(self.linear1(h), approximate="tanh"))


class DiTBlock(TransformerBlock):
    """h + g_1 attention(m_1(h)), then h + g_2 MLP(m_2(h)), with m(h) = (1 + scale) norm(h) + shift.

    Args:
        channels, heads, hidden_ratio: as for ``TransformerBlock``.
    """

    def __init__(self, channels: int, heads: int, hidden_ratio: float) -> None:
        super().__init__(channels, heads, hidden_ratio)
        self.norm1 = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.modulation = start_at_zero(nn.Linear(channels, 6 * channels))

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """``h[B, tokens, channels]``, ``embedding[B, channels]`` -> the shape of h."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=2)
        h = h + gate1 * self.attention((1 + scale1) * self.norm1(h) + shift1)
        return h + gate2 * self.perceptron((1 + scale2) * self.norm2(h) + shift2)


class DiT(nn.Module):
    """Diffusion transformer with noise-level and optional class conditioning.

    Reference: W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers", 2023, https://arxiv.org/abs/2212.09748,
    on pixels instead of the code of an autoencoder, and without the learned covariance.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.DiT(event_shape=(3, 8, 8), num_classes=10, channels=16, blocks=1, heads=2, patch=2)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``patch``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for, is the null
            label of the unconditional model. None: no class embedding.
        channels: width of a token, divisible by 4 and by ``heads``.
        blocks: number of transformer blocks.
        heads: attention heads.
        patch: side of a patch in pixels. Halving it gives four times the tokens, and sixteen times the work of attention.
        hidden_ratio: width of a block's perceptron in units of ``channels``.
        time_conditioning: False makes the network ignore ``c_noise``.

    Raises:
        ValueError: if the event shape does not divide by ``patch`` (naming the nearest sizes allowed), or another argument
            is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 128,
        blocks: PositiveInt = 6,
        heads: PositiveInt = 4,
        patch: PositiveInt = 4,
        hidden_ratio: PositiveFloat = 4.0,
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        check_channels(channels, heads)
        self.downsampling_factor = self.patch = patch
        check_image_shape(tuple(event_shape), patch)
        size = event_shape[0] * patch**2
        self.channels = channels
        self.conditioning = Conditioning(channels, time_conditioning, num_classes)
        self.stem = nn.Linear(size, channels)
        self.blocks = nn.ModuleList(DiTBlock(channels, heads, hidden_ratio) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(channels, elementwise_affine=False, eps=1e-6)
        self.modulation = start_at_zero(nn.Linear(channels, 2 * channels))
        self.head = start_at_zero(nn.Linear(channels, size))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]``, ``cond[B]`` (long labels) or None -> ``[B, C, H, W]``.

        Raises:
            ValueError: if H or W does not divide by ``patch``, or labels are given to a network without classes.
        """
        check_image_shape(tuple(x.shape[1:]), self.patch)
        rows, columns = (side // self.patch for side in x.shape[2:])
        embedding = self.conditioning(c_noise, cond)
        if embedding is None:  # nothing conditions it: the biases of the modulations alone
            embedding = x.new_zeros(x.shape[0], self.channels)
        h = self.stem(patches_of(x, self.patch))
        h = h + positions(rows, columns, self.channels).to(h)
        for block in self.blocks:
            h = block(h, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=2)
        out = self.head((1 + scale) * self.norm_out(h) + shift)
        return image_of(out, rows, columns, self.patch)


def check_channels(channels: int, heads: int) -> None:
    """Refuse a width that the heads or the sines and cosines of the positions do not divide.

    Raises:
        ValueError: names both and what to choose.
    """
    if channels % heads or channels % 4:
        raise ValueError(
            f"channels={channels} with heads={heads}: choose channels divisible by the heads and by 4, for the "
            "sines and cosines of rows and columns"
        )


def patches_of(x: Tensor, patch: int) -> Tensor:
    """The square patches of ``x[B, C, H, W]``, row by row: ``[B, tokens, C * patch * patch]``."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def image_of(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The image whose patches are ``tokens[B, rows * columns, C * patch * patch]``.

    >>> x = torch.arange(32.0).view(1, 2, 4, 4)
    >>> torch.equal(image_of(patches_of(x, 2), 2, 2, 2), x)
    True
    """
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), patch)


def positions(rows: int, columns: int, channels: int) -> Tensor:
    """Sines and cosines of the row, then of the column, of each token, row by row: ``[rows * columns, channels]``.

    >>> positions(2, 3, 8).shape
    torch.Size([6, 8])
    """
    waves = _LONGEST ** -torch.linspace(0, 1, channels // 4 + 1)[:-1]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    phases = [place.flatten()[:, None] * waves for place in (row, column)]
    return torch.cat([part for phase in phases for part in (phase.sin(), phase.cos())], dim=1)
