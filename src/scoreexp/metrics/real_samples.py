"""The real samples that generated ones are compared with."""

import numpy as np

from scoreexp.core.errors import UserError
from scoreexp.data.module import DataModule
from scoreexp.data.split import Split, SplitName
from scoreexp.metrics.features import FeatureExtractor
from scoreexp.metrics.reference import Reference, make_reference, split_digest, split_images


class TooFewPicturesError(UserError):
    """Generated images cannot be compared with a single real one."""


def real_samples(data: DataModule, split: SplitName, n: int | None) -> tuple[Split, np.ndarray]:
    """A split and the positions of the samples that generated ones are compared with: the first n, or all.

    Of the training split only the samples that are trained on count.
    """
    chosen = data.split(split)
    positions = data.train_positions if split == "train" else np.arange(len(chosen))
    return chosen, positions[:n]


def data_recipe(data: DataModule, split: Split, positions: np.ndarray) -> str:
    """The data set, its shape and a digest of the chosen samples."""
    shape = " x ".join(str(side) for side in data.event_shape)
    return f"{type(data).__name__}, {shape}, {split_digest(split, positions)}"


def reference_of(
    data: DataModule, extractor: FeatureExtractor, split: SplitName, n: int | None, *, keep_features: bool
) -> Reference:
    """Features of real images, kept in the data set's own cache folder if it has one.

    Raises:
        TooFewPicturesError: there are fewer than two images.
    """
    chosen, positions = real_samples(data, split, n)
    if len(positions) < 2:
        raise TooFewPicturesError(
            f"generated images are to be compared with {len(positions)} real one(s) of the {split} split: "
            "at least 2 are needed, take other data (data.crop=random for photographs)"
        )
    cache = data.cache or (None if data.root is None else data.root / ".scoreexp-cache")
    return make_reference(
        lambda: split_images(chosen, positions),
        extractor,
        n=len(positions),
        split=split,
        recipe=data_recipe(data, chosen, positions),
        keep_features=keep_features,
        cache=cache,
    )
