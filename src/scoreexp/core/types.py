"""Types of configuration values: a constructor's annotations are the schema of its yaml file.

The aliases carry their range in plain data, so that a checker can read a signature from the source text and refuse
a bad value before anything heavy is imported; ``core.checked`` refuses it where the constructor is called. Bounds are
written as (operator, bound) pairs, all of which must hold. A text beside them is advice on a usual value:
``sigma_data: Annotated[PositiveFloat, "0.5 for images in [-1, 1]"]``.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

PositiveInt = Annotated[int, (">=", 1)]
NonNegativeInt = Annotated[int, (">=", 0)]
AtLeastTwo = Annotated[int, (">=", 2)]
PositiveFloat = Annotated[float, (">", 0)]
NonNegativeFloat = Annotated[float, (">=", 0)]
FinitePositiveFloat = Annotated[float, (">", 0), ("<", 1e999)]  # 1e999 is inf as a literal
FiniteNonNegativeFloat = Annotated[float, (">=", 0), ("<", 1e999)]
Probability = Annotated[float, (">=", 0), ("<=", 1)]
OpenProbability = Annotated[float, (">", 0), ("<", 1)]
ProbabilityBelowOne = Annotated[float, (">=", 0), ("<", 1)]

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
