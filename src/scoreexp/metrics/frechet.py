"""Frechet distance between the Gaussians with the moments of two sets of features.

The published FID (M. Heusel et al., 2017) is this distance for the features of one particular network, see
``scoreexp.metrics.inception``, and a number of samples; with other features it is another quantity of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> Tensor:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    ``|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2``. The last trace is the sum of the singular
    values of ``C1^1/2 C2^1/2``, with the symmetric roots from eigenvalues. Unlike the root of the product
    ``C1 C2``, which is not symmetric, this is exact for covariances of any rank. Eigenvalues below the
    rounding error of the largest count as 0. It is computed on the CPU in double precision.

    Reference: GANs trained by a two time-scale update rule converge to a local Nash equilibrium, M. Heusel,
    H. Ramsauer, T. Unterthiner, B. Nessler, S. Hochreiter, 2017, https://arxiv.org/abs/1706.08500

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.frechet_distance(torch.zeros(2), torch.eye(2), torch.ones(2), 4 * torch.eye(2))
    tensor(4., dtype=torch.float64)

    Args:
        mean1, mean2: ``[D]``.
        covariance1, covariance2: ``[D, D]``, symmetric and positive semidefinite.

    Returns:
        A scalar (float64), at least 0.

    Raises:
        ValueError: the shapes do not fit, or a value is not finite.
    """
    moments = tuple(v.to("cpu", torch.float64) for v in (mean1, covariance1, mean2, covariance2))
    m1, c1, m2, c2 = moments
    size = len(m1) if m1.ndim else 0
    if [tuple(v.shape) for v in moments] != [(size,), (size, size)] * 2:
        raise ValueError(
            f"frechet_distance got shapes {[tuple(v.shape) for v in moments]}: give means [D] and covariances [D, D] "
            "of features of one extractor"
        )
    if not all(bool(v.isfinite().all()) for v in moments):
        raise ValueError(
            "frechet_distance got moments that are not finite: find their origin in the features"
        )
    cross = torch.linalg.svdvals(_root(c1).T @ _root(c2)).sum()
    return ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).clamp(min=0)


def _root(covariance: Tensor) -> Tensor:
    """``R[D, rank]`` with ``R R^T`` the covariance: the symmetric root up to a rotation, which leaves singular
    values as they are."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, sum and sum of outer products of features, in double precision: sums over parts of a set add up.

    >>> import torch
    >>> import scoreexp as se
    >>> features = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    >>> parts = [se.metrics.FeatureStatistics.of(features[:1]), se.metrics.FeatureStatistics.of(features[1:])]
    >>> whole = parts[0] + parts[1]
    >>> whole.count, whole.mean
    (3, tensor([2., 0.], dtype=torch.float64))

    Args:
        count: number n of samples.
        total: ``[D]``, sum of the features f.
        outer: ``[D, D]``, sum of ``f f^T``.
    """

    count: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """The statistics of ``features[B, D]``."""
        f = features.double()
        return cls(len(f), f.sum(0), f.T @ f)

    def __add__(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets together."""
        return FeatureStatistics(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Tensor:
        """``[D]``."""
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """``[D, D]`` with the divisor n - 1.

        Raises:
            ValueError: there are fewer than 2 samples.
        """
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count} sample(s) was asked for: give at least 2")
        return (self.outer - torch.outer(self.total, self.mean)) / (self.count - 1)

    def frechet_distance(self, other: FeatureStatistics) -> Tensor:
        """``frechet_distance`` between both sets' moments."""
        return frechet_distance(self.mean, self.covariance, other.mean, other.covariance)
