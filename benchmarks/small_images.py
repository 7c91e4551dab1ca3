"""Small images, small networks and a plain training loop for the studies of what a model knows."""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import scoreexp as se
from scoreexp.core.batch import Batch
from scoreexp.core.streams import generator
from scoreexp.data import CIFAR10, MNIST
from scoreexp.objectives import (
    DenoisingScoreMatching,
    EDMWeighting,
    LogNormalNoise,
    Objective,
    StableTargetScoreMatching,
)

DATA = {"mnist": MNIST, "cifar10": CIFAR10}
TARGETS = ("plain", "stable")
REFERENCE = 256  # samples that stable targets average over, fewer where there are fewer
FEW = 4096  # held-out images at most


class Images(NamedTuple):
    """In [-1, 1]: training images ``[N, C, H, W]`` in a fixed random order, and held-out ones."""

    train: Tensor
    held_out: Tensor


def read_images(name: str, root: Path, pool: int) -> Images:
    """A data set with sides averaged down by ``pool``."""
    data = DATA[name](root=str(root / name))
    train, test = data.split("train"), data.split("test")
    order = torch.randperm(len(train), generator=generator("study", name)).numpy()
    parts = train.samples(order), test.samples(np.arange(min(len(test), FEW)))
    return Images(*(F.avg_pool2d(part, pool) if pool > 1 else part for part in parts))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The network and its training."""
    parser.add_argument(
        "--pool", type=int, default=1, help="sides of images are averaged down by this factor"
    )
    parser.add_argument("--network", choices=("unet", "mlp"), default="unet")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[32, 64, 96], help="one number for the perceptron"
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 2])
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)


def make_model(shape: tuple[int, ...], options: argparse.Namespace, seed: int) -> se.denoisers.Denoiser:
    """A learned Wiener filter with a lean U-Net, or a perceptron; EDM's preconditioning and schedule."""
    torch.manual_seed(seed)
    widths, blocks = tuple(options.widths), tuple(options.blocks)
    network: nn.Module
    if options.network == "mlp":
        network = se.networks.MLP(event_shape=shape, width=widths[0], blocks=blocks[0])
    else:
        inner = partial(se.networks.ModulatedUNet, widths=widths, blocks=blocks, bands=min(3, len(widths)))
        network = se.networks.SpectralResidual(network=inner, event_shape=shape)
    return se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.EDM())


def objective_of(target: str, size: int) -> Objective:
    """Denoising score matching on ``plain`` or ``stable`` targets."""
    if target == "plain":
        return DenoisingScoreMatching(EDMWeighting())
    return StableTargetScoreMatching(EDMWeighting(), reference_size=min(REFERENCE, size))


def train(
    model: se.denoisers.Denoiser,
    x: Tensor,
    objective: Objective,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    decay: bool = True,
) -> Iterator[int]:
    """Train by Adam; yields the number of steps done after each, with the learning rate falling to 0 where ``decay``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    law, fetch = LogNormalNoise(), _fetch(x)
    objective.prepare(len(x), fetch)
    for step in range(steps):
        stream = generator("study", seed, step)
        rows = torch.randint(len(x), (batch,), generator=stream)
        t = law.sample(batch, model.schedule, stream)
        noise = torch.randn(batch, *x.shape[1:], generator=stream)
        model.train()
        loss = objective(model, fetch(rows), t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        if decay:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.step()
        model.eval()
        yield step + 1


def _fetch(x: Tensor) -> Callable[[Tensor], Batch]:
    return lambda rows: Batch(x=x[rows], index=rows)
