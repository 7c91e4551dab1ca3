"""Means over samples of values of their log-density under a model."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo
from scoreexp.metrics.spec import MetricSpec


class LikelihoodMetric(ABC):
    """The mean over samples of a value of each one's log-density.

    >>> import torch
    >>> from scoreexp.metrics.spec import MetricSpec
    >>> class NatsPerDim(LikelihoodMetric):
    ...     spec = MetricSpec("nats_per_dim", "lower", needs="likelihood", unit="nats")
    ...     def per_sample(self, log_prob, dimensions):
    ...         return -log_prob / dimensions
    >>> NatsPerDim().per_sample(torch.tensor([-6.0]), 3)
    tensor([2.])
    """

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def per_sample(self, log_prob: Tensor, dimensions: int) -> Tensor:
        """The value of each sample ``[B]``.

        Args:
            log_prob: log-densities ``[B]`` in nats, of data in the [-1, 1] range.
            dimensions: numbers in a sample.
        """


class BitsPerDim(LikelihoodMetric):
    """``bits_per_dim`` of dequantised images of 256 levels.

    >>> import torch
    >>> BitsPerDim().per_sample(torch.zeros(1), 3)  # log2(255 / 2)
    tensor([6.9944])
    """

    spec = MetricSpec("bits_per_dim", "lower", needs="likelihood", unit="8-bit values")

    def per_sample(self, log_prob: Tensor, dimensions: int) -> Tensor:
        return bits_per_dim(log_prob, dimensions)


class NLL(LikelihoodMetric):
    """The negative log-likelihood ``-log p(x)`` of points.

    >>> import torch
    >>> NLL().per_sample(torch.tensor([-1.5]), 2)
    tensor([1.5000])
    """

    spec = MetricSpec("nll", "lower", needs="likelihood", kinds=("points",), unit="nats", title="NLL")

    def per_sample(self, log_prob: Tensor, dimensions: int) -> Tensor:
        return -log_prob


def bits_per_dim(log_prob: Tensor, dimensions: int, levels: int = 256) -> Tensor:
    r"""Bits per dimension of data that were quantised to evenly spaced levels over [-1, 1].

    .. math:: -\frac{\log p(x)}{D \log 2} - \log_2 \frac{2}{\text{levels} - 1}

    An image of 256 levels has them 2/255 apart, so 6.994 bits are added: the change of units from [-1, 1] to levels.

    >>> import torch
    >>> bits_per_dim(torch.zeros(1), 3, levels=5)  # a density of 1, and levels 1/2 apart
    tensor([1.])

    Args:
        log_prob: log-densities ``[B]`` in nats.
        dimensions: numbers ``D`` in a sample.
        levels: number of levels, >= 2.

    Raises:
        ValueError: if there are fewer than two levels.
    """
    return -log_prob / (dimensions * math.log(2)) - math.log2(level_spacing(levels))


@checked
def level_spacing(levels: Annotated[AtLeastTwo, "256 for 8-bit images"]) -> float:
    """The distance of neighbouring ones of evenly spaced levels over [-1, 1].

    >>> level_spacing(5)
    0.5

    Raises:
        ValueError: if there are fewer than two levels.
    """
    return 2 / (levels - 1)
