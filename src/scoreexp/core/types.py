"""Types of configuration values: a constructor's annotations are the schema of its yaml file.

The aliases carry their range in plain data, so that a checker can read a signature from the source text and refuse
a bad value before anything heavy is imported. Bounds are written as (operator, bound) pairs, all of which must hold.
"""

from dataclasses import dataclass
from typing import Annotated

PositiveInt = Annotated[int, (">=", 1)]
NonNegativeInt = Annotated[int, (">=", 0)]
PositiveFloat = Annotated[float, (">", 0)]
NonNegativeFloat = Annotated[float, (">=", 0)]
Probability = Annotated[float, (">=", 0), ("<=", 1)]

RUN_PARTS = ("sampler", "pictures", "checkpoints", "seed")


@dataclass(frozen=True)
class FromRun:
    """Marks a parameter of a callback that the run passes itself, so that no configuration sets it.

    >>> class Overview:
    ...     def __init__(self, *, folder: Annotated[str, FromRun("pictures")], every: PositiveInt = 100) -> None:
    ...         self.folder, self.every = folder, every

    Args:
        part: what it gets: the run's ``sampler`` or ``seed``, or the path of its folder ``pictures`` or ``checkpoints``.

    Raises:
        ValueError: a run has no such part.
    """

    part: str

    def __post_init__(self) -> None:
        if self.part not in RUN_PARTS:
            raise ValueError(f"FromRun part is {self.part!r}: allowed are {', '.join(RUN_PARTS)}")
