"""Denoising score matching without descent: the last layer of random features solved for in closed form."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.data import DataModule
from scoreexp.lit.module import ScoreModule
from scoreexp.networks import RandomFeatures

_BATCH = 4096  # pairs at once


class RidgeScore(ScoreModule):
    """The baseline without descent: ridge regression of the network's output ``F`` on noisy samples.

    Pairs are training samples drawn at random, times of the time law and noise; the loss is that of ``F``, which is
    denoising score matching with the weight ``1 / c_out^2``. Objective and optimiser are not used.

    >>> import torch
    >>> from scoreexp.data import SwissRoll
    >>> from scoreexp.denoisers import Denoiser, X0Prediction
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, X0Weighting
    >>> from scoreexp.schedules import VP
    >>> module = RidgeScore(
    ...     pairs=100,
    ...     denoiser=Denoiser(RandomFeatures(event_shape=(2,), width=16), X0Prediction(), VP()),
    ...     objective=DenoisingScoreMatching(X0Weighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> module.prepare(SwissRoll(points=30))
    >>> bool(module.denoiser.network.head.weight.any())
    True

    Args:
        pairs: noisy samples of the regression.
        ridge: see ``RandomFeatures.solve``.
        common: of ``ScoreModule``.
    """

    needs_training: ClassVar[bool] = False

    @checked
    def __init__(
        self, *, pairs: PositiveInt = 65536, ridge: FinitePositiveFloat = 1e-6, **common: Any
    ) -> None:
        super().__init__(**common)
        self.pairs, self.ridge = pairs, ridge

    def prepare(self, data: DataModule) -> None:
        """Solve for the last layer.

        Raises:
            UserError: the network is not ``RandomFeatures``.
        """
        network = self.denoiser.network
        if not isinstance(network, RandomFeatures):
            raise UserError(
                f"model=ridge solves for random features, and the network is {type(network).__name__}: set "
                "network=random_features with it"
            )
        network.solve(self._pairs(data), self.ridge)
        if self.averaged is not None:
            self.averaged.load_state_dict(self.denoiser.state_dict())

    def _pairs(self, data: DataModule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs of the network, its noise levels and what it should say."""
        split, positions, schedule = data.split("train"), data.train_positions, self.denoiser.schedule
        for first in range(0, self.pairs, _BATCH):
            n = min(_BATCH, self.pairs - first)
            stream = generator(self.seed, "ridge", first)
            x = split.samples(positions[torch.randint(len(positions), (n,), generator=stream).numpy()])
            scales = schedule(self.time_law.sample(n, schedule, stream))
            alpha, sigma = (expand_to(v, x) for v in scales)
            x_t = alpha * x + sigma * torch.randn(x.shape, generator=stream)
            c = self.denoiser.preconditioning(*scales)
            target = (x - expand_to(c.c_skip, x) * x_t) / expand_to(c.c_out, x)
            yield expand_to(c.c_in, x) * x_t, c.c_noise, target
