"""A split of a data set in memory or mapped from disk, and the choice of samples within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.ranges import to_model
from scoreexp.core.streams import generator
from scoreexp.data.errors import DataError

SplitName = Literal["train", "val", "test"]


class ValueStatistics(NamedTuple):
    """Per-channel statistics of the training values, in model units [-1, 1].

    >>> from scoreexp.data import Photo
    >>> statistics = Photo(name="camera", size=16, channels=1).value_statistics
    >>> len(statistics.mean), -1 <= statistics.minimum < statistics.maximum <= 1
    (1, True)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    minimum: float
    maximum: float


@dataclass(frozen=True, eq=False)
class Split:
    """Samples of one split.

    A memory-mapped ``values`` travels to loader processes as its address, not as a copy.

    >>> split = Split(np.array([[0, 255]], np.uint8), labels=np.array([7]))
    >>> split.samples(np.array([0])), split.classes(np.array([0]))
    (tensor([[-1.,  1.]]), tensor([7]))

    Args:
        values: ``[N, *]``: uint8 in 0..255, or float32 already in model units.
        labels: class of each sample ``[N]``, or None.
        names: what each sample is called (file names, or empty where the format has none).
    """

    values: np.ndarray
    labels: np.ndarray | None = None
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __getstate__(self) -> dict[str, Any]:
        values: Any = self.values
        if isinstance(values, np.memmap):
            values = _MapAddress(str(values.filename), values.dtype.str, values.offset, values.shape)
        return {"values": values, "labels": self.labels, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        values = state["values"]
        if isinstance(values, _MapAddress):
            path, dtype, offset, shape = values
            values = np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=offset, shape=shape)
        self.__dict__.update(state, values=values)

    def samples(self, positions: np.ndarray) -> Tensor:
        """The samples at ``positions`` as float32 in model units."""
        # By numpy, whose arithmetic stays in one thread: torch spreads even small batches over all cores, and
        # on a busy machine waiting for the last one made loading 600 times slower.
        values = np.asarray(self.values[positions])
        if values.dtype == np.uint8:
            values = to_model(values.astype(np.float32) / np.float32(255))
        return torch.from_numpy(values)

    def classes(self, positions: np.ndarray) -> Tensor | None:
        """Labels (long) at ``positions``."""
        return None if self.labels is None else torch.from_numpy(self.labels[positions].astype(np.int64))


class _MapAddress(NamedTuple):
    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]


def choose(
    size: int, *, num_images: int | None = None, indices: Sequence[int] | None = None, half: str | None = None
) -> np.ndarray:
    """Positions of the samples in use, in increasing order except where ``indices`` gives another.

    The two halves are disjoint, cover the split and never depend on a run's seed.

    >>> choose(10, num_images=3)
    array([0, 1, 2])
    >>> halves = choose(10, half="first"), choose(10, half="second")
    >>> sorted(np.concatenate(halves).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    Args:
        size: number of samples in the split.
        num_images: keep the first n (of the half); None keeps all.
        indices: exactly these positions instead.
        half: one of two disjoint random halves.

    Raises:
        DataError: if the choice is empty, contradictory or reaches beyond the split.
    """
    if indices is not None:
        if num_images is not None or half is not None:
            raise DataError(
                "data.indices names the images itself: set data.num_images=null and data.half=null"
            )
        chosen = np.asarray(list(indices), dtype=np.int64)
        outside = chosen[(chosen < 0) | (chosen >= size)]
        if len(chosen) == 0:
            raise DataError("data.indices=[] names no image: give at least one, or null for all")
        if len(outside):
            raise DataError(
                f"data.indices holds {outside[0]}, but the training split has positions 0..{size - 1}"
            )
        return chosen
    if half is None:
        chosen = np.arange(size)
    elif half in ("first", "second"):
        order = torch.randperm(size, generator=generator("half", size)).numpy()
        chosen = np.sort(order[: size // 2] if half == "first" else order[size // 2 :])
    else:
        raise DataError(f"data.half={half}: choose first, second or null")
    if num_images is not None and not 1 <= num_images <= len(chosen):
        raise DataError(
            f"data.num_images={num_images}, but {len(chosen)} training images are there: "
            f"give 1..{len(chosen)}, or null for all"
        )
    if len(chosen) == 0:
        raise DataError(f"data.half={half} of {size} image(s) is empty: use more images, or data.half=null")
    return chosen[:num_images]
