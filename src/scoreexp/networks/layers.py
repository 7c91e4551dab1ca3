"""Layers that the U-Nets share: normalisation, conditioning, self-attention, and the check of a shape."""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.batch import are_labels
from scoreexp.core.kinds import Images, kind_of

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

GROUP_SIZE = 16
"""Channels of one normalisation group, and the channel count whose multiples fill the vector registers."""

EXPLICIT_ATTENTION_PIXELS = 1024
"""Up to this many pixels, products and a softmax are faster on CPU than torch's fused attention."""


class GroupNorm(nn.GroupNorm):
    """Group normalisation over groups of 16 channels (of gcd(channels, 16) if 16 does not divide them).

    Reference: "Group Normalization", Wu and He, 2018, https://arxiv.org/abs/1803.08494. It is computed in
        the dtype of
    its parameters, which is float32 under autocast.

    Args:
        channels: of the input.
        groups: number of groups instead, a divisor of ``channels``.
    """

    def __init__(self, channels: int, groups: int | None = None) -> None:
        super().__init__(groups or channels // math.gcd(channels, GROUP_SIZE), channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


_LARGEST_LEVEL = math.log(160) / 4


class NoiseFeatures(nn.Module):
    """Fourier features of the noise level: cos(w_k c), sin(w_k c), c = ``c_noise``, w_k geometric from pi/4
    to 8 pi.

    ``c_noise = log(sigma / alpha) / 4`` lies in about -2.5..1.5: the slowest wave makes half a turn over
    that range, the fastest has a period of 1/4, which is one unit of log sigma; all are smooth in c.

    Levels beyond 160, about where DDPM ends, have the features of 160. A path that begins at infinity, as that of flow
    matching, would else begin far from all features that the network was trained with.

    Args:
        features: number of features, even.

    Raises:
        ValueError: if ``features`` is odd.
    """

    frequencies: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"embedding_channels={features} must be even: cosine and sine come in pairs")
        frequencies = math.pi / 4 * 32 ** torch.linspace(0, 1, features // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, c_noise: Tensor) -> Tensor:
        """``c_noise[B]`` -> ``[B, features]``."""
        level = c_noise.clamp(max=_LARGEST_LEVEL)
        phase = level[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Conditioning(nn.Module):
    """silu(MLP(noise features) + class embedding), the vector that conditions every block; either part may
    be absent.

    Args:
        channels: width of the vector, even.
        time_conditioning: False leaves the noise level out.
        num_classes: labels are 0..num_classes - 1, and ``num_classes`` is the null label of the
            unconditional model; None leaves the classes out.

    Raises:
        ValueError: if ``channels`` is odd and the noise level is part of it.
    """

    def __init__(self, channels: int, time_conditioning: bool, num_classes: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.noise_embedding: nn.Module | None = None
        self.class_embedding: nn.Module | None = None
        if time_conditioning:
            features = NoiseFeatures(channels)
            linear = [nn.Linear(channels, channels) for _ in range(2)]
            self.noise_embedding = nn.Sequential(features, linear[0], nn.SiLU(), linear[1])
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, channels)

    @property
    def is_empty(self) -> bool:
        """True if nothing conditions the network."""
        return self.noise_embedding is None and self.class_embedding is None

    def forward(self, c_noise: Tensor, cond: Tensor | None) -> Tensor | None:
        """``c_noise[B]``, ``cond[B]`` (long labels) or None for the null label -> ``[B, channels]``, None
        if empty.

        Raises:
            ValueError: if labels are given to a network without classes.
        """
        labels = labels_or_null(cond, self.num_classes, c_noise.shape[0], c_noise.device)
        parts: list[Tensor] = []
        if self.noise_embedding is not None:
            parts.append(self.noise_embedding(c_noise))
        if self.class_embedding is not None:
            parts.append(self.class_embedding(labels))
        return F.silu(torch.stack(parts).sum(0)) if parts else None


def labels_or_null(
    cond: Tensor | None, num_classes: int | None, batch: int, device: torch.device
) -> Tensor | None:
    """``cond[B]``, the null label ``num_classes`` for None; None for a network without classes.

    Raises:
        ValueError: if labels are given to a network without classes, or an image in their place.
    """
    if cond is not None and not are_labels(cond):
        raise ValueError(
            "cond is an image, but the network takes class labels: choose network=unet_conditioned"
        )
    if num_classes is None:
        if cond is not None:
            raise ValueError("the network has no classes but got labels: set num_classes, or pass cond=None")
        return None
    return torch.full((batch,), num_classes, device=device) if cond is None else cond


class Constrained(nn.Module):
    """A module whose weights stay in a set: whoever trains them calls ``constrain`` after each optimiser step.

    >>> class Unit(Constrained):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    ...     @torch.no_grad()
    ...     def constrain(self):
    ...         self.weight.div_(self.weight.norm())
    >>> network = nn.Sequential(Unit())
    >>> constrain(network)
    >>> network[0].weight.tolist()
    [0.6000000238418579, 0.800000011920929]
    """

    def constrain(self) -> None:
        """Move the weights of this module, not of its children, to the set, in place and without a gradient."""
        raise NotImplementedError


def constrain(network: nn.Module) -> None:
    """Constrain every module of ``network`` that asks for it."""
    for module in network.modules():
        if isinstance(module, Constrained):
            module.constrain()


class SelfAttention(nn.Module):
    """x + W_o softmax(q k^T / sqrt(d)) v over the pixels of an image.

    Reference: "Attention Is All You Need", Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.

    Args:
        channels: width of the input, divisible by ``heads``.
        heads: number of attention heads; d = channels / heads.
        groups: of the normalisation before it; None for groups of 16 channels.
        zero_start: W_o starts at zero; False for torch's random start.

    Raises:
        ValueError: if ``heads`` does not divide ``channels``.
    """

    def __init__(
        self, channels: int, heads: int = 1, groups: int | None = None, zero_start: bool = True
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"heads={heads} does not divide the {channels} channels it attends to: use a divisor"
            )
        self.heads = heads
        self.norm = GroupNorm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        out = nn.Linear(channels, channels)
        self.out = start_at_zero(out) if zero_start else out

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        pixels = self.norm(x).permute(0, 2, 3, 1).reshape(b, h * w, c)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(pixels).split(c, dim=2)
        )
        attended = attend(q, k, v).transpose(1, 2).reshape(b, h, w, c)
        return x + self.out(attended).permute(0, 3, 1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for ``[B, heads, pixels, d]``."""
    if q.device.type != "cpu" or q.shape[2] > EXPLICIT_ATTENTION_PIXELS:
        return F.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    return weights.softmax(dim=-1).to(v.dtype) @ v


def start_at_zero(layer: Layer) -> Layer:
    """Set a layer's parameters to zero, so that its branch begins as the zero function."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def start_as_usual(layer: nn.Conv2d | nn.Linear, random: torch.Generator) -> None:
    """Draw a layer's parameters by torch's usual law, uniform within ``1 / sqrt(inputs)``, from a generator."""
    bound = layer.weight[0].numel() ** -0.5
    for weights in layer.parameters():
        nn.init.uniform_(weights, -bound, bound, generator=random)


def check_image_shape(event_shape: tuple[int, ...], factor: int) -> None:
    """Refuse an event shape that is not (C, H, W) with H and W divisible by ``factor``.

    Raises:
        ValueError: naming the size, the factor and the nearest sizes allowed.
    """
    if not isinstance(kind_of(event_shape), Images):
        raise ValueError(f"event shape {event_shape} is not (C, H, W): use another network for other data")
    for size in event_shape[1:]:
        if size < 1 or size % factor:
            below = size // factor * factor
            nearest = f"{below} or {below + factor}" if below > 0 else f"{factor}"
            raise ValueError(
                f"image size {size} is not divisible by the network's downsampling factor {factor}: "
                f"the nearest sizes allowed are {nearest}"
            )


def by_level(modules: nn.ModuleList, levels: int) -> list[list[nn.Module]]:
    """The modules of a kind of which each level has equally many.

    >>> by_level(nn.ModuleList([nn.SiLU(), nn.ReLU()]), 2)
    [[SiLU()], [ReLU()]]
    """
    each = len(modules) // levels
    return [list(modules)[i * each : (i + 1) * each] for i in range(levels)]


def last_levels(modules: nn.ModuleList, levels: int) -> list[nn.Module | None]:
    """The modules of a kind of which the last levels have one each, and the others none.

    >>> last_levels(nn.ModuleList([nn.SiLU()]), 2)
    [None, SiLU()]
    """
    return [None] * (levels - len(modules)) + list(modules)
