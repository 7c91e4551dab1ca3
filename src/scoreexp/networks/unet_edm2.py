r"""The magnitude-preserving U-Net F(x, c_noise, cond) of EDM2 (configuration G).

Every layer keeps the root mean square of its activations for inputs that are uncorrelated: weights are normalised, and
sums, concatenations and activations are divided by what they add. So activations and weights cannot grow in training, and
no layer normalises groups. With :math:`|w|` the norm of the weights of one output, ``n`` their number and a, b of unit
variance:

.. math:: \mathrm{conv}(x) = \frac{w}{|w|} * x, \qquad
          \mathrm{sum}(a, b) = \frac{(1 - t) a + t b}{\sqrt{(1 - t)^2 + t^2}}, \qquad
          \mathrm{silu}(x) = \frac{x}{0.596 (1 + e^{-x})} .

Weights are also *forced* to :math:`|w| = \sqrt n`: after each optimiser step they are put back there (``constrain``), so
that the learning rate alone, and not a norm that grows, says how far a step turns them.

Reference: T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine, "Analyzing and Improving the Training Dynamics
of Diffusion Models", 2024, https://arxiv.org/abs/2312.02696, section 2 and appendix B.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import Constrained, NoiseFeatures, attend, check_image_shape, labels_or_null

_SILU = 0.596  # root of E[silu(z)^2], z ~ N(0, 1)
_EPS = 1e-4
_RESIDUAL, _EMBEDDING, _SKIP = 0.3, 0.5, 0.5  # shares of the branch, of the classes, of the skip


def unit_magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``x`` divided by its root mean square over ``dims``.

    >>> unit_magnitude(torch.tensor([[3.0, 3.0], [0.0, 2.0]]), (1,)).square().mean(1).round(decimals=3)
    tensor([1., 1.])
    """
    size = math.prod(x.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    return x / (_EPS + norm / size**0.5).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU of unit variance for a standard normal input."""
    return F.silu(x) / _SILU


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """``(1 - share) a + share b`` of unit variance for independent a and b of unit variance."""
    return torch.lerp(a, b, share) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Channels of a, then of b, of unit variance in the mean; b contributes ``share`` whatever the numbers of channels.

    >>> mp_cat(torch.ones(1, 1), torch.ones(1, 4), 0.5).square()
    tensor([[2.5000, 0.6250, 0.6250, 0.6250, 0.6250]])
    """
    n_a, n_b = a.shape[1], b.shape[1]
    size = ((n_a + n_b) / ((1 - share) ** 2 + share**2)) ** 0.5
    return torch.cat([a * (size * (1 - share) / n_a**0.5), b * (size * share / n_b**0.5)], dim=1)


class MPConv(Constrained):
    """Convolution, or linear layer, whose weights have for each output the norm 1, and are stored at root mean square 1.

    >>> layer = MPConv(8, 4, kernel=3)
    >>> torch.nn.init.constant_(layer.weight, 5.0) is layer.weight
    True
    >>> layer.constrain()
    >>> layer.weight.mean().round(decimals=3)
    tensor(1., grad_fn=<RoundBackward1>)

    Args:
        given: channels of the input.
        made: channels of the output.
        kernel: side, odd; 0 for a linear layer on ``[B, given]``.
    """

    def __init__(self, given: int, made: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(made, given, *[kernel] * (2 if kernel else 0)))
        self.constrain()

    @torch.no_grad()
    def constrain(self) -> None:
        self.weight.copy_(unit_magnitude(self.weight, self._inputs))

    @property
    def _inputs(self) -> tuple[int, ...]:
        return tuple(range(1, self.weight.ndim))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """``x[B, given, H, W]`` (``[B, given]`` for a linear layer) -> as many with ``made`` channels, times ``gain``."""
        weight = unit_magnitude(self.weight, self._inputs)  # the gradient sees the normalisation too
        weight = (weight * (gain / self.weight[0].numel() ** 0.5)).to(x.dtype)
        return F.linear(x, weight) if x.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[2] // 2)


class MPAttention(nn.Module):
    """Self-attention over pixels with queries, keys and values normalised per head (cosine attention)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = MPConv(channels, 3 * channels, kernel=1)
        self.out = MPConv(channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(x).flatten(2).transpose(1, 2).unflatten(2, (3, self.heads, -1))
        q, k, v = unit_magnitude(tokens, (4,)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2).transpose(1, 2)
        return mp_sum(x, self.out(attended.reshape(x.shape)), _RESIDUAL)


class MPBlock(nn.Module):
    """A residual block; on the way down its input is normalised over the channels of each pixel.

    Args:
        given: channels of the input.
        made: channels of the output.
        embedding: width of the conditioning vector.
        encodes: on the way down.
        heads: of the self-attention that follows, 0 for none.
    """

    def __init__(self, given: int, made: int, embedding: int, *, encodes: bool, heads: int = 0) -> None:
        super().__init__()
        self.encodes = encodes
        self.project = MPConv(given, made, kernel=1) if given != made else None
        self.conv1 = MPConv(made if encodes else given, made, kernel=3)
        self.modulation = MPConv(embedding, made, kernel=0)
        self.modulation_gain = nn.Parameter(torch.zeros(()))
        self.conv2 = MPConv(made, made, kernel=3)
        self.attention = MPAttention(made, heads) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """``x[B, given, H, W]``, ``embedding[B, E]`` -> ``[B, made, H, W]``."""
        if self.encodes:
            x = unit_magnitude(x if self.project is None else self.project(x), (1,))
        scale = 1 + self.modulation(embedding, gain=self.modulation_gain)[:, :, None, None]
        h = self.conv2(mp_silu(self.conv1(mp_silu(x)) * scale))
        if not self.encodes and self.project is not None:
            x = self.project(x)
        x = mp_sum(x, h, _RESIDUAL)
        return x if self.attention is None else self.attention(x)


class MagnitudePreservingUNet(nn.Module):
    """U-Net of EDM2 with noise-level and optional class conditioning.

    Each level has ``blocks`` blocks on the way down and one more on the way up; each block on the way down, the first
    convolution and each downsampling leave a skip connection, which is concatenated. Resampling is a mean of 2x2
    squares and nearest-neighbour upsampling. Weights are trained well with Adam at a learning rate of about 0.01 that falls
    with the inverse square root of the step (``model.decay_steps``); see ``recipe=edm2``. The noise level's features are
    those of the other U-Nets instead of random ones, and there is no dropout.

    Reference: see the module.

    >>> network = MagnitudePreservingUNet(event_shape=(3, 8, 8), num_classes=10, channels=16, multipliers=(1, 2), blocks=1)
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.tensor([0, 9])).shape
    torch.Size([2, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image; H and W divisible by ``downsampling_factor = 2 ** (len(multipliers) - 1)``.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for, is the null
            label of the unconditional model. None: no class embedding.
        channels: width at full resolution.
        multipliers: width of each level in units of ``channels``.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention_resolutions: heights in pixels of the levels whose blocks attend, for images of ``event_shape``; the
            middle of the network always does.
        heads: attention heads, a divisor of the width of each level that attends.

    Raises:
        ValueError: if the event shape does not divide by the downsampling factor (naming the nearest sizes allowed),
            ``heads`` does not divide a width, or another argument is out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 32,
        multipliers: tuple[PositiveInt, ...] = (1, 2, 2),
        blocks: PositiveInt = 1,
        attention_resolutions: tuple[PositiveInt, ...] = (16,),
        heads: PositiveInt = 1,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ValueError("multipliers is empty: give at least one, for the finest level")
        self.downsampling_factor = 2 ** (len(multipliers) - 1)
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        widths = [channels * multiplier for multiplier in multipliers]
        embedding = max(widths) + max(widths) % 2  # even: cosine and sine come in pairs
        attends = [event_shape[1] >> level in attention_resolutions for level in range(len(widths))]
        for width in {widths[-1], *(width for width, yes in zip(widths, attends) if yes)}:
            if width % heads:
                raise ValueError(
                    f"heads={heads} does not divide the {width} channels it attends to: use a divisor"
                )

        def block(given: int, made: int, attention: bool, encodes: bool) -> MPBlock:
            return MPBlock(given, made, embedding, encodes=encodes, heads=heads if attention else 0)

        self.features = NoiseFeatures(widths[0] + widths[0] % 2)
        self.noise_embedding = MPConv(widths[0] + widths[0] % 2, embedding, kernel=0)
        self.num_classes = num_classes
        self.class_embedding = None if num_classes is None else MPConv(num_classes + 1, embedding, kernel=0)

        width = widths[0]
        self.stem = MPConv(event_shape[0] + 1, width, kernel=3)
        skips = [width]
        self.down = nn.ModuleList()
        for level, made in enumerate(widths):
            row = nn.ModuleList()
            if level:
                row.append(block(width, width, False, True))
                skips.append(width)
            for _ in range(blocks):
                row.append(block(width, made, attends[level], True))
                skips.append(width := made)
            self.down.append(row)
        self.middle = nn.ModuleList([block(width, width, attention, False) for attention in (True, False)])
        self.up = nn.ModuleList()
        for level, made in reversed(list(enumerate(widths))):
            row = nn.ModuleList()
            if level < len(widths) - 1:
                row.append(block(width, width, False, False))
            for _ in range(blocks + 1):
                row.append(block(width + skips.pop(), made, attends[level], False))
                width = made
            self.up.append(row)
        self.conv_out = MPConv(width, event_shape[0], kernel=3)
        self.gain_out = nn.Parameter(torch.zeros(()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Args:
            x: ``[B, C, H, W]``, the preconditioned input, of about unit variance.
            c_noise: ``[B]``, log(sigma / alpha) / 4, in about -2.5..1.5.
            cond: ``[B]`` class labels (long) in 0..num_classes, or None for the null label.

        Raises:
            ValueError: if H or W does not divide by the downsampling factor, or labels are given to a network without
                classes.
        """
        check_image_shape(tuple(x.shape[1:]), self.downsampling_factor)
        embedding = self._embed(c_noise, labels_or_null(cond, self.num_classes, x.shape[0], x.device))
        h = self.stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))  # ones in place of biases
        skips = [h]
        for level, row in enumerate(self.down):
            for i, block in enumerate(row.children()):
                h = block(F.avg_pool2d(h, 2) if level and not i else h, embedding)
                skips.append(h)
        for block in self.middle:
            h = block(h, embedding)
        for level, row in enumerate(self.up):
            for i, block in enumerate(row.children()):
                if level and not i:
                    h = block(F.interpolate(h, scale_factor=2.0, mode="nearest"), embedding)
                else:
                    h = block(mp_cat(h, skips.pop(), _SKIP), embedding)
        return self.conv_out(h, gain=self.gain_out)

    def _embed(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        features = math.sqrt(2) * self.features(c_noise)  # cosine and sine: exactly of root mean square 1
        embedding = self.noise_embedding(features)
        if self.class_embedding is not None and labels is not None:
            classes = self.class_embedding.weight.shape[1]
            one_hot = F.one_hot(labels, classes).to(features.dtype) * classes**0.5
            embedding = mp_sum(embedding, self.class_embedding(one_hot), _EMBEDDING)
        return mp_silu(embedding)
