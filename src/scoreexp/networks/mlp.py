"""A residual multilayer perceptron F(x, c_noise, cond) for points: data of any event shape, taken as a vector.

The network for the plane, where a U-Net has nothing to convolve. It works on preconditioned inputs like every other:
``c_in x_t`` and ``c_noise = log(sigma / alpha) / 4``. Fourier features carry the noise level into every block; the
points themselves enter as they are.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import Conditioning, start_at_zero


class LinearBlock(nn.Module):
    """x + W_2 silu(W_1 silu(x) + shift), W_2 starting at zero; the shift is linear in the conditioning vector.

    Args:
        width: of the input, of the layer between and of the output.
        embedding_channels: width of the conditioning vector; 0 for none.
    """

    def __init__(self, width: int, embedding_channels: int) -> None:
        super().__init__()
        self.shift = nn.Linear(embedding_channels, width, bias=False) if embedding_channels else None
        self.linear1 = nn.Linear(width, width)
        self.linear2 = start_at_zero(nn.Linear(width, width))

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """``x[B, width]``, ``embedding[B, embedding_channels]`` or None -> ``[B, width]``."""
        h = self.linear1(F.silu(x))
        if self.shift is not None:
            h = h + self.shift(embedding)
        return x + self.linear2(F.silu(h))


class MLP(nn.Module):
    """Residual multilayer perceptron with noise-level and optional class conditioning.

    Reference: "Deep Residual Learning for Image Recognition", He, Zhang, Ren, Sun, 2016,
        https://arxiv.org/abs/1512.03385, for the residual form; the conditioning is that of the U-Net here.

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.MLP(event_shape=(2,), width=16, blocks=1)
    >>> model = se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.VP())
    >>> model(torch.zeros(3, 2), torch.full((3,), 0.5)).shape
    torch.Size([3, 2])

    Args:
        event_shape: shape ``*`` of one sample, any.
        num_classes: labels are 0..num_classes - 1; label ``num_classes``, which ``cond=None`` stands for, is the
            null label of the unconditional model. None: no class embedding.
        width: of the hidden layers.
        blocks: number of residual blocks.
        embedding_channels: width of the conditioning vector, even.
        time_conditioning: False makes the network ignore ``c_noise``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    downsampling_factor = 1

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        width: PositiveInt = 128,
        blocks: PositiveInt = 3,
        embedding_channels: PositiveInt = 64,
        time_conditioning: bool = True,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        size = math.prod(self.event_shape)
        self.conditioning = Conditioning(embedding_channels, time_conditioning, num_classes)
        embedded = 0 if self.conditioning.is_empty else embedding_channels
        self.stem = nn.Linear(size, width)
        self.blocks = nn.ModuleList(LinearBlock(width, embedded) for _ in range(blocks))
        self.head = start_at_zero(nn.Linear(width, size))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, *]``, ``c_noise[B]``, ``cond[B]`` (long labels) or None -> ``[B, *]``.

        Raises:
            ValueError: if ``x`` has another event shape, or labels are given to a network without classes.
        """
        if x.shape[1:] != self.event_shape:
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} for a network of {self.event_shape}: they must agree"
            )
        embedding = self.conditioning(c_noise, cond)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(h)).reshape(x.shape)
