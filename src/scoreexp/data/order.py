"""Which samples make up which batch, as a function of (seed, step, rank) and of nothing else.

The training stream is an infinite sequence of places p = 0, 1, 2, ...; place p belongs to epoch e = p // N
and holds element p % N of that epoch's permutation. Batch k of global size B is the places kB .. kB + B -
1, so a batch may straddle two epochs, and every batch has the same size even when N < B. A run resumed at
step k continues with the batches that the uninterrupted run would have seen, with nothing to save.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler

from scoreexp.core.streams import generator


class Draw(NamedTuple):
    """One batch to fetch.

    Attributes:
        elements: which of the chosen samples.
        places: their places in the training stream; None outside of it.
    """

    elements: np.ndarray
    places: np.ndarray | None = None


def training_elements(places: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The element (0 .. size - 1) at each place of the training stream of ``seed``.

    >>> elements = training_elements(np.arange(6), size=3, seed=0)
    >>> sorted(elements[:3].tolist()), sorted(elements[3:].tolist())  # two epochs
    ([0, 1, 2], [0, 1, 2])
    """
    if size == 1:  # each place is an epoch of its own
        return np.zeros_like(places)
    epochs, offsets = np.divmod(places, size)
    elements = np.empty_like(places)
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        elements[inside] = _permutation(size, seed, int(epoch))[offsets[inside]]
    return elements


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return torch.randperm(size, generator=generator(seed, "order", epoch)).numpy()


class TrainingOrder(DistributedSampler[Draw]):
    """The infinite stream of training batches of one rank.

    A DistributedSampler, because Lightning leaves those in place and replaces any other under DDP.

    >>> from itertools import islice
    >>> from_the_start = TrainingOrder(range(5), batch_size=2, seed=0)
    >>> resumed = TrainingOrder(range(5), batch_size=2, seed=0, first_batch=lambda: 7)
    >>> next(islice(from_the_start, 7, None)).places, next(iter(resumed)).places
    (array([14, 15]), array([14, 15]))

    Args:
        dataset: the training set, of length N.
        batch_size: samples per step over all ranks; divisible by ``world_size``.
        seed: names the stream.
        rank: takes places kB + rank b .. kB + (rank + 1) b - 1, where b = batch_size / world_size.
        world_size: number of ranks.
        first_batch: called at every start of iteration; the index k of the first batch to give.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_batch: Callable[[], int] = int,
    ) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.size = len(dataset)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.stream_seed = seed
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[Draw]:
        share = self.batch_size // self.num_replicas
        batch = self.first_batch()
        while True:
            first = batch * self.batch_size + self.rank * share
            places = np.arange(first, first + share)
            yield Draw(training_elements(places, self.size, self.stream_seed), places)
            batch += 1

    def __len__(self) -> int:
        raise TypeError("the training stream has no end: limit a run by trainer.max_steps")


class EvaluationOrder(DistributedSampler[Draw]):
    """Every sample once, in order: rank r of w takes samples r, r + w, ..., without padding.

    All ranks see the same number of batches, for each makes them exchange the model's buffers; the last one of a rank
    may be empty.

    >>> order = EvaluationOrder(range(5), batch_size=2, rank=1, world_size=2)
    >>> [draw.elements.tolist() for draw in order]
    [[1, 3], []]
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)
        self.elements = np.arange(rank, len(dataset), world_size)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.batches = -(-len(dataset) // (batch_size * world_size))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, self.batches * self.batch_size, self.batch_size):
            yield Draw(self.elements[start : start + self.batch_size])

    def __len__(self) -> int:
        return self.batches
