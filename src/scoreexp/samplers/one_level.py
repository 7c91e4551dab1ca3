"""The sampler of a model that knows one noise level."""

from scoreexp.samplers.base import Sampler
from scoreexp.samplers.ddim import DDIM
from scoreexp.samplers.grids import UniformGrid
from scoreexp.schedules import Schedule


def sampler_of_one_level(schedule: Schedule) -> Sampler | None:
    """One evaluation, the posterior mean, where the schedule has a single noise level; None where it has more.

    Further evaluations at that level would give the same posterior mean.

    >>> from scoreexp.schedules import VP, ConstantNoise
    >>> sampler_of_one_level(ConstantNoise(0.2)).grid.steps, sampler_of_one_level(VP())
    (1, None)
    """
    low, high = schedule.sigma_range
    return DDIM(UniformGrid(1)) if low == high else None
