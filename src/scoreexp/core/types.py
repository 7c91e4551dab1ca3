"""Types of configuration values: a constructor's annotations are the schema of its yaml file.

The aliases carry their range in plain data, so that a checker can read a signature from the source text and refuse
a bad value before anything heavy is imported; ``core.checked`` refuses it where the constructor is called. Bounds are
written as (operator, bound) pairs, all of which must hold. A text beside them is advice on a usual value:
``sigma_data: Annotated[PositiveFloat, "0.5 for images in [-1, 1]"]``.
"""

import operator
from collections.abc import Callable, Mapping
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
