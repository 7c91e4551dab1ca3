"""A network that is told two times, of the start and of the end of a piece of the flow, for average velocities."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import Conditioning, NoiseFeatures, start_at_zero


class TwoTimes(nn.Module):
    """``F(x, (c_noise(t), c_noise(s)), cond)``: an embedding of the second noise level is added to that of the first.

    It starts at zero, so that the network begins as one of a single time. Where one level is given it is both.

    >>> from functools import partial
    >>> from scoreexp.networks import MLP
    >>> network = TwoTimes(network=partial(MLP, width=8), event_shape=(2,))
    >>> network(torch.zeros(3, 2), torch.zeros(3, 2)).shape, network(torch.zeros(3, 2), torch.zeros(3)).shape
    (torch.Size([3, 2]), torch.Size([3, 2]))

    Args:
        network: makes the network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``).
        event_shape: shape ``*`` of one sample.
        num_classes: number of classes, or None.

    Raises:
        UserError: the network has no embedding of a noise level to which a second could be added.
    """

    takes_two_times = True

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.network = network(event_shape=tuple(event_shape), num_classes=num_classes)
        conditioning = getattr(self.network, "conditioning", None)
        if not isinstance(conditioning, Conditioning) or conditioning.noise_embedding is None:
            raise UserError(
                f"{type(self.network).__name__} cannot take two times: choose a network with an embedding of the noise "
                "level (unet, unet_modulated, dit or mlp, with time_conditioning=true)"
            )
        conditioning.noise_embedding = _Sum(conditioning.noise_embedding)
        self.num_classes = num_classes
        self.downsampling_factor: Any = getattr(self.network, "downsampling_factor", 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, *]``, ``c_noise[B, 2]`` or ``[B]``, ``cond[B]`` (long labels) or None -> ``[B, *]``."""
        if c_noise.ndim == 1:
            c_noise = torch.stack([c_noise, c_noise], 1)
        if cond is None and self.num_classes is not None:
            cond = torch.full((x.shape[0],), self.num_classes, device=x.device)
        return self.network(x, c_noise, cond)


class _Sum(nn.Module):
    """The embedding of the first noise level of ``c_noise[B, 2]`` plus one of the second."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        channels = [layer.out_features for layer in first.modules() if isinstance(layer, nn.Linear)][-1]
        self.first = first
        self.second = nn.Sequential(
            NoiseFeatures(channels),
            nn.Linear(channels, channels),
            nn.SiLU(),
            start_at_zero(nn.Linear(channels, channels)),
        )

    def forward(self, c_noise: Tensor) -> Tensor:
        return self.first(c_noise[:, 0]) + self.second(c_noise[:, 1])
