"""A network that sees, beside its input, an image on which the model is conditioned, such as an observation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.core.batch import are_labels
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.types import PositiveInt


class ImageConditioned(nn.Module):
    """``F(x, c_noise, cond) = network([x, cond], c_noise)``: ``cond`` enters as further channels of the input.

    The network is made for the channels of both and answers in as many; those of ``x`` are the output. Class labels are not
    passed to it. Papers that condition on the observation y feed it y and ``x_t``, here it is y and the preconditioned
    state of the residual, ``u_t = x_t - beta(t) y`` (``beta`` is 1 for OUVE and ``sqrt(a)`` for Resfusion): the two
    pairs of channels are linear recombinations of each other at each noise level.

    >>> from functools import partial
    >>> from scoreexp.networks import UNet
    >>> network = ImageConditioned(network=partial(UNet, channels=16), event_shape=(3, 8, 8))
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])

    Args:
        network: makes the network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``).
        event_shape: shape (C, H, W) of x.
        num_classes: not used.
        channels: those of ``cond``; None for as many as ``x`` has.

    Raises:
        ValueError: ``event_shape`` is not that of an image.
        UserError: (on a call) ``cond`` is no image of the size of ``x`` with so many channels.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        event_shape: tuple[int, ...],
        num_classes: int | None = None,
        channels: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kind_of(tuple(event_shape)), Images):
            raise ValueError(f"event_shape={tuple(event_shape)}: ImageConditioned is for images (C, H, W)")
        own, *sides = event_shape
        self.cond_shape = (channels or own, *sides)
        self.network = network(event_shape=(own + self.cond_shape[0], *sides), num_classes=None)
        self.downsampling_factor: Any = getattr(self.network, "downsampling_factor", 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]``, ``cond[B, C', H, W]`` -> ``[B, C, H, W]``."""
        expected = (x.shape[0], self.cond_shape[0], *x.shape[2:])
        if cond is None or are_labels(cond) or tuple(cond.shape) != expected:
            found = (
                "nothing" if cond is None else "class labels" if are_labels(cond) else f"{tuple(cond.shape)}"
            )
            raise UserError(
                f"the model is conditioned on images {expected} and got {found}: give the observation, as "
                "restorer=conditioned does (Conditioned in Python)"
            )
        return self.network(torch.cat([x, cond.to(x.dtype)], 1), c_noise)[:, : x.shape[1]]
