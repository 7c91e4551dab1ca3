r"""DiTi: what a noise level takes away is encoded by that level's part of a representation.

Noise of growing level removes the attributes of data one after the other, fine ones first. A frozen denoiser makes an error
about what is lost; an encoder ``z = f(x_0)`` with one block for each band of levels, and a decoder ``g``, mend it with the
blocks of the bands up to the present one,

.. math:: L = E \left| \epsilon - \epsilon_\theta(x_t, t) - g(z_1, \dots, z_k, t) \right|^2, \qquad
          \epsilon - \epsilon_\theta = -\frac{x_0 - D(u, r)}{r},

so that block ``k`` has to hold what is lost in band ``k`` and not before.

Reference: Z. Yue et al., "Exploring Diffusion Time-steps for Unsupervised Representation Learning", 2024,
https://arxiv.org/abs/2401.11430. There ``g`` sees ``x_t`` too and shifts its mean; here it sees the blocks and the level.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import FinitePositiveFloat, NonNegativeInt, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, ratio_of
from scoreexp.diagnostics.fields import denoised


class DiTi(nn.Module):
    """Encoder and decoder: perceptrons of one hidden layer on samples of any shape.

    >>> network = DiTi(event_shape=(1, 4, 4), edges=(0.1, 0.5, 2.0), block=3, width=8)
    >>> network.encode(torch.zeros(5, 1, 4, 4)).shape  # blocks of the bands 0.1 to 0.5 and 0.5 to 2
    torch.Size([5, 2, 3])

    Args:
        event_shape: shape ``*`` of one sample.
        edges: of the bands of noise levels, ascending, in the units of the data.
        block: numbers of each band's block.
        width: of the hidden layers.

    Raises:
        ValueError: there are fewer than two edges, or they do not ascend.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        edges: tuple[FinitePositiveFloat, ...],
        block: PositiveInt = 16,
        width: PositiveInt = 128,
    ) -> None:
        super().__init__()
        if len(edges) < 2 or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(
                f"edges={tuple(edges)} must be two or more ascending noise levels, as (0.1, 0.5, 2.0)"
            )
        self.event_shape, self.edges, self.block = tuple(event_shape), tuple(edges), block
        size, bands = math.prod(self.event_shape), len(edges) - 1
        self.encoder = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, bands * block))
        self.decoder = nn.Sequential(nn.Linear(bands * block + 1, width), nn.SiLU(), nn.Linear(width, size))

    def encode(self, x: Tensor) -> Tensor:
        """The blocks ``[B, bands, block]`` of clean data ``x[B, *]``."""
        found: Tensor = self.encoder(x.flatten(1))
        return found.reshape(len(x), -1, self.block)

    def decode(self, z: Tensor, level: Tensor) -> Tensor:
        """``g`` ``[B, *]`` of the blocks ``z[B, bands, block]`` up to the band of ``level[B]``."""
        lower = torch.tensor(self.edges[:-1], dtype=level.dtype, device=level.device)
        open_ = (level[:, None] >= lower) | (torch.arange(len(lower), device=level.device) == 0)
        seen = (z * open_.to(z)[:, :, None]).flatten(1)
        found: Tensor = self.decoder(torch.cat([seen, level.log().to(z)[:, None]], 1))
        return found.reshape(len(z), *self.event_shape)


def diti_loss(network: DiTi, model: DenoiserBase, x: Tensor, level: Tensor, z: Tensor) -> Tensor:
    """The loss of each sample ``[B]``, a mean over its numbers; no gradient reaches the denoiser.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import EmpiricalImages
    >>> from scoreexp.schedules import VP
    >>> x = torch.ones(1, 2)  # data of a single point: its denoiser makes no error, and g = 0 is best
    >>> network = DiTi(event_shape=(2,), edges=(0.1, 1.0), width=4)
    >>> _ = nn.init.zeros_(network.decoder[2].weight), nn.init.zeros_(network.decoder[2].bias)
    >>> model = OracleDenoiser(EmpiricalImages(x), VP())
    >>> diti_loss(network, model, x, torch.tensor([0.5]), torch.randn(1, 2)).item()
    0.0

    Args:
        network: encoder and decoder.
        model: the frozen denoiser.
        x: clean data ``[B, *]``.
        level: ``r`` ``[B]``, in the units of the data.
        z: standard Gaussian noise ``[B, *]``.
    """
    return mean_per_sample((_missed(model, x, level, z) - network.decode(network.encode(x), level)).square())


@torch.no_grad()
def _missed(model: DenoiserBase, x: Tensor, level: Tensor, z: Tensor) -> Tensor:
    """What the denoiser misses of ``x``, ``-(x - D(x + r z)) / r``."""
    r = expand_to(level, x)
    return -(x - denoised(model, x + r * z, level)) / r


@checked
@torch.no_grad()
def diti_relative_loss(
    network: DiTi, model: DenoiserBase, x: Tensor, level: FinitePositiveFloat, *, seed: int = 0
) -> Estimate:
    """The loss over that of a decoder that returns 0: what the blocks leave unexplained of the denoiser's error.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import EmpiricalImages
    >>> from scoreexp.schedules import VP
    >>> x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    >>> network = DiTi(event_shape=(2,), edges=(0.5, 2.0), width=8)
    >>> _ = nn.init.zeros_(network.decoder[2].weight), nn.init.zeros_(network.decoder[2].bias)
    >>> diti_relative_loss(network, OracleDenoiser(EmpiricalImages(x), VP()), x, 1.0).value
    1.0

    Args:
        network: encoder and decoder.
        model: the frozen denoiser.
        x: clean data ``[N, *]``, best held out.
        level: ``r``, in the units of the data.
        seed: names the noise.
    """
    z = torch.randn(x.shape, generator=generator(seed, "diti loss")).to(x)
    levels = torch.full((len(x),), level, dtype=torch.float64, device=x.device)
    return ratio_of(
        diti_loss(network, model, x, levels, z), mean_per_sample(_missed(model, x, levels, z).square())
    )


@checked
def fit_diti(
    network: DiTi,
    model: DenoiserBase,
    x: Tensor,
    *,
    steps: NonNegativeInt = 1000,
    lr: FinitePositiveFloat = 1e-3,
    batch: PositiveInt = 128,
    seed: int = 0,
) -> DiTi:
    """Train encoder and decoder by Adam, at levels that are log-uniform between the first and the last edge.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import EmpiricalImages
    >>> from scoreexp.schedules import VP
    >>> x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    >>> model = OracleDenoiser(EmpiricalImages(x), VP())
    >>> fitted = fit_diti(DiTi(event_shape=(2,), edges=(0.5, 2.0), width=8), model, x, steps=1)
    >>> fitted.training
    False

    Args:
        network: encoder and decoder, trained in place.
        model: the frozen denoiser.
        x: clean data ``[N, *]``.
        steps: of Adam.
        lr: its learning rate.
        batch: samples for each step.
        seed: names samples, levels and noise; the first weights are those of the network.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    low, high = math.log(network.edges[0]), math.log(network.edges[-1])
    stream = generator(seed, "diti")
    network.train()
    for _ in range(steps):
        clean = x[torch.randint(len(x), (batch,), generator=stream)]
        level = (low + (high - low) * torch.rand(batch, generator=stream, dtype=torch.float64)).exp()
        z = torch.randn(clean.shape, generator=stream).to(clean)
        loss = diti_loss(network, model, clean, level.to(clean.device), z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
