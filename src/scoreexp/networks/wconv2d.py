r"""Weighted convolution: each kernel times a fixed density that depends on the distance from its centre alone.

.. math:: y = x * (W \odot a a^T) + b, \qquad a = (d_1, \dots, d_k, 1, d_k, \dots, d_1),

for kernels of ``2 k + 1`` pixels a side; a density of ones is the ordinary convolution. The weights that are trained are
``W``, as many as before: what a density changes is where training starts and how fast each weight moves.

Reference: S. Cammarasana, G. Patanè, "Optimal Weighted Convolution for Classification and Denosing", 2025,
https://arxiv.org/abs/2505.24558; the published values lie between 0.5 and 1.5 for 3 x 3 kernels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat


class WeightedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a density on its kernels.

    >>> import torch
    >>> layer = WeightedConv2d(1, 1, 3, density=(0.5,), padding=1)
    >>> layer.density
    tensor([[0.2500, 0.5000, 0.2500],
            [0.5000, 1.0000, 0.5000],
            [0.2500, 0.5000, 0.2500]])

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd, the side of a square kernel.
        density: ``d_1 ... d_k``, that of the outermost pixel first.
        options: of ``nn.Conv2d``.

    Raises:
        ValueError: the kernel has another side than ``2 k + 1``, or a value is not positive.
    """

    density: Tensor

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        density: tuple[FinitePositiveFloat, ...],
        **options: Any,
    ) -> None:
        if kernel_size != 2 * len(density) + 1:
            raise ValueError(
                f"density={tuple(density)} is for kernels of {2 * len(density) + 1} pixels a side, and kernel_size is "
                f"{kernel_size}: give (kernel_size - 1) / 2 values of an odd one"
            )
        super().__init__(in_channels, out_channels, kernel_size, **options)
        along = torch.tensor([*density, 1.0, *reversed(density)])
        self.register_buffer("density", torch.outer(along, along), persistent=False)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * self.density, bias)


class WeightedConvolutions(nn.Module):
    """A network whose square convolutions of ``2 k + 1`` pixels a side have a density of ``k`` values; others stay.

    >>> from functools import partial
    >>> from scoreexp.networks import ScoreCNN
    >>> network = WeightedConvolutions(network=partial(ScoreCNN, widths=(4,)), density=(0.7,), event_shape=(1, 8, 8))
    >>> [type(layer).__name__ for layer in network.network.layers]
    ['WeightedConv2d', 'ReLU', 'WeightedConv2d']

    Args:
        network: makes the network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``).
        density: that of the outermost pixel first.
        event_shape: shape ``*`` of one sample.
        num_classes: passed on.

    Raises:
        ValueError: the network has no such convolution, or a value is not positive.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        density: tuple[FinitePositiveFloat, ...],
        event_shape: tuple[int, ...],
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.network = network(event_shape=self.event_shape, num_classes=num_classes)
        for name in ("downsampling_factor", "sigma_data", "cond_shape"):
            if hasattr(self.network, name):
                setattr(self, name, getattr(self.network, name))
        side = 2 * len(density) + 1
        found = [
            (parent, name, layer)
            for parent in self.network.modules()
            for name, layer in parent.named_children()
            if type(layer) is nn.Conv2d and layer.kernel_size == (side, side)
        ]
        if not found:
            raise ValueError(
                f"{type(self.network).__name__} has no convolution of {side} x {side} pixels for "
                f"density={tuple(density)}: give (side - 1) / 2 values for the kernels that it has"
            )
        for parent, name, layer in found:
            setattr(parent, name, _weighted(layer, side, density))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """As the network."""
        found: Tensor = self.network(x, c_noise, cond)
        return found


def _weighted(layer: nn.Conv2d, side: int, density: tuple[float, ...]) -> WeightedConv2d:
    """The layer with a density, and the same weights."""
    found = WeightedConv2d(
        layer.in_channels,
        layer.out_channels,
        side,
        density=density,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    found.weight, found.bias = layer.weight, layer.bias
    found.density = found.density.to(layer.weight.device)
    return found
