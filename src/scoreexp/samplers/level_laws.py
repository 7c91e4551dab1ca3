r"""Which noise level a noisy sample has: :math:`p(\sigma_k | y)` over levels :math:`\sigma_1 < ... < \sigma_K`.

For :math:`y = x_0 + \sigma_k z` with all levels equally probable, :math:`p(\sigma_k | y) \propto p(y | \sigma_k)`, the
density of the noisy data. It is known for an exact distribution; otherwise a classifier learns it from noisy data.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.networks.classifier import draw_weights
from scoreexp.numerics.oracles import Oracle
from scoreexp.system.network_files import read_network, write_network


class LevelLaw(ABC):
    """Base: the probabilities of the noise levels of noisy samples.

    >>> class AnyLevel(LevelLaw):
    ...     levels = torch.tensor([0.1, 1.0])
    ...     def __call__(self, y):
    ...         return torch.zeros(len(y), 2).log_softmax(1)
    >>> AnyLevel()(torch.zeros(3, 2)).shape
    torch.Size([3, 2])

    Attributes:
        levels: ``sigma [K]``, rising, float64, in units of the data ([-1, 1]).
    """

    levels: Tensor

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """``log p(sigma_k | y)``, ``[B, K]``, of ``y = x_0 + sigma_k z``, ``[B, *]``."""


class ExactLevels(LevelLaw):
    """The law for a known distribution of the data.

    >>> from scoreexp.numerics.oracles import Gaussian
    >>> law = ExactLevels(Gaussian(torch.zeros(2), torch.zeros(2)), torch.tensor([0.1, 1.0]))
    >>> law(torch.tensor([[0.1, 0.1], [1.0, 1.0]])).argmax(1)
    tensor([0, 1])

    Args:
        oracle: the distribution.
        levels: ``sigma [K]``, > 0 and rising.
    """

    def __init__(self, oracle: Oracle, levels: Tensor) -> None:
        self.oracle, self.levels = oracle, levels.to(torch.float64)

    def __call__(self, y: Tensor) -> Tensor:
        k = len(self.levels)
        rows = y.double().repeat_interleave(k, 0)
        log_p = self.oracle.log_prob(rows, torch.ones(len(rows)), self.levels.repeat(len(y)))
        return log_p.reshape(-1, k).log_softmax(1)


class LevelClassifier(nn.Module, LevelLaw):
    """A perceptron of three layers over the flattened sample, scaled to unit size, and the logarithm of its size.

    Enough for points and small images; for larger ones write a ``LevelLaw`` around a network of your own.

    >>> LevelClassifier((1, 4, 4), [0.01, 0.1, 1.0])(torch.zeros(2, 1, 4, 4)).exp().sum(1).round().tolist()
    [1.0, 1.0]

    Args:
        event_shape: shape ``*`` of one sample.
        levels: ``sigma``, > 0 and rising, two or more.
        width: of the hidden layers.

    Raises:
        ValueError: the levels are not > 0 and rising.
    """

    levels: Tensor

    @checked
    def __init__(self, event_shape: Sequence[int], levels: Sequence[float], width: PositiveInt = 128) -> None:
        super().__init__()
        given = torch.tensor([*levels], dtype=torch.float64)
        if len(given) < 2 or not (given[0] > 0 and (given.diff() > 0).all()):
            raise ValueError(f"{len(given)} noise levels: choose two or more > 0 that rise")
        self.event_shape, self.width = tuple(event_shape), width
        self.register_buffer("levels", given)
        self.layers = nn.Sequential(
            nn.Linear(math.prod(self.event_shape) + 2, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, len(given)),
        )

    def forward(self, y: Tensor) -> Tensor:
        if tuple(y.shape[1:]) != self.event_shape:
            raise ValueError(
                f"samples of shape {tuple(y.shape[1:])} for a classifier of noise levels of {self.event_shape}: fit one "
                "with fit_level_classifier to such data"
            )
        flat = y.flatten(1).to(next(self.parameters()))
        size = (flat.square().mean(1, keepdim=True) + 1e-12).sqrt()
        # the size covers decades: its logarithm says the level where noise rules, the bounded value where data do
        given = torch.cat([flat / size.clamp(min=1), size.log(), size.clamp(max=1)], 1)
        logits: Tensor = self.layers(given)
        return logits.double().log_softmax(1)

    def __call__(self, y: Tensor) -> Tensor:
        found: Tensor = nn.Module.__call__(self, y)
        return found


@checked
def fit_level_classifier(
    model: DenoiserBase,
    x_0: Tensor,
    *,
    levels: AtLeastTwo = 32,
    largest: FinitePositiveFloat = 10.0,
    steps: PositiveInt = 2000,
    batch_size: PositiveInt = 256,
    lr: PositiveFloat = 1e-2,
    width: PositiveInt = 128,
    seed: int = 0,
) -> LevelClassifier:
    """A classifier of the noise level of ``x_0 + sigma z``, for the levels of a model. A function of its arguments.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import EDM
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), EDM())
    >>> law = fit_level_classifier(model, torch.randn(100, 2), levels=8, steps=5)
    >>> law.levels[[0, -1]]
    tensor([2.0000e-03, 1.0000e+01], dtype=torch.float64)

    Args:
        model: whose schedule gives the smallest level, and the largest if it is below ``largest``.
        x_0: clean data ``[N, *]`` in the range of the model.
        levels: how many, evenly spaced in their logarithm.
        largest: level, in units of the data.
        steps: of Adam.
        batch_size: samples in a step.
        lr: learning rate; it falls to 0 along a cosine.
        width: of the classifier.
        seed: of weights, batches and noise.

    Raises:
        ValueError: there are no data, or ``largest`` is not above the smallest level.
    """
    if not len(x_0):
        raise ValueError("no samples x_0: give at least one")
    spaced = spaced_levels(model.schedule.sigma_range, levels, largest)
    random = generator(seed, "level classifier")
    x_0 = x_0.to(model.device)
    with torch.inference_mode(False), torch.enable_grad():
        law = LevelClassifier(tuple(x_0.shape[1:]), spaced.tolist(), width)
        draw_weights(law, random)
        law = law.to(x_0.device)
        optimizer = torch.optim.Adam(law.parameters(), lr=lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            rows = torch.randint(len(x_0), (batch_size,), generator=random)
            k = torch.randint(levels, (batch_size,), generator=random)
            noise = torch.randn((batch_size, *x_0.shape[1:]), generator=random).to(x_0)
            y = x_0[rows.to(x_0.device)] + expand_to(spaced[k], noise) * noise
            loss = F.nll_loss(law(y), k.to(x_0.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    return law.eval().requires_grad_(False)


def spaced_levels(sigma_range: tuple[float, float], count: int, largest: float) -> Tensor:
    """``count`` levels, even in their logarithm, from the smallest of a range to its largest, or ``largest`` if smaller.

    >>> spaced_levels((0.01, float("inf")), 4, 10.0)
    tensor([ 0.0100,  0.1000,  1.0000, 10.0000], dtype=torch.float64)

    Raises:
        ValueError: ``largest`` is not above the smallest.
    """
    low, high = sigma_range[0], min(sigma_range[1], largest)
    if not low < high:
        raise ValueError(
            f"largest={largest:.6g} must be above the smallest noise level {low:.6g}: choose sampler.largest larger, or "
            "end the grid at less noise"
        )
    found = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64).exp()
    found[0], found[-1] = low, high
    return found


def save_level_classifier(law: LevelClassifier, path: str | Path) -> None:
    """Write a classifier, whole or not at all."""
    sizes = {"event_shape": list(law.event_shape), "levels": law.levels.tolist(), "width": law.width}
    write_network(path, "level_classifier", law, sizes)


def load_level_classifier(path: str | Path) -> LevelClassifier:
    """Read a classifier that ``save_level_classifier`` wrote; tensors and plain data only are read.

    Raises:
        UserError: the file is missing, or no such classifier.
    """
    remedy = "write one with scoreexp.samplers.save_level_classifier"
    return read_network(path, "level_classifier", LevelClassifier, "classifier of noise levels", remedy)
