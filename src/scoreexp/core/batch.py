"""What the data layer hands to an objective."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch; every field is optional, because some methods have no clean data and some no observation.

    >>> import torch
    >>> batch = Batch(x=torch.zeros(4, 3, 8, 8), index=torch.arange(4))
    >>> batch.cond is None, batch.index
    (True, tensor([0, 1, 2, 3]))

    Attributes:
        x: clean data ``[B, *]`` in [-1, 1].
        y: observed (noisy) data ``[B, *]``, in the units of ``x``.
        cond: class labels ``[B]`` (long), or images ``[B, C', H, W]`` (floating point) that ``x`` is conditioned on; see
            ``are_labels``.
        score: a pre-computed image-plane score field ``[B, 2, H, W]`` (not the pixel-space score).
        index: position of each sample in its data set ``[B]`` (long).
    """

    x: Tensor | None = None
    y: Tensor | None = None
    cond: Tensor | None = None
    score: Tensor | None = None
    index: Tensor | None = None  # type: ignore[assignment]  # hides tuple.index, which nothing needs


def are_labels(cond: Tensor | None) -> bool:
    """Whether ``cond`` holds class labels, which are whole numbers; images that condition a model are floating point."""
    return cond is not None and not cond.is_floating_point()
