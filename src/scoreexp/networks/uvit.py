"""U-ViT: a transformer F(x, c_noise, cond) in which everything is a token, with long skip connections.

The patches of an image, the noise level and the class are tokens of one sequence. The output of each block of the first half
is kept for its mirror image in the second half, which gets ``W (h, s)``, as in a U-Net of a single resolution.
"""

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.networks.dit import TransformerBlock, check_channels, image_of, patches_of, positions
from scoreexp.networks.layers import NoiseFeatures, check_image_shape, labels_or_null, start_at_zero


class UViTBlock(TransformerBlock):
    """h + attention(norm(h)), then h + MLP(norm(h)); before them h = W (h, s) where there is a skip s.

    Args:
        channels, heads, hidden_ratio: as for ``TransformerBlock``.
        skips: has a skip connection.
    """

    def __init__(self, channels: int, heads: int, hidden_ratio: float, skips: bool) -> None:
        super().__init__(channels, heads, hidden_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.skip = nn.Linear(2 * channels, channels) if skips else None

    def forward(self, h: Tensor, skip: Tensor | None = None) -> Tensor:
        """``h[B, tokens, channels]``, and as many of the skip -> the shape of h."""
        if self.skip is not None and skip is not None:
            h = self.skip(torch.cat([h, skip], dim=2))
        h = h + self.attention(self.norm1(h))
        return h + self.perceptron(self.norm2(h))


class UViT(nn.Module):
    """Transformer with tokens for noise level and class and long skip connections.

    Reference: F. Bao, S. Nie, K. Xue, Y. Cao, C. Li, H. Su, J. Zhu, "All are Worth Words: A ViT Backbone for Diffusion
    Models", 2023, https://arxiv.org/abs/2209.12152. Positions are sines and cosines, which exist for images of any size,
    instead of learned; the last convolution starts at zero.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.UViT(event_shape=(3, 8, 8), num_classes=10, channels=16, blocks=3, heads=2, patch=2)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``patch``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for, is the null
            label of the unconditional model. None: no class token.
        channels: width of a token, divisible by 4 and by ``heads``.
        blocks: number of transformer blocks, odd: as many before the middle one as after it.
        heads: attention heads.
        patch: side of a patch in pixels.
        hidden_ratio: width of a block's perceptron in units of ``channels``.
        time_conditioning: False leaves the token of the noise level out.

    Raises:
        ValueError: if the event shape does not divide by ``patch`` (naming the nearest sizes allowed), ``blocks`` is even,
            or another argument is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 128,
        blocks: PositiveInt = 7,
        heads: PositiveInt = 4,
        patch: PositiveInt = 4,
        hidden_ratio: PositiveFloat = 4.0,
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        check_channels(channels, heads)
        if blocks % 2 == 0:
            raise ValueError(
                f"blocks={blocks} is even: choose {blocks - 1} or {blocks + 1}, half of them on each side"
            )
        self.downsampling_factor = self.patch = patch
        check_image_shape(tuple(event_shape), patch)
        size = event_shape[0] * patch**2
        self.channels, self.num_classes = channels, num_classes
        self.stem = nn.Linear(size, channels)
        self.noise_token = (
            nn.Sequential(
                NoiseFeatures(channels),
                nn.Linear(channels, channels),
                nn.SiLU(),
                nn.Linear(channels, channels),
            )
            if time_conditioning
            else None
        )
        self.class_token = None if num_classes is None else nn.Embedding(num_classes + 1, channels)
        half = blocks // 2
        self.blocks = nn.ModuleList(UViTBlock(channels, heads, hidden_ratio, i > half) for i in range(blocks))
        self.norm_out = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, size)
        self.conv_out = start_at_zero(nn.Conv2d(event_shape[0], event_shape[0], 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]``, ``cond[B]`` (long labels) or None -> ``[B, C, H, W]``.

        Raises:
            ValueError: if H or W does not divide by ``patch``, or labels are given to a network without classes.
        """
        check_image_shape(tuple(x.shape[1:]), self.patch)
        rows, columns = (side // self.patch for side in x.shape[2:])
        labels = labels_or_null(cond, self.num_classes, x.shape[0], x.device)
        h = self.stem(patches_of(x, self.patch))
        tokens = [h + positions(rows, columns, self.channels).to(h)]
        if self.noise_token is not None:
            tokens.append(self.noise_token(c_noise)[:, None])
        if self.class_token is not None:
            tokens.append(self.class_token(labels)[:, None])
        h = torch.cat(tokens, dim=1)
        skips: list[Tensor] = []
        half = len(self.blocks) // 2
        for i, block in enumerate(self.blocks):
            h = block(h, skips.pop() if i > half else None)
            if i < half:
                skips.append(h)
        patches = self.head(self.norm_out(h[:, : rows * columns]))
        return self.conv_out(image_of(patches, rows, columns, self.patch))
