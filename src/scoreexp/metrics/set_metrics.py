"""Metrics of a set of generated samples against a set of real ones, compared as they are: points, or pixels of images."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from scoreexp.metrics.distribution import (
    gaussian_kernel,
    median,
    median_distance,
    memorisation,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
)
from scoreexp.metrics.spec import Measurement, MetricSpec


class SetMetric(ABC):
    """Compares generated samples with those of a split (``needs="points"``) or those trained on (``"training set"``).

    >>> import torch
    >>> from scoreexp.metrics.spec import Measurement, MetricSpec
    >>> class MeanShift(SetMetric):
    ...     spec = MetricSpec("mean_shift", "lower", needs="points", kinds=("points",))
    ...     def __call__(self, generated, real):
    ...         return (Measurement("mean_shift", float((generated.mean(0) - real.mean(0)).norm())),)
    >>> MeanShift()(torch.zeros(5, 2), torch.tensor([[3.0, 4.0]]))[0].value
    5.0
    """

    spec: ClassVar[MetricSpec]

    @abstractmethod
    def __call__(self, generated: Tensor, real: Tensor) -> tuple[Measurement, ...]:
        """Its values, in the order of ``spec.value_names``.

        Args:
            generated: ``[N, *]`` in the unit of the data.
            real: ``[M, *]`` of the same event shape.

        Raises:
            ValueError: event shapes differ, or a set is too small.
        """


class SlicedWassersteinOfPoints(SetMetric):
    """``sliced_wasserstein`` distance along fixed lines; its caveat has that of two sets of real points.

    >>> import torch
    >>> points = torch.arange(8.0).reshape(4, 2)
    >>> round(SlicedWassersteinOfPoints()(points, points)[0].value, 6)
    0.0
    """

    spec = MetricSpec(
        "sliced_wasserstein",
        "lower",
        needs="points",
        kinds=("points",),
        title="sliced Wasserstein distance",
        usual=True,
    )

    def __call__(self, generated: Tensor, real: Tensor) -> tuple[Measurement, ...]:
        n, floor = len(generated), ""
        if len(real) >= 2 * n:
            between = float(sliced_wasserstein(real[:n], real[n:]))
            floor = f"{n} of the real points have {between:.4g} from the others"
        value = float(sliced_wasserstein(generated, real))
        return (Measurement(self.spec.name, value, {"settings": "128 lines, p = 2"}, floor),)


class MMD(SetMetric):
    """Unbiased ``mmd`` with a Gaussian kernel as wide as the median distance of the real points.

    >>> import torch
    >>> points = torch.arange(8.0).reshape(4, 2)
    >>> MMD()(points + 100, points)[0].value > MMD()(points + 1, points)[0].value
    True
    """

    spec = MetricSpec("mmd", "lower", needs="points", kinds=("points",), title="MMD", usual=True)

    def __call__(self, generated: Tensor, real: Tensor) -> tuple[Measurement, ...]:
        width = median_distance(real[::2], real[1::2])
        value = float(mmd(generated, real, kernel=gaussian_kernel(width)))
        settings = {"settings": f"unbiased, Gaussian kernel of width {width:.4g}"}
        return (Measurement(self.spec.name, value, settings, "a squared distance; may be negative"),)


class NearestNeighbour(SetMetric):
    """Are generated samples copies of those trained on? Median distance to the nearest, and the share of copies.

    The share, ``memorisation``, needs two samples that were trained on; it is left out where there is one.

    >>> import torch
    >>> points = torch.arange(8.0).reshape(4, 2)
    >>> [(found.name, found.value) for found in NearestNeighbour()(points[:2], points)]
    [('nearest_neighbour', 0.0), ('memorised_share', 1.0)]
    """

    spec = MetricSpec(
        "nearest_neighbour",
        "neither",
        needs="training set",
        kinds=("pictures", "points"),
        values=(("nearest_neighbour", "neither"), ("memorised_share", "lower")),
    )

    def __call__(self, generated: Tensor, real: Tensor) -> tuple[Measurement, ...]:
        near, copies = self.spec.value_names
        distance = float(median(nearest_neighbours(generated, real).distance))
        found = [Measurement(near, distance, caveat="median distance to the training set")]
        if len(real) > 1:
            share = float(memorisation(generated, real).share)
            what = "those three times nearer to one training sample than to any other"
            found.append(Measurement(copies, share, caveat=what))
        return tuple(found)
