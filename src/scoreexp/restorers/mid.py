r"""Mask, Inpaint and Denoise: a network that fills in masked pixels of images with noise from a bank, which it refines.

For clean images ``x`` of other scenes, noise ``n`` from a bank ``B`` and masks ``m`` that hide a share of the pixels,

.. math:: \min_f E\, | f(m (x + n)) - x |, \qquad \text{then} \qquad B \leftarrow \{ y - f(y) \} ,

again and again. The bank begins with white Gaussian noise of the level of the observation. A network that sees few pixels
depends less on what its training noise was like, so its residual tells of the true noise.

What the bank tends to is not all of the noise: where noise cannot be told from the signal, the residual lacks it, and the
bank loses it in the following rounds. It has the true covariance outside of the space of the signal
(``noise_bank`` and its test).

Reference: H. Shahdoosti et al., "Unsupervised Real-World Denoising: Sparsity is All You Need", 2025,
https://arxiv.org/abs/2503.21377. There the bank is of a data set of noisy images; here it is of the one image.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, l1_loss, relu

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_model
from scoreexp.core.streams import generator
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, ProbabilityBelowOne
from scoreexp.data.image_io import Picture
from scoreexp.data.pictures import read_picture, with_channels
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage

BATCH = 4  # squares in a step
LOOKS = 8  # masks over which the estimate is averaged


def noise_bank(
    y: Tensor,
    fit: Callable[[Tensor], Callable[[Tensor], Tensor]],
    first: Tensor,
    rounds: int,
    settled: Callable[[Tensor, Tensor], bool] = lambda before, after: False,
) -> tuple[Tensor, Tensor]:
    """The refinement: ``bank <- y - f(y)`` with ``f = fit(bank)``, ``rounds`` times.

    >>> x, bank = noise_bank(torch.ones(1, 4), lambda bank: lambda y: y / (1 + bank.var()), torch.ones(1, 4), rounds=3)
    >>> x, bank
    (tensor([[1., 1., 1., 1.]]), tensor([[0., 0., 0., 0.]]))

    Args:
        y: noisy data ``[B, *]``.
        fit: makes a denoiser of clean data of its own and the noise of a bank.
        first: the bank at the start ``[N, *]``.
        rounds: >= 1.
        settled: whether it is over after two estimates ``f(y)`` in a row; the first is ``y``.

    Returns:
        The last ``f(y)`` and the bank that it leaves.
    """
    bank, x = first, y
    for _ in range(rounds):
        before, x = x, fit(bank)(y)
        bank = y - x
        if settled(before, x):
            break
    return x, bank


class MID(PerImage):
    """See the module's formulas. It needs clean photographs, of anything, and no model.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> observation = Observation(torch.zeros(1, 3, 16, 16), Identity(), GaussianNoise(0.2))
    >>> MID(steps=4, rounds=2, side=16)(observation, streams=ImageStreams([0])).x.shape
    torch.Size([1, 3, 16, 16])

    Args:
        steps: of the optimiser, over all rounds.
        rounds: of the bank.
        mask: share of the pixels that are hidden; 0 is supervised training on the noise of the bank.
        clean: photographs to learn from: names of bundled ones, or files.
        side: of the squares that are learnt from, in pixels, at most that of the image.
        width: channels of the hidden layers.
        depth: number of hidden layers.
        lr: learning rate of Adam.
        tolerance: the fit is over when the estimates of two rounds differ by less than this share of the noise's standard
            deviation; 0 takes all rounds.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image under the identity, or a
            photograph cannot be read.
        FloatingPointError: on a call, the loss is not finite.
    """

    method: ClassVar[str] = "MID"

    @checked
    def __init__(
        self,
        steps: PositiveInt = 600,
        rounds: PositiveInt = 3,
        mask: ProbabilityBelowOne = 0.5,
        clean: Sequence[str] = ("astronaut", "coffee", "chelsea"),
        side: PositiveInt = 48,
        width: PositiveInt = 32,
        depth: PositiveInt = 5,
        lr: PositiveFloat = 2e-3,
        tolerance: NonNegativeFloat = 0.02,
    ) -> None:
        if not clean:
            raise ValueError("clean=[] leaves nothing to learn from: give bundled photographs or files")
        self.steps, self.rounds, self.mask, self.clean = steps, rounds, mask, tuple(clean)
        self.side, self.width, self.depth, self.lr, self.tolerance = side, width, depth, lr, tolerance

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        y, random = observation.y, generator(seed, "mid")
        observation.require_finite()
        level = observation.noise.variance(y.clamp(min=-1)).sqrt()
        photos = [_clean(name, y.shape[1]).to(y) for name in self.clean]
        network = Inpainter(y.shape[1], self.width, self.depth, random).to(y)
        each = -(-self.steps // self.rounds)
        done, estimate = 0, y

        def fit_round(bank: Tensor) -> Callable[[Tensor], Tensor]:
            nonlocal done
            optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
            last = min(self.steps, done + each)
            annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(last - done, 1))
            while done < last:
                loss = self.loss(network, photos, bank, random)
                done += 1
                self.descend(optimizer, loss, done)
                annealing.step()
                followed(done, estimate)
            return denoised

        @torch.no_grad()
        def denoised(y: Tensor) -> Tensor:
            nonlocal estimate
            looks = LOOKS if self.mask else 1
            estimate = torch.stack([network(_masked(y, self.mask, random)) for _ in range(looks)]).mean(0)
            return estimate

        def settled(before: Tensor, after: Tensor) -> bool:
            return float((after - before).square().mean().sqrt()) < self.tolerance * float(level.mean())

        white = level * torch.randn(y.shape, generator=random).to(y)
        x, _ = noise_bank(y, fit_round, white, self.rounds, settled)
        followed(self.steps, x)
        return x

    def loss(
        self, network: nn.Module, photos: Sequence[Tensor], bank: Tensor, random: torch.Generator
    ) -> Tensor:
        """``|f(m (x + n)) - x|`` of random squares of photographs ``[1, C, H', W']`` and of the bank ``[1, C, H, W]``."""
        clean, noise = [], []
        side = min(self.side, *bank.shape[-2:], *(n for photo in photos for n in photo.shape[-2:]))
        for _ in range(BATCH):
            which = int(torch.randint(len(photos), (), generator=random))
            clean.append(_square(photos[which], side, random))
            noise.append(_square(bank, side, random))
        x = torch.cat(clean)
        return l1_loss(network(_masked(x + torch.cat(noise), self.mask, random)), x)


def _square(image: Tensor, side: int, random: torch.Generator) -> Tensor:
    row, column = (int(torch.randint(n - side + 1, (), generator=random)) for n in image.shape[-2:])
    return image[..., row : row + side, column : column + side]


def _masked(y: Tensor, share: float, random: torch.Generator) -> Tensor:
    """``y`` with a share of its pixels hidden, and the mask ``[B, 1, H, W]`` as a further channel."""
    seen = (torch.rand(y[:, :1].shape, generator=random) >= share).to(y)
    return torch.cat([seen * y, seen], 1)


class Inpainter(nn.Module):
    """``f``: the local mean of the pixels that are seen, and what convolutions add to it, which at first is nothing.

    ``[B, C + 1, H, W]``, the last channel being the mask, -> ``[B, C, H, W]``.
    """

    kernel: Tensor

    def __init__(self, channels: int, width: int, depth: int, random: torch.Generator) -> None:
        super().__init__()
        sizes = [channels + 1, *[width] * depth, channels]
        layers = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes)]
        for layer in layers[:-1]:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
        nn.init.zeros_(layers[-1].weight)
        self.layers = nn.ModuleList(layers)
        weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
        self.register_buffer("kernel", (weights[:, None] * weights).expand(channels + 1, 1, 5, 5).clone())

    def forward(self, x: Tensor) -> Tensor:
        sums = conv2d(x, self.kernel, padding=2, groups=x.shape[1])
        mean = sums[:, :-1] / sums[:, -1:].clamp(min=1.0)
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return mean + self.layers[-1](x)


def _clean(name: str, channels: int) -> Tensor:
    """A photograph ``[1, C, H, W]`` in [-1, 1]."""
    from scoreexp.data.photo import photographs  # data sets bring Lightning, which restorers do without

    bundled = photographs()
    path = bundled.get(name, Path(name).expanduser())
    if name not in bundled and not path.exists():
        raise UserError(
            f"clean={name} is no file and no bundled photograph: there are {', '.join(sorted(bundled))}"
        )
    picture = read_picture(path)
    if channels not in (1, 3):
        raise ValueError(f"MID learns from photographs of 1 or 3 channels, not {channels}")
    pixels = with_channels(Picture(picture.pixels, alpha=picture.alpha), channels)
    return to_model(torch.from_numpy(pixels).movedim(-1, 0)[None])
