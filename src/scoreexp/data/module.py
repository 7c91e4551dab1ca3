"""One DataModule: the keys that every data set shares, and the loaders.

A corpus subclasses ``DataModule`` and says only how one of its splits is opened; order, augmentation,
sharding over ranks and the choice of samples are the same for all. Values are in [-1, 1] from here on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.types import NonNegativeFloat, NonNegativeInt, PositiveInt, Probability
from scoreexp.data.augment import Augmentation
from scoreexp.data.errors import DataError
from scoreexp.data.order import Draw, EvaluationOrder, TrainingOrder
from scoreexp.data.split import Split, SplitName, ValueStatistics, choose

_STATISTICS_SAMPLES = 4096
_SPLITS_OF_STAGE: dict[str | None, tuple[SplitName, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}


class Samples(Dataset[Batch]):
    """Chosen samples of a split, with their classes if asked for; fetched a whole batch at a time.

    >>> split = Split(np.zeros((5, 1, 8, 8), np.uint8), labels=np.arange(5))
    >>> batch = Samples(split, positions=np.array([1, 3, 4]), classes=True)[Draw(np.array([0, 2]))]
    >>> batch.x.shape, batch.cond
    (torch.Size([2, 1, 8, 8]), tensor([1, 4]))
    """

    def __init__(
        self,
        split: Split,
        positions: np.ndarray,
        augmentation: Augmentation | None = None,
        *,
        classes: bool = False,
    ) -> None:
        self.split = split
        self.positions = positions
        self.augmentation = augmentation
        self.classes = classes

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, draw: Draw) -> Batch:
        positions = self.positions[draw.elements]
        x = self.split.samples(positions)
        if self.augmentation is not None and draw.places is not None:
            x = self.augmentation(x, draw.places)
        cond = self.split.classes(positions) if self.classes else None
        return Batch(x=x, cond=cond, index=torch.from_numpy(positions))


class DataModule(pl.LightningDataModule, ABC):
    """Loaders of one data set.

    Batches are ``scoreexp.core.batch.Batch``: ``x`` float32 in [-1, 1], ``cond`` class labels (long) or None,
    ``index`` the position in the split. The training loader is infinite; its batch k depends on ``seed``
    and k only (see ``scoreexp.data.order``). It starts at ``first_batch()``, by default the step of the
    attached trainer.

    >>> class Line(DataModule):
    ...     event_shape = (1,)
    ...     def open_split(self, name):
    ...         return Split(np.linspace(-1, 1, 9, dtype=np.float32)[:, None])
    >>> batch = next(iter(Line(batch_size=9).train_dataloader()))
    >>> sorted(batch.index.tolist()), batch.x.shape
    ([0, 1, 2, 3, 4, 5, 6, 7, 8], torch.Size([9, 1]))

    Args:
        root: folder that holds the data set's files.
        cache: folder for prepared arrays; null is ``<root>/.scoreexp-cache``.
        download: allow network access to fetch missing files.
        num_images: train on the first n images; null is all.
        indices: train on exactly these positions of the training split.
        half: train on one of two disjoint halves of the training split; null is all of it.
        num_val: number of validation images in use; null is all.
        validate_on: ``val`` is the validation split, ``train`` the images that are trained on: it measures how well
            they have been learnt (memorised), as single-image experiments do.
        batch_size: samples per step over all devices.
        num_workers: loader processes per device; 0 loads in the training process.
        augment: flip training images left to right with probability 1/2.
        rotation: rotate training images by an angle uniform in [-rotation, rotation] degrees.
        gray_share: share of the training batches that are gray, of one channel, though the data are in colour; for
            networks that take both.
        on_bad_image: ``error`` stops at an unreadable image, ``skip`` leaves it out and lists it in the
            log.
        seed: names the order of the samples and their augmentation.

    Raises:
        ValueError: if a value is outside its domain.
    """

    @checked
    def __init__(
        self,
        *,
        root: str | None = None,
        cache: str | None = None,
        download: bool = False,
        num_images: PositiveInt | None = None,
        indices: Sequence[int] | None = None,
        half: Literal["first", "second"] | None = None,
        num_val: PositiveInt | None = 16,
        validate_on: Literal["val", "train"] = "val",
        batch_size: PositiveInt = 16,
        num_workers: NonNegativeInt = 0,
        augment: bool = False,
        rotation: NonNegativeFloat = 0.0,
        gray_share: Probability = 0.0,
        on_bad_image: Literal["error", "skip"] = "error",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = None if root is None else Path(root).expanduser()
        self.cache = None if cache is None else Path(cache).expanduser()
        self.download = download
        self.num_images = num_images
        self.indices = indices
        self.half = half
        self.num_val = num_val
        self.validate_on: SplitName = validate_on
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.rotation = rotation
        self.gray_share = gray_share
        self.on_bad_image = on_bad_image
        self.seed = seed
        self.first_batch: Callable[[], int] = self._batches_trained
        self._splits: dict[SplitName, Split] = {}

    def warnings(self) -> list[str]:
        """What a look at the files makes one doubt, in a line each."""
        return []

    @abstractmethod
    def open_split(self, name: SplitName) -> Split:
        """Open a split of the data set, preparing it first where that has not been done."""

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is given, or None for none."""
        return None

    @property
    def names(self) -> Sequence[str]:
        """File names of the training images in use, or empty where the data set has none."""
        names = self.split("train").names
        return [names[position] for position in self.train_positions] if len(names) else ()

    @property
    def train_positions(self) -> np.ndarray:
        """Positions in the training split of the samples trained on."""
        size = len(self.split("train"))
        return choose(size, num_images=self.num_images, indices=self.indices, half=self.half)

    @property
    def value_statistics(self) -> ValueStatistics:
        """Moments per channel and extremes of at most 4096 evenly spaced training samples."""
        positions = self.train_positions
        spaced = np.linspace(0, len(positions) - 1, min(len(positions), _STATISTICS_SAMPLES)).astype(np.int64)
        x = (
            self.split("train")
            .samples(positions[spaced])
            .double()
            .flatten(2 if len(self.event_shape) > 1 else 1)
        )
        channels = x.transpose(0, 1).flatten(1)
        return ValueStatistics(
            mean=tuple(channels.mean(1).tolist()),
            std=tuple(channels.std(1, correction=0).tolist()),
            minimum=float(x.min()),
            maximum=float(x.max()),
        )

    def split(self, name: SplitName) -> Split:
        """The split, opened once."""
        if name not in self._splits:
            self._splits[name] = self.open_split(name)
        return self._splits[name]

    def setup(self, stage: str | None = None) -> None:
        """Open what the stage needs, so that bad input is reported before the first step.

        Where a data set must be prepared first, one process does it and the others wait.
        """
        self.require_shares(self._world_size)
        if stage == "fit":
            _ = self.train_positions
        for name in _SPLITS_OF_STAGE.get(stage, ()):
            self.split(self.validate_on if name == "val" else name)

    def require_shares(self, devices: int) -> None:
        """Refuse a batch that cannot be shared out evenly.

        Raises:
            DataError: names both numbers.
        """
        if self.batch_size % devices:
            raise DataError(
                f"data.batch_size={self.batch_size} is over all devices: "
                f"give a multiple of the {devices} devices in use"
            )

    def train_dataloader(self) -> DataLoader:
        """The infinite training stream."""
        augmentation = None
        if self.augment or self.rotation > 0 or self.gray_share > 0:
            if not isinstance(kind_of(self.event_shape), Images):
                raise DataError(
                    f"data.augment, data.rotation and data.gray_share are for images, not events of {self.event_shape}"
                )
            augmentation = Augmentation(
                self.augment, self.rotation, self.seed, self.gray_share, self.batch_size
            )
        samples = self._samples(self.split("train"), self.train_positions, augmentation)
        order = TrainingOrder(
            samples,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=self._rank,
            world_size=self._world_size,
            first_batch=lambda: self.first_batch(),  # looked up at each start, so that it may be replaced
        )
        return self._loader(samples, order)

    def val_dataloader(self) -> DataLoader:
        """The first ``num_val`` samples to validate on, each once."""
        return self._evaluation_loader(self.validate_on, self.num_val)

    def test_dataloader(self) -> DataLoader:
        """All test samples, each once."""
        return self._evaluation_loader("test", None)

    def _evaluation_loader(self, name: SplitName, limit: int | None) -> DataLoader:
        split = self.split(name)
        positions = self.train_positions if name == "train" else np.arange(len(split))
        samples = self._samples(split, positions[:limit])
        share = max(1, self.batch_size // self._world_size)
        order = EvaluationOrder(samples, batch_size=share, rank=self._rank, world_size=self._world_size)
        return self._loader(samples, order)

    def _samples(
        self, split: Split, positions: np.ndarray, augmentation: Augmentation | None = None
    ) -> Samples:
        return Samples(split, positions, augmentation, classes=self.num_classes is not None)

    def _loader(self, samples: Samples, order: TrainingOrder | EvaluationOrder) -> DataLoader:
        return DataLoader(
            samples,
            batch_size=None,  # a draw of the order is a whole batch
            sampler=order,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer is not None else 0

    def _batches_trained(self) -> int:
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches
