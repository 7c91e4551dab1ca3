"""What a value measured on sets of images means: its card travels with it, and unlike values are never ranked."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

import scoreexp
from scoreexp.metrics.catalogue import spec_of
from scoreexp.metrics.features import FeatureExtractor
from scoreexp.metrics.inception import WEIGHTS_SHA256

ROUNDING = "uint8, floor(255 x + 1/2)"


def metric_name(kind: str, extractor: FeatureExtractor, n: int) -> str:
    """The name of a metric of n generated images, such as ``fid_inception_5k`` or ``frechet_random_conv_500``.

    Only the Frechet and kernel distances of the published Inception network are called ``fid`` and ``kid``.

    >>> import scoreexp as se
    >>> se.metrics.metric_name("frechet", se.metrics.PixelFeatures(8), 5000)
    'frechet_pixels8_5k'

    Args:
        kind: name of the value, such as ``frechet`` or ``precision``.
        extractor: what the images were compared by.
        n: number of generated images; whole thousands are written with k.
    """
    if extractor.digest == WEIGHTS_SHA256 and (spec := spec_of(kind)) is not None:
        kind = spec.published or kind
    count = f"{n // 1000}k" if n and n % 1000 == 0 else str(n)
    return f"{kind}_{extractor.name}_{count}"


def library_versions() -> dict[str, str]:
    """Versions of what a value is computed with."""
    return {
        "scoreexp": scoreexp.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class MetricCard:
    """All that must agree for two values to be comparable, and the versions they were computed with.

    >>> import torch
    >>> import scoreexp as se
    >>> pictures, extractor = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), se.metrics.PixelFeatures(1)
    >>> reference = se.metrics.make_reference(lambda: [pictures], extractor, n=4, split="test", recipe="black")
    >>> metric = se.metrics.FrechetDistance(extractor, reference, n=4)
    >>> metric.update(pictures)
    >>> card = metric.results()[0].card
    >>> card.name, card.n_generated, card.split, se.metrics.MetricCard.from_dict(card.to_dict()) == card
    ('frechet_pixels1_4', 4, 'test', True)

    Args:
        name: of the metric, see ``metric_name``.
        n_generated: number of generated images.
        n_reference: number of real ones.
        split: which split of the data the real ones are.
        recipe: their data set and preprocessing.
        shape: of an image, (C, H, W).
        channels: ``colour``, or how grey images were made fit for the extractor.
        extractor: its name.
        extractor_digest: its SHA-256.
        resize: how it resizes.
        rounding: how values became 8-bit ones.
        settings: the metric's own, in words; empty if it has none.
        versions: of the libraries. They move a value by rounding errors only and do not count as a difference.
    """

    name: str
    n_generated: int
    n_reference: int
    split: str
    recipe: str
    shape: tuple[int, int, int]
    channels: str
    extractor: str
    extractor_digest: str
    resize: str
    rounding: str = ROUNDING
    settings: str = ""
    versions: Mapping[str, str] = field(default_factory=library_versions)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "shape": list(self.shape), "versions": dict(self.versions)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricCard:
        """The card of ``to_dict``.

        Raises:
            ValueError: a key is missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            odd = ", ".join(sorted(known ^ set(values)))
            raise ValueError(f"a card has other keys than this version's ({odd}): measure the value again")
        return cls(**{**values, "shape": tuple(values["shape"])})


def card_differences(a: MetricCard, b: MetricCard) -> list[str]:
    """Names of the fields in which two cards differ, versions left out; values are comparable if there is none.

    >>> from dataclasses import replace
    >>> from scoreexp.metrics import MetricCard, card_differences
    >>> card = MetricCard("fid", 100, 100, "test", "CIFAR-10", (3, 32, 32), "colour", "pixels8", "0f", "box means")
    >>> card_differences(card, replace(card, split="train", n_reference=50))
    ['n_reference', 'split']
    """
    return [
        f.name
        for f in fields(MetricCard)
        if f.name != "versions" and getattr(a, f.name) != getattr(b, f.name)
    ]


@dataclass(frozen=True)
class MetricValue:
    """A value, its card, and what a reader must know.

    Values with the same card can be sorted; ``<`` between others raises ValueError.

    >>> from scoreexp.metrics import MetricCard, MetricValue
    >>> card = MetricCard("fid", 100, 100, "test", "CIFAR-10", (3, 32, 32), "colour", "pixels8", "0f", "box means")
    >>> values = [MetricValue(12.5, card), MetricValue(3.25, card, caveat="few images")]
    >>> print(min(values))
    fid 3.25 (few images)

    Args:
        value: the number.
        card: what it is a value of.
        caveat: shown beside it in every table; empty if there is none.
        spread: standard deviation over subsets where the metric has one.
    """

    value: float
    card: MetricCard
    caveat: str = ""
    spread: float | None = None

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.card.name

    def __lt__(self, other: MetricValue) -> bool:
        different = card_differences(self.card, other.card)
        if different:
            first = different[0]
            raise ValueError(
                f"values of {self.name} and {other.name} cannot be ranked: their cards differ in "
                f"{', '.join(different)} ({first}: {getattr(self.card, first)!r} and {getattr(other.card, first)!r}); "
                "measure both alike"
            )
        return self.value < other.value

    def __str__(self) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.4g}"
        return f"{self.name} {self.value:.4g}{spread}" + (f" ({self.caveat})" if self.caveat else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "value": self.value,
            "caveat": self.caveat,
            "spread": self.spread,
            "card": self.card.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MetricValue:
        """The value of ``to_dict``.

        Raises:
            ValueError: the card is of another version.
        """
        return cls(**{**values, "card": MetricCard.from_dict(values["card"])})
