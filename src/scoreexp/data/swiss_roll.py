r"""The Swiss Roll: points in the plane along a spiral, with noise.

.. math:: x = r(u) (\cos\theta, \sin\theta) + s z, \quad \theta = 3\pi (u + 1/2), \quad r = 0.9 \theta /
(9\pi/2)

with :math:`u` uniform on a grid of 1000 values in (0, 1) and :math:`z` standard normal: a dense Gaussian
mixture, so that its score is known exactly at every noise level.

Reference: the toy distribution of Deep unsupervised learning using nonequilibrium thermodynamics, J.
    Sohl-Dickstein,
E. Weiss, N. Maheswaranathan, S. Ganguli, 2015, https://arxiv.org/abs/1503.03585
"""

import math
from typing import Annotated, Any

import torch

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.data.module import DataModule
from scoreexp.data.split import Split, SplitName
from scoreexp.numerics.oracles import GaussianMixture

_COMPONENTS = 1000
_OUTER_RADIUS = 0.9


class SwissRoll(DataModule):
    """Independent draws for training, validation and test; ``oracle()`` is the distribution itself.

    >>> data = SwissRoll(points=100, batch_size=8)
    >>> next(iter(data.train_dataloader())).x.shape, data.oracle().event_shape
    (torch.Size([8, 2]), (2,))

    Args:
        points: number of training points; a tenth as many each for validation and test.
        noise: standard deviation ``s`` about the spiral, in model units; the spiral reaches the radius 0.9.
        data_seed: names the draws. It is apart from ``seed``, so that runs of several seeds share their data.
        common: the keys of ``DataModule``.
    """

    @checked
    def __init__(
        self,
        *,
        points: PositiveInt = 10_000,
        noise: Annotated[PositiveFloat, "0.02 is a thin roll"] = 0.02,
        data_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.points = points
        self.noise = noise
        self.data_seed = data_seed

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (2,)

    def oracle(self) -> GaussianMixture:
        """The exact distribution of the points."""
        u = (torch.arange(_COMPONENTS, dtype=torch.float64) + 0.5) / _COMPONENTS
        theta = 3 * math.pi * (u + 0.5)
        radius = _OUTER_RADIUS * theta / (4.5 * math.pi)
        means = radius[:, None] * torch.stack([theta.cos(), theta.sin()], dim=1)
        ones = torch.ones(_COMPONENTS, dtype=torch.float64)
        return GaussianMixture(weights=ones, means=means, variances=self.noise**2 * ones)

    def open_split(self, name: SplitName) -> Split:
        count = self.points if name == "train" else max(1, self.points // 10)
        points = self.oracle().sample(count, generator(self.data_seed, "swiss roll", name))
        return Split(points.float().numpy())
