"""What samples are, told by their event shape in this one place."""

from collections.abc import Sequence
from typing import NamedTuple


class Images(NamedTuple):
    """Samples ``[C, H, W]``."""

    channels: int
    height: int
    width: int


class Points(NamedTuple):
    """Samples ``[D]``."""

    dimensions: int


def kind_of(event_shape: Sequence[int] | None) -> Images | Points | None:
    """The kind of samples of this shape; None for others, and where no shape is known.

    >>> kind_of((3, 32, 32))
    Images(channels=3, height=32, width=32)
    >>> kind_of((2,))
    Points(dimensions=2)
    """
    shape = tuple(event_shape or ())
    if len(shape) == 3:
        return Images(*shape)
    return Points(*shape) if len(shape) == 1 else None
