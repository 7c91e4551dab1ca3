"""Distances between generated and real images as torchmetrics objects that are right on any number of devices.

Every generated image has a number from 0 to n - 1. Devices draw disjoint numbers; images beyond n are left
out, and a value is given only when every number was counted exactly once. It does therefore not depend on the
number of devices or on how images were put into batches.

Computing is done in double precision: on devices without it (Apple's) leave the metric on the CPU; images may
lie anywhere, they are moved to the extractor's device.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, PositiveInt
from scoreexp.metrics.card import MetricCard, MetricValue, metric_name
from scoreexp.metrics.distribution import (
    KernelEstimate,
    ManifoldOverlap,
    kid,
    precision_recall,
    sliced_wasserstein,
)
from scoreexp.metrics.features import FeatureExtractor, as_bytes
from scoreexp.metrics.frechet import FeatureStatistics
from scoreexp.metrics.reference import Reference
from scoreexp.metrics.spec import MetricSpec


class SampleMetric(Metric):
    """Compares n generated images with a reference by the features of one extractor.

    >>> import torch
    >>> import scoreexp as se
    >>> class MeanShift(se.metrics.SampleMetric):
    ...     spec = se.metrics.MetricSpec("mean_shift", "lower", needs="pictures")
    ...     def __init__(self, extractor, reference, n):
    ...         super().__init__(extractor, reference, n)
    ...         self.add_state("total", torch.zeros(extractor.dimension), dist_reduce_fx="sum")
    ...     def add_features(self, features, index):
    ...         self.total += features.sum(0)
    ...     def compute(self):
    ...         self.require_all()
    ...         return (self.total / self.n - self.reference.statistics.mean).norm()
    ...     def results(self):
    ...         return (self._with_card(self.spec.name, self.compute()),)
    >>> extractor, real = se.metrics.PixelFeatures(1), torch.zeros(4, 3, 8, 8)
    >>> reference = se.metrics.make_reference(lambda: [real], extractor, n=4, split="test", recipe="black")
    >>> metric = MeanShift(extractor, reference, n=2)
    >>> metric.update(torch.full((2, 3, 8, 8), 0.6))
    >>> print(metric.results()[0])
    mean_shift_pixels1_2 1.039

    Args:
        extractor: the one that the reference was made with.
        reference: features of the real images.
        n: number of generated images.

    Raises:
        ValueError: the reference was made with another extractor, or n is below 2.
    """

    is_differentiable = False
    full_state_update = False
    spec: ClassVar[MetricSpec]
    needs_features: ClassVar[bool] = False  # of every image, not only their moments
    seen: Tensor

    @checked
    def __init__(self, extractor: FeatureExtractor, reference: Reference, n: AtLeastTwo) -> None:
        super().__init__()
        if reference.extractor_digest != extractor.digest:
            raise ValueError(
                f"the reference was made with extractor {reference.extractor} ({reference.extractor_digest[:16]}), "
                f"not {extractor.name} ({extractor.digest[:16]}): make it with the same"
            )
        self.extractor, self.reference, self.n = extractor, reference, n
        self._next = 0
        self.add_state("seen", torch.zeros(n, dtype=torch.int32), dist_reduce_fx="sum")

    def update(self, images: Tensor, index: Tensor | None = None) -> None:
        """Count a batch of generated images.

        Args:
            images: ``[B, C, H, W]``, uint8 or in [0, 1], of the reference's shape.
            index: ``[B]`` whole numbers >= 0, the number of each image among all; None counts them as they
                come, which only a single process can.

        Raises:
            ValueError: values outside [0, 1], another shape than the reference's, or no index on several devices.
        """
        if tuple(images.shape[1:]) != self.reference.shape:
            raise ValueError(
                f"generated images have shape {tuple(images.shape[1:])}, the reference {self.reference.shape}: "
                "compare images of one size"
            )
        if index is None:
            if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
                raise ValueError("several devices generate images: give the index of each among all")
            index = torch.arange(self._next, self._next + len(images))
            self._next += len(images)
        kept = index.cpu() < self.n
        images, index = as_bytes(images)[kept.to(images.device)], index.cpu()[kept].to(self.seen.device)
        if len(index) == 0:
            return
        self.seen.index_add_(0, index, torch.ones_like(index, dtype=self.seen.dtype))
        self.add_features(self.extractor(images).to(self.seen.device), index)

    @abstractmethod
    def add_features(self, features: Tensor, index: Tensor) -> None:
        """Add ``features[B, D]`` of the images numbered ``index[B]`` to the state."""

    @abstractmethod
    def results(self) -> tuple[MetricValue, ...]:
        """The values with their cards, in the order of ``spec.value_names``; on several devices all must call it."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the values are called, known before anything is drawn."""
        return tuple(metric_name(name, self.extractor, self.n) for name in self.spec.value_names)

    def reset(self) -> None:
        """Forget all images."""
        super().reset()
        self._next = 0

    def require_all(self) -> None:
        """Refuse to give a value unless every image was counted once.

        Raises:
            ValueError: otherwise.
        """
        wrong = (self.seen != 1).nonzero().flatten()
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"{type(self).__name__} of {self.n} images: {len(wrong)} were not counted exactly once, such as "
                f"number {first} ({int(self.seen[first])} times): generate each number from 0 to {self.n - 1} once"
            )

    def _with_card(
        self, kind: str, value: Tensor, *, settings: str = "", caveat: str = "", spread: Tensor | None = None
    ) -> MetricValue:
        """``value`` with its card and caveats."""
        grey = self.reference.shape[0] == 1
        card = MetricCard(
            name=metric_name(kind, self.extractor, self.n),
            n_generated=self.n,
            n_reference=self.reference.statistics.count,
            split=self.reference.split,
            recipe=self.reference.recipe,
            shape=self.reference.shape,
            channels="grey, repeated three times" if grey else "colour",
            extractor=self.extractor.name,
            extractor_digest=self.extractor.digest,
            resize=self.extractor.resize,
            settings=settings,
        )
        caveats = [caveat, "grey images: not comparable with values of colour images" if grey else ""]
        return MetricValue(
            float(value), card, "; ".join(filter(None, caveats)), None if spread is None else float(spread)
        )


class FrechetDistance(SampleMetric):
    """``frechet_distance`` between the features' moments: the FID if the extractor is the published network.

    With no more images than features have dimensions the covariance is singular and the value much too large;
    it is given with a caveat.

    >>> import torch
    >>> import scoreexp as se
    >>> extractor, real = se.metrics.PixelFeatures(1), torch.rand(4, 3, 8, 8)
    >>> reference = se.metrics.make_reference(lambda: [real], extractor, n=4, split="test", recipe="random values")
    >>> metric = se.metrics.FrechetDistance(extractor, reference, n=4)
    >>> metric.update(real)
    >>> round(metric.compute().item(), 6), metric.names
    (0.0, ('frechet_pixels1_4',))
    """

    spec = MetricSpec("frechet", "lower", needs="pictures", usual=True, published="fid")
    total: Tensor
    outer: Tensor

    @checked
    def __init__(self, extractor: FeatureExtractor, reference: Reference, n: AtLeastTwo) -> None:
        super().__init__(extractor, reference, n)
        size = extractor.dimension
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("outer", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")

    def add_features(self, features: Tensor, index: Tensor) -> None:
        batch = FeatureStatistics.of(features)
        self.total += batch.total
        self.outer += batch.outer

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        self.require_all()
        generated = FeatureStatistics(self.n, self.total.cpu(), self.outer.cpu())
        return self.reference.statistics.frechet_distance(generated)

    def results(self) -> tuple[MetricValue, ...]:
        fewest = min(self.n, self.reference.statistics.count)
        caveat = ""
        if fewest <= self.extractor.dimension:
            caveat = (
                f"{fewest} images for {self.extractor.dimension} feature dimensions: the covariance is singular and "
                "the value biased upwards, so compare it only for equal n, or use the kernel distance"
            )
        return (self._with_card(self.spec.name, self.compute(), caveat=caveat),)


class _FeatureMetric(SampleMetric):
    """Keeps all features; at the end they are gathered from all devices and put in order."""

    needs_features = True
    features: list[Tensor]
    index: list[Tensor]

    def __init__(self, extractor: FeatureExtractor, reference: Reference, n: AtLeastTwo) -> None:
        super().__init__(extractor, reference, n)
        if reference.features is None:
            raise ValueError(
                f"{type(self).__name__} needs all features of the reference, which holds only their moments: make it "
                "with keep_features=True"
            )
        self.real_features = reference.features
        self.add_state("features", [], dist_reduce_fx="cat")
        self.add_state("index", [], dist_reduce_fx="cat")

    def add_features(self, features: Tensor, index: Tensor) -> None:
        self.features.append(features)
        self.index.append(index)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        # A device without images must still take part in the gathering, with arrays of the right type.
        device = self.seen.device
        self.add_features(
            torch.zeros(0, self.extractor.dimension, device=device),
            torch.zeros(0, dtype=torch.long, device=device),
        )
        super().sync(*args, **kwargs)

    def both(self) -> tuple[Tensor, Tensor]:
        """Generated features in the order of their numbers, and the real ones, on one device."""
        self.require_all()
        features, index = (torch.cat(v) if isinstance(v, list) else v for v in (self.features, self.index))
        return features[index.argsort()], self.real_features.to(features.device)


class KernelDistance(_FeatureMetric):
    """``kid``: unbiased for any number of images; called KID if the extractor is the published Inception network.

    >>> import torch
    >>> import scoreexp as se
    >>> extractor, real = se.metrics.PixelFeatures(1), torch.zeros(4, 3, 8, 8)
    >>> reference = se.metrics.make_reference(
    ...     lambda: [real], extractor, n=4, split="test", recipe="black", keep_features=True)
    >>> metric = se.metrics.KernelDistance(extractor, reference, n=4)
    >>> metric.update(real + 1)
    >>> metric.compute().mean  # (1 + 1)^3 + 1 - 2
    tensor(7., dtype=torch.float64)

    Args:
        extractor: the one that the reference was made with.
        reference: features of the real images, all kept.
        n: number of generated images.
        subsets: number of random subsets.
        subset_size: images in each; null is min(1000, n, number of real ones).
    """

    spec = MetricSpec("kernel", "lower", needs="pictures", usual=True, published="kid")

    @checked
    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference,
        n: AtLeastTwo,
        subsets: PositiveInt = 100,
        subset_size: PositiveInt | None = None,
    ) -> None:
        super().__init__(extractor, reference, n)
        most = min(n, reference.statistics.count)
        self.subsets = subsets
        self.subset_size = min(1000, most) if subset_size is None else subset_size
        if not 2 <= self.subset_size <= most:
            raise ValueError(
                f"KernelDistance got subset_size={subset_size}: give a size "
                f"from 2 to {most}, the smaller number of images"
            )

    def compute(self) -> KernelEstimate:
        """Mean and standard deviation over the subsets."""
        generated, real = self.both()
        return kid(generated, real, subsets=self.subsets, subset_size=self.subset_size)

    def results(self) -> tuple[MetricValue, ...]:
        estimate = self.compute()
        settings = f"cubic kernel, {self.subsets} subsets of {self.subset_size}"
        spread = None if estimate.std.isnan() else estimate.std
        return (self._with_card(self.spec.name, estimate.mean, settings=settings, spread=spread),)


class PrecisionRecall(_FeatureMetric):
    """``precision_recall`` of the generated images.

    >>> import torch
    >>> import scoreexp as se
    >>> extractor = se.metrics.PixelFeatures(1)
    >>> real = torch.tensor([0.0, 0.2, 0.8, 1.0]).reshape(4, 1, 1, 1).expand(4, 3, 8, 8)
    >>> reference = se.metrics.make_reference(
    ...     lambda: [real], extractor, n=4, split="test", recipe="grey levels", keep_features=True)
    >>> metric = se.metrics.PrecisionRecall(extractor, reference, n=2, k=1)
    >>> metric.update(real[:2])
    >>> [(value.name, value.value) for value in metric.results()]
    [('precision_pixels1_2', 1.0), ('recall_pixels1_2', 0.5)]

    Args:
        extractor: the one that the reference was made with.
        reference: features of the real images, all kept.
        n: number of generated images.
        k: neighbours that a ball reaches to.
    """

    spec = MetricSpec(
        "precision_recall",
        "higher",
        needs="pictures",
        values=(("precision", "higher"), ("recall", "higher")),
    )

    @checked
    def __init__(
        self, extractor: FeatureExtractor, reference: Reference, n: AtLeastTwo, k: PositiveInt = 3
    ) -> None:
        super().__init__(extractor, reference, n)
        most = min(n, reference.statistics.count) - 1
        if k > most:
            raise ValueError(
                f"PrecisionRecall got k={k}: give 1 to {most}, less than the smaller number of images"
            )
        self.k = k

    def compute(self) -> ManifoldOverlap:
        """Precision and recall."""
        return precision_recall(*self.both(), k=self.k)

    def results(self) -> tuple[MetricValue, ...]:
        overlap = self.compute()
        settings = f"k = {self.k}"
        return tuple(
            self._with_card(name, value, settings=settings)
            for name, value in zip(self.spec.value_names, overlap, strict=True)
        )


class SlicedWasserstein(_FeatureMetric):
    """``sliced_wasserstein`` distance of the features along fixed lines.

    >>> import torch
    >>> import scoreexp as se
    >>> extractor, real = se.metrics.PixelFeatures(1), torch.rand(4, 3, 8, 8)
    >>> reference = se.metrics.make_reference(
    ...     lambda: [real], extractor, n=4, split="test", recipe="random values", keep_features=True)
    >>> metric = se.metrics.SlicedWasserstein(extractor, reference, n=4)
    >>> metric.update(real)
    >>> metric.compute()
    tensor(0., dtype=torch.float64)

    Args:
        extractor: the one that the reference was made with.
        reference: features of the real images, all kept.
        n: number of generated images.
        projections: number of lines.
    """

    spec = MetricSpec("sliced_wasserstein", "lower", needs="pictures", title="sliced Wasserstein distance")

    @checked
    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Reference,
        n: AtLeastTwo,
        projections: PositiveInt = 128,
    ) -> None:
        super().__init__(extractor, reference, n)
        self.projections = projections

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        return sliced_wasserstein(*self.both(), projections=self.projections)

    def results(self) -> tuple[MetricValue, ...]:
        settings = f"p = 2, {self.projections} projections"
        return (self._with_card(self.spec.name, self.compute(), settings=settings),)
