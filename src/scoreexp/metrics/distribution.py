"""Distances between two sets of samples, such as generated and real ones; none needs trained weights.

All of them take any event shape, flatten it, and compare the sets as they are given: points in the plane,
images, or the features of images. A set is a sample of a distribution, so every value depends on the
number of samples and is comparable only with values for the same numbers.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator as stream
from scoreexp.core.types import PositiveFloat, PositiveInt

Kernel = Callable[[Tensor, Tensor], Tensor]  # [N, D], [M, D] -> [N, M]

COPY_RATIO = 1 / 3
_BLOCK = 1024  # rows of a matrix of pairs that are in memory at once
_VALUES = 2**24  # numbers that are in memory at once
_MEDIAN_SAMPLES = 1000
_BY_DIFFERENCES = "donot_use_mm_for_euclid_dist"


class KernelEstimate(NamedTuple):
    """Mean and standard deviation of a kernel distance over subsets, scalars.

    The deviation is that of the values of single subsets about their mean, with the number of subsets as divisor, as
    torchmetrics and torch-fidelity give it. It is not the error of the mean, and not a number for one subset.
    """

    mean: Tensor
    std: Tensor


class Neighbours(NamedTuple):
    """The nearest samples of another set, nearest first: their distances ``[N, k]`` and positions ``[N, k]``."""

    distance: Tensor
    position: Tensor


class Memorisation(NamedTuple):
    """How close each generated sample is to the training set, see ``memorisation``; all ``[N]``.

    Attributes:
        distance: to the nearest training sample.
        position: of that sample in the training set.
        ratio: ``distance`` over the distance to the second nearest, in [0, 1]; 0 for a copy.
        relative: ``distance`` over the median distance of held-out samples to the training set, or None.
    """

    distance: Tensor
    position: Tensor
    ratio: Tensor
    relative: Tensor | None

    @property
    def share(self) -> Tensor:
        """Share of the samples that count as copies: those with a ratio below 1/3."""
        return (self.ratio < COPY_RATIO).double().mean()


class ManifoldOverlap(NamedTuple):
    """``precision``: share of generated samples that could be real; ``recall``: share of real that could be generated."""

    precision: Tensor
    recall: Tensor


@checked
def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: PositiveInt = 128,
    generator: torch.Generator | None = None,
    p: Annotated[float, (">=", 1)] = 2,
) -> Tensor:
    """Sliced Wasserstein distance: the p-mean of the distances of the samples' shadows on random lines.

    ``SW_p(x, y) = (mean over theta of W_p(theta.x, theta.y)^p)^(1/p)``, theta uniform on the unit sphere. On a
    line ``W_p^p`` is the integral over u in (0, 1) of ``|F_x^-1(u) - F_y^-1(u)|^p`` with the sets' quantile
    functions F^-1; these are step functions, so it is exact for sets of different sizes too. The only
    approximation is the number of lines.

    Reference: Sliced and Radon Wasserstein barycenters of measures, N. Bonneel, J. Rabin, G. Peyre, H. Pfister, 2015,
    https://doi.org/10.1007/s10851-014-0506-3

    >>> import torch
    >>> import scoreexp as se
    >>> points = torch.arange(8.0).reshape(8, 1)
    >>> se.metrics.sliced_wasserstein(points, points + 3).round(decimals=4)
    tensor(3., dtype=torch.float64)

    Args:
        x: ``[N, *]`` samples.
        y: ``[M, *]`` samples of the same event shape.
        projections: number of lines.
        generator: draws the lines, on the CPU; None is a fixed stream, so that equal calls give equal values
            and two models are measured along the same lines.
        p: exponent, at least 1.

    Returns:
        A scalar in the samples' unit; 0 if the sets are equal.

    Raises:
        ValueError: event shapes differ, a set is empty or not floating point, or an argument is outside its
            domain.
    """
    x, y = _sets(x, y)
    if generator is None:
        generator = stream("sliced_wasserstein", x.shape[1], projections)
    lines = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    lines = (lines / lines.norm(dim=0)).to(x)
    x, y = ((_precise(v @ lines)).sort(0).values for v in (x, y))
    # Both quantile functions are constant between consecutive multiples of 1/N and 1/M; in units of 1/(N M)
    # these ends are whole numbers.
    n, m = len(x), len(y)
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(1, m) * n]).unique()  # sorted
    start, width = ends[:-1].to(x.device), ends.diff().to(x)
    power = (x[start // m] - y[start // n]).abs() ** p
    return ((width @ power).mean() / (n * m)) ** (1 / p)


@checked
def gaussian_kernel(bandwidth: Annotated[PositiveFloat, "such as median_distance(x, y)"]) -> Kernel:
    """``k(x, y) = exp(-|x - y|^2 / (2 h^2))`` with the bandwidth h > 0 in the samples' unit.

    >>> import torch
    >>> gaussian_kernel(1.0)(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([[1.0000, 0.3679]])
    """
    return lambda x, y: torch.exp(
        -torch.cdist(x, y, compute_mode=_BY_DIFFERENCES).square() / (2 * bandwidth**2)
    )


@checked
def polynomial_kernel(degree: PositiveInt = 3) -> Kernel:
    """``k(x, y) = (x.y / D + 1)^degree`` for vectors of D values; degree 3 is that of the kernel inception distance.

    >>> import torch
    >>> polynomial_kernel(3)(torch.ones(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    tensor([[1., 8.]])
    """
    return lambda x, y: (x @ y.T / x.shape[1] + 1) ** degree


def median_distance(x: Tensor, y: Tensor) -> float:
    """Median distance between different samples of both sets together, the usual bandwidth of a Gaussian kernel.

    It is that of at most 1000 evenly spaced samples of each set. Values of ``mmd`` for two models are comparable
    only with one bandwidth: take that of the real samples for both.

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.median_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]]))
    2.0

    Raises:
        ValueError: as ``mmd``, or the median is 0.
    """
    x, y = _sets(x, y)
    spaced = [
        v[torch.linspace(0, len(v) - 1, min(len(v), _MEDIAN_SAMPLES)).round().long().to(v.device)]
        for v in (x, y)
    ]
    middle = float(median(torch.nn.functional.pdist(_precise(torch.cat(spaced)))))
    if not middle > 0:
        raise ValueError(
            "at least half of the pairs of samples are equal, so their median distance is 0: give a bandwidth"
        )
    return middle


def mmd(x: Tensor, y: Tensor, *, kernel: Kernel | None = None, unbiased: bool = True) -> Tensor:
    """Squared maximum mean discrepancy ``E k(x, x') + E k(y, y') - 2 E k(x, y)``.

    The unbiased estimate leaves out the pairs of a sample with itself; its mean is 0 for equal distributions, so
    it may be negative. The biased one is the squared distance between the sets' mean embeddings: never
    negative, 0 for equal sets, but above the true value on average.

    Reference: A kernel two-sample test, A. Gretton, K. Borgwardt, M. Rasch, B. Schoelkopf, A. Smola, 2012,
    https://jmlr.org/papers/v13/gretton12a.html

    >>> import torch
    >>> import scoreexp as se
    >>> real = torch.arange(8.0).reshape(4, 2)
    >>> kernel = se.metrics.gaussian_kernel(se.metrics.median_distance(real, real))
    >>> near, far = (se.metrics.mmd(real + shift, real, kernel=kernel) for shift in (1, 10))
    >>> bool(near < far)
    True

    Args:
        x: ``[N, *]`` samples.
        y: ``[M, *]`` samples of the same event shape.
        kernel: None is ``gaussian_kernel(median_distance(x, y))``.
        unbiased: which estimate.

    Returns:
        A scalar.

    Raises:
        ValueError: event shapes differ, a set is empty or not floating point, or the unbiased estimate is asked
            for with a set of one sample.
    """
    x, y = _sets(x, y)
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:
        raise ValueError(
            f"the unbiased mmd of sets of {n} and {m} samples: give at least 2 of each, or unbiased=False"
        )
    kernel = kernel or gaussian_kernel(median_distance(x, y))
    x, y = _precise(x), _precise(y)
    within_x, within_y = (_kernel_sum(kernel, v, v, diagonal=not unbiased) for v in (x, y))
    between = _kernel_sum(kernel, x, y, diagonal=True)
    own = int(unbiased)
    return within_x / (n * (n - own)) + within_y / (m * (m - own)) - 2 * between / (n * m)


@checked
def kid(
    x: Tensor,
    y: Tensor,
    *,
    subsets: PositiveInt = 100,
    subset_size: int | None = None,
    generator: torch.Generator | None = None,
) -> KernelEstimate:
    """Kernel (inception) distance: the mean over random subsets of the unbiased ``mmd`` with the cubic kernel.

    Unlike the Frechet distance it is unbiased for any number of samples, and so the one to use for few.
    It is called KID where x and y are features of the Inception network.

    Reference: Demystifying MMD GANs, M. Binkowski, D. J. Sutherland, M. Arbel, A. Gretton, 2018,
    https://arxiv.org/abs/1801.01401

    >>> import torch
    >>> import scoreexp as se
    >>> real = torch.arange(24.0).reshape(12, 2) / 24
    >>> estimate = se.metrics.kid(real + 0.5, real, subsets=10, subset_size=8)
    >>> bool(estimate.mean > 0), bool(estimate.std > 0)
    (True, True)

    Args:
        x: ``[N, *]`` features of generated images.
        y: ``[M, *]`` features of real ones.
        subsets: number of subsets; one is enough, and taken, where it holds all samples of both sets.
        subset_size: samples in a subset of each set, drawn without replacement; None is min(1000, N, M).
        generator: draws the subsets, on the CPU; None is a fixed stream.

    Raises:
        ValueError: as ``mmd``, or an argument is outside its domain.
    """
    x, y = _sets(x, y)
    most = min(len(x), len(y))
    size = min(1000, most) if subset_size is None else subset_size
    if not 2 <= size <= most:
        raise ValueError(
            f"kid got subset_size={size} for {len(x)} and {len(y)} samples: give a size from 2 to the number of samples"
        )
    if generator is None:
        generator = stream("kid", len(x), len(y))
    kernel = polynomial_kernel(3)
    values = []
    for _ in range(1 if size == len(x) == len(y) else subsets):
        chosen = (v[torch.randperm(len(v), generator=generator)[:size].to(v.device)] for v in (x, y))
        values.append(mmd(*chosen, kernel=kernel))
    estimates = torch.stack(values)
    std = estimates.std(correction=0) if len(values) > 1 else estimates.new_tensor(math.nan)
    return KernelEstimate(estimates.mean(), std)


def nearest_neighbours(x: Tensor, y: Tensor, *, k: int = 1) -> Neighbours:
    """The k samples of y that are nearest to each sample of x in Euclidean distance.

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.nearest_neighbours(torch.tensor([[1.0]]), torch.tensor([[4.0], [0.5], [9.0]]), k=2)
    Neighbours(distance=tensor([[0.5000, 3.0000]], dtype=torch.float64), position=tensor([[1, 0]]))

    Args:
        x: ``[N, *]`` samples.
        y: ``[M, *]`` samples of the same event shape.
        k: from 1 to M.

    Raises:
        ValueError: event shapes differ, a set is empty or not floating point, or k is out of its range.
    """
    x, y = _sets(x, y)
    if not 1 <= k <= len(y):
        raise ValueError(
            f"nearest_neighbours got k={k} for {len(y)} samples to choose from: give 1 to {len(y)}"
        )
    found = [_nearest(block, y, k) for block in x.split(_BLOCK)]
    return Neighbours(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor | None = None) -> Memorisation:
    """Are generated samples copies of training samples?

    A sample counts as a copy if it is three times nearer to one training sample than to any other: the ratio of
    its distances to the nearest and the second nearest is below 1/3. It is independent of the unit and needs no
    held-out data, but a training set that holds a sample twice hides its copies. With ``held_out``, the
    distance is also given relative to what is normal for unseen real samples: around 1 is as far from the
    training set as they are, near 0 is a copy.

    Reference: On memorization in diffusion models, X. Gu, C. Du, T. Pang, C. Li, M. Lin, Y. Wang, 2023,
    https://arxiv.org/abs/2310.02664 (with the criterion of T. Yoon et al., 2023)

    >>> import torch
    >>> import scoreexp as se
    >>> train = torch.tensor([[0.0], [4.0], [8.0]])
    >>> found = se.metrics.memorisation(torch.tensor([[4.5], [6.0]]), train)  # the first is nearly a copy
    >>> found.ratio.round(decimals=2), found.share
    (tensor([0.1400, 1.0000], dtype=torch.float64), tensor(0.5000, dtype=torch.float64))

    Args:
        samples: ``[N, *]`` generated samples.
        train: ``[M, *]`` training samples, at least 2, in the same unit.
        held_out: ``[K, *]`` real samples that were not trained on, or None.

    Raises:
        ValueError: event shapes differ, a set is empty or not floating point, or there is only one training
            sample.
    """
    if len(train) < 2:
        raise ValueError(
            f"memorisation got {len(train)} training sample(s); the ratio to the second nearest needs at least 2: use "
            "nearest_neighbours"
        )
    near = nearest_neighbours(samples, train, k=2)
    first, second = near.distance.unbind(1)
    ratio = torch.where(
        second > 0, first / second, torch.ones_like(first)
    )  # two equal ones: as near as each other
    relative = None
    if held_out is not None:
        relative = first / median(nearest_neighbours(held_out, train).distance)
    return Memorisation(first, near.position[:, 0], ratio, relative)


def precision_recall(generated: Tensor, real: Tensor, *, k: int = 3) -> ManifoldOverlap:
    """Precision (quality) and recall (diversity) of generated samples.

    A set's manifold is the union of balls round its samples that reach to the k-th nearest other sample of the
    set. Precision is the share of generated samples inside the real manifold, recall that of real samples
    inside the generated one. Both grow with the number of samples and with k.

    Reference: Improved precision and recall metric for assessing generative models, T. Kynkaanniemi, T. Karras,
    S. Laine, J. Lehtinen, T. Aila, 2019, https://arxiv.org/abs/1904.06991

    >>> import torch
    >>> import scoreexp as se
    >>> real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    >>> se.metrics.precision_recall(torch.tensor([[0.0], [0.5], [1.0], [0.2]]), real, k=1)  # one mode of two
    ManifoldOverlap(precision=tensor(1., dtype=torch.float64), recall=tensor(0.5000, dtype=torch.float64))

    Args:
        generated: ``[N, *]`` features of generated images, N > k.
        real: ``[M, *]`` features of real ones, M > k.
        k: at least 1.

    Raises:
        ValueError: event shapes differ, a set has not more than k samples or is not floating point.
    """
    generated, real = _sets(generated, real)
    if not 1 <= k < min(len(generated), len(real)):
        raise ValueError(
            f"precision_recall got k={k} for {len(generated)} and {len(real)} samples: give k >= 1 and more than k "
            "samples of each"
        )
    return ManifoldOverlap(_share_inside(generated, real, k), _share_inside(real, generated, k))


def median(x: Tensor) -> Tensor:
    """The usual median of all values: of an even number the mean of the middle two (``torch.median`` takes the lower).

    >>> median(torch.tensor([4.0, 1.0, 2.0, 8.0]))
    tensor(3.)
    """
    values = x.flatten().sort().values
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


# Distances are compared here: is a sample inside a ball, which one is nearest. The matrix product that makes many of them
# fast is off by about 1e-7 where samples are equal, as they are after memorisation and mode collapse. It only chooses the
# pairs that may matter; what is compared are distances by differences, from one function for all pairs.


def _share_inside(x: Tensor, manifold: Tensor, k: int) -> Tensor:
    # The nearest of its own set is the sample itself.
    radius = nearest_neighbours(manifold, manifold, k=k + 1).distance[:, k]
    return torch.cat([_inside(block, manifold, radius) for block in x.split(_BLOCK)]).double().mean()


def _inside(x: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Whether each ``x[B, D]`` lies in a ball round one of ``centres[M, D]``: ``[B]``."""
    squared, tolerance = _rough_squares(x, centres)
    excess = squared - radius.square()
    inside = (excess < -tolerance).any(1)
    row, column = (~inside[:, None] & (excess <= tolerance)).nonzero(as_tuple=True)
    for part in range(0, len(row), _BLOCK):
        i, j = row[part : part + _BLOCK], column[part : part + _BLOCK]
        inside[i[_pairwise(x[i], centres[j][:, None])[:, 0] <= radius[j]]] = True
    return inside


def _nearest(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and positions ``[B, k]`` of the k nearest of ``y[M, D]`` to each ``x[B, D]``; of equal ones the first."""
    squared, tolerance = _rough_squares(x, y)
    limit = squared.topk(k, largest=False).values[:, -1:] + 2 * tolerance
    width = int((squared <= limit).sum(1).max())
    candidates = squared.topk(width, largest=False).indices.sort(1).values
    rows = max(1, _VALUES // (width * x.shape[1]))
    parts = zip(x.split(rows), candidates.split(rows), strict=True)
    distance, order = torch.cat([_pairwise(a, y[i]) for a, i in parts]).sort(stable=True, dim=1)
    return distance[:, :k], candidates.gather(1, order[:, :k])


def _rough_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances ``[B, M]`` by a matrix product, and a bound ``[B, 1]`` of their rounding errors."""
    x, y = _precise(x), _precise(y)
    own, other = x.square().sum(1, keepdim=True), y.square().sum(1)
    bound = 4 * (x.shape[1] + 8) * torch.finfo(x.dtype).eps * (own + other.max())
    return own + other - 2 * x @ y.T, bound


def _pairwise(x: Tensor, y: Tensor) -> Tensor:
    """Distances of ``x[B, D]`` to ``y[B, m, D]``: ``[B, m]``, from differences; equal pairs have equal values."""
    return torch.cdist(_precise(x)[:, None], _precise(y), compute_mode=_BY_DIFFERENCES)[:, 0]


def _kernel_sum(kernel: Kernel, x: Tensor, y: Tensor, *, diagonal: bool) -> Tensor:
    total = x.new_zeros(())
    for i, block in enumerate(x.split(_BLOCK)):
        values = kernel(block, y)
        total = total + values.sum()
        if not diagonal:
            total = total - values.diagonal(i * _BLOCK).sum()
    return total


def _precise(x: Tensor) -> Tensor:
    """In double precision where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()


def _sets(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as matrices of one type."""
    if x.ndim < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"the sets have shapes {tuple(x.shape)} and {tuple(y.shape)}; they must be [N, *] and [M, *] with the same "
            "event shape: compare samples of one kind"
        )
    if len(x) == 0 or len(y) == 0:
        raise ValueError(f"the sets have {len(x)} and {len(y)} samples: give at least one of each")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(
            f"the sets have types {x.dtype} and {y.dtype}: give floating point values in one unit, "
            "such as 8-bit values divided by 255"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.flatten(1).to(dtype), y.flatten(1).to(x.device, dtype)
