"""Types of configuration values: a constructor's annotations are the schema of its yaml file.

The aliases carry their range in plain data, so that a checker can read a signature from the source text and refuse
a bad value before anything heavy is imported. Bounds are written as (operator, bound) pairs, all of which must hold.
"""

from typing import Annotated

PositiveInt = Annotated[int, (">=", 1)]
NonNegativeInt = Annotated[int, (">=", 0)]
PositiveFloat = Annotated[float, (">", 0)]
NonNegativeFloat = Annotated[float, (">=", 0)]
Probability = Annotated[float, (">=", 0), ("<=", 1)]
