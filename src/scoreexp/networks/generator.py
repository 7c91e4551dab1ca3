"""A network that draws clean data instead of their mean: random numbers enter beside the noise level."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.batch import are_labels
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import Conditioning


class LatentConditioning(nn.Module):
    """silu(MLP(noise features) + MLP(z)) in the place of a network's ``Conditioning``.

    Args:
        conditioning: whose features of the noise level are taken.
        latent_channels: numbers in z.
    """

    is_empty = False

    def __init__(self, conditioning: Conditioning, latent_channels: int) -> None:
        super().__init__()
        features: Any = conditioning.noise_embedding
        width = features[-1].out_features
        self.noise_embedding = features
        self.mapping = nn.Sequential(
            nn.Linear(latent_channels, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )

    def forward(self, c_noise: Tensor, latent: Tensor) -> Tensor:
        """``c_noise[B]``, ``latent[B, L]`` -> the vector that conditions every block, ``[B, width]``."""
        return F.silu(self.noise_embedding(c_noise) + self.mapping(latent))


class Generator(nn.Module):
    """``F(x, c_noise, z)``: a network whose blocks are conditioned on ``z``, standard normal, and on the noise level.

    With ``precond=x0`` it is the generator ``x_0' = G(x_t, z, t)`` of a denoising diffusion GAN. ``z`` takes the place of
    ``cond``. There is no posterior mean, so a call without ``z`` is refused; ``sampler=ddgan`` draws it.

    Reference: Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs",
    2022, https://arxiv.org/abs/2112.07804.

    >>> import torch
    >>> from functools import partial
    >>> from scoreexp.networks import MLP
    >>> network = Generator(network=partial(MLP, width=16, blocks=1), event_shape=(2,), latent_channels=4)
    >>> network(torch.zeros(3, 2), torch.zeros(3), torch.randn(3, 4)).shape
    torch.Size([3, 2])

    Args:
        network: makes the network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``): one that
            is conditioned on the noise level by a vector, such as ``MLP``, ``UNet`` or ``ModulatedUNet``.
        event_shape: shape ``*`` of one sample.
        num_classes: None; classes are not supported.
        latent_channels: numbers in ``z``.

    Raises:
        ValueError: the data have classes, or the network has no such vector.
        UserError: (on a call) ``z`` is missing or has another shape.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        event_shape: tuple[int, ...],
        num_classes: int | None = None,
        latent_channels: PositiveInt = 16,
    ) -> None:
        super().__init__()
        if num_classes is not None:
            raise ValueError(f"{num_classes} classes: a generator takes none, set data.classes=false")
        self.network: Any = network(event_shape=tuple(event_shape), num_classes=None)
        conditioning = getattr(self.network, "conditioning", None)
        if not isinstance(conditioning, Conditioning) or conditioning.noise_embedding is None:
            raise ValueError(
                f"{type(self.network).__name__} has no vector that conditions it on the noise level: choose MLP, UNet or "
                "ModulatedUNet with time conditioning"
            )
        self.network.conditioning = LatentConditioning(conditioning, latent_channels)
        self.event_shape, self.latent_channels = tuple(event_shape), latent_channels
        self.cond_shape = (latent_channels,)
        self.downsampling_factor: Any = getattr(self.network, "downsampling_factor", 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, *]``, ``c_noise[B]``, ``z[B, L]`` in the place of ``cond`` -> ``[B, *]``."""
        if cond is None or are_labels(cond) or tuple(cond.shape) != (len(x), self.latent_channels):
            raise UserError(
                f"the model draws x_0 from {self.latent_channels} random numbers and has no posterior mean: sample it with "
                "sampler=ddgan (DDGAN in Python) and the number of steps that it was trained with"
            )
        return self.network(x, c_noise, cond.to(x.dtype))
