r"""Learned initial noise: a small network moves the noise that sampling starts from to where its label is served better.

1. Pairs: the flow goes down from ``z`` with much guidance and up again with little, both by DDIM,
   :math:`z' = F_{low}^{-1}(F_{high}(z, c), c)`; what the strong guidance did to the image is in ``z'``.
2. A network learns ``z' = z + net(z, c)`` from pairs, and sampling starts there, with the weak guidance or none.

Nothing keeps ``z'`` normal, and noise that is not loses diversity: ``noise_law`` says how far it is for each label, and
every fit reports that of noise it has not seen. Over all labels together it may look normal where it is not for any. The
paper also leaves out pairs whose image a reward likes less; here all are kept.

Reference: Z. Zhou, S. Shao, L. Bai, Z. Xu, B. Han, Z. Xie, "Golden Noise for Diffusion Models: A Learning Framework", 2024,
https://arxiv.org/abs/2411.09502.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.stats import kstest
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.guidance.classifier_free import ClassifierFree
from scoreexp.samplers import DDIM, TimeGrid
from scoreexp.samplers.base import batch_of


class NoiseLaw(NamedTuple):
    """How far noise is from ``N(0, I)`` for each label.

    Attributes:
        p_value: of Kolmogorov and Smirnov's test of all entries of a label against ``N(0, 1)``: the smallest of the K
            labels, times K.
        norm: mean of ``|z|^2 / D``, 1 for normal noise.
        norm_deviations: by how many of its standard deviations, ``sqrt(2 / (B D))``, the norm is off.
        spread: mean variance of the entries about their mean over the samples of a label; 1 for normal noise, less where
            diversity is lost.
    """

    p_value: float
    norm: float
    norm_deviations: float
    spread: float

    @property
    def is_normal(self) -> bool:
        """Whether neither test speaks against it, at a level of about 1e-3 each."""
        return self.p_value > 1e-3 and abs(self.norm_deviations) < 3.3


def noise_law(z: Tensor, cond: Tensor) -> NoiseLaw:
    """The tests of ``z [B, *]`` with the labels ``cond [B]``, two samples or more of each.

    >>> z = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> noise_law(z, torch.arange(500) % 2).is_normal
    True
    """
    flat, labels = z.detach().double().flatten(1).cpu(), cond.cpu()
    parts = [flat[labels == label] for label in labels.unique()]
    p_value = min(
        1.0, len(parts) * min(float(kstest(part.flatten().numpy(), "norm").pvalue) for part in parts)
    )
    norm = flat.square().mean().item()
    off = (norm - 1) / math.sqrt(2 / flat.numel())
    spread = sum(part.var(0).mean().item() * len(part) for part in parts) / len(flat)
    return NoiseLaw(p_value, norm, off, spread)


class NoiseNetwork(nn.Module):
    """``z' = z + net(z, label)``, a perceptron of three layers; it begins as the identity.

    >>> z = torch.randn(3, 1, 4, 4)
    >>> torch.equal(NoiseNetwork((1, 4, 4), num_classes=2)(z, torch.tensor([0, 1, 1])), z)
    True

    Args:
        event_shape: shape ``*`` of one sample.
        num_classes: of the labels.
        width: of the hidden layers.
    """

    @checked
    def __init__(
        self, event_shape: Sequence[int], num_classes: PositiveInt, width: PositiveInt = 128
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        size = math.prod(self.event_shape)
        self.label = nn.Embedding(num_classes, width)
        self.first = nn.Linear(size, width)
        self.layers = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z: Tensor, cond: Tensor) -> Tensor:
        """``z [B, *]``, labels ``[B]`` -> ``[B, *]``."""
        hidden = self.layers(self.first(z.flatten(1)) + self.label(cond))
        moved: Tensor = z + self.last(hidden).reshape(z.shape)
        return moved


@torch.no_grad()
def noise_pairs(
    model: DenoiserBase, z: Tensor, cond: Tensor, grid: TimeGrid, *, high: float = 5.0, low: float = 1.0
) -> Tensor:
    """``z' [B, *]``: down with the guidance ``high`` and up with ``low``, one evaluation or two for each time and way.

    Args:
        model: of classes, whose null label was trained.
        z: noise ``[B, *]``.
        cond: labels ``[B]``.
        grid: of both ways, for the difference of which it must be fine enough.
        high: weight of ``ClassifierFree`` on the way down.
        low: weight on the way up.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
    """
    schedule, times = model.schedule, grid(model.schedule)
    down = DDIM(grid, denoise_last=False)
    x = down(
        ClassifierFree(model, high), schedule.prior_std * z, streams=ImageStreams(range(len(z))), cond=cond
    ).x
    guided, rising = ClassifierFree(model, low), times.flip(0).tolist()
    for t, s in pairwise(rising):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
        x0_hat = guided(x, batch_of(t, x), cond)
        x = alpha_s * x0_hat + sigma_s * eps_from_x0(x0_hat, x, alpha_t, sigma_t)
    return x / schedule.prior_std


@checked
def fit_noise_network(
    model: DenoiserBase,
    event_shape: Sequence[int],
    grid: TimeGrid,
    *,
    pairs: PositiveInt = 2000,
    high: float = 5.0,
    low: float = 1.0,
    steps: PositiveInt = 1000,
    batch_size: PositiveInt = 256,
    lr: PositiveFloat = 3e-3,
    width: PositiveInt = 128,
    seed: int = 0,
) -> tuple[NoiseNetwork, NoiseLaw]:
    """The network, and the law of its ``z'`` for as many noises that it has not seen. A function of its arguments.

    Labels are even. Start sampling at ``schedule.prior_std * network(z, cond)``.

    Args:
        model: of classes, whose null label was trained.
        event_shape: shape ``*`` of one sample.
        grid: of ``noise_pairs``, as are ``high`` and ``low``.
        pairs: how many.
        high: guidance on the way down.
        low: guidance on the way up.
        steps: of Adam.
        batch_size: pairs in a step.
        lr: learning rate; it falls to 0 along a cosine.
        width: of the network.
        seed: of everything that is drawn; never the noise of a sample.

    Raises:
        UserError: the model has no classes, or its null label was not trained.
    """
    shape = tuple(event_shape)
    random = generator(seed, "learned noise")
    guided = ClassifierFree(model, low)  # says what is missing
    classes = int(guided.record["num_classes"])
    cond = (torch.arange(pairs) % classes).to(model.device)
    z, unseen = (
        torch.randn(pairs, *shape, generator=generator(seed, "learned noise", purpose)).to(model.device)
        for purpose in ("pairs", "unseen")
    )
    parts = zip(z.split(batch_size), cond.split(batch_size), strict=True)
    target = torch.cat([noise_pairs(model, *part, grid, high=high, low=low) for part in parts])
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "learned noise", "weights"))
        network = NoiseNetwork(shape, classes, width).to(model.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(pairs, (batch_size,), generator=random).to(model.device)
            loss = (network(z[rows], cond[rows]) - target[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    network = network.eval().requires_grad_(False)
    return network, noise_law(network(unseen, cond), cond)
