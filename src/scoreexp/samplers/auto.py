"""The solver that was fitted to a model, by its number of evaluations."""

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.samplers.grids import QuadraticGrid
from scoreexp.samplers.unipc import TIMES_TO_RESTART
from scoreexp.samplers.unipc_velocity import UniPCVelocity


class Auto(UniPCVelocity):
    """``steps`` evaluations by the solver that is fitted to the model, where samples are drawn.

    ``scoreexp.sample``, the command and the function, fit a ``NonStationary`` solver with ``fit_solver`` and keep it beside
    the checkpoint; where it is further from the flow at held-out starts than what follows, they say so and take that.
    Elsewhere, and from another time than ``t_max``, as when an observation is denoised, there is no such
    solver: there this is ``UniPCVelocity`` of order 3 on ``QuadraticGrid``, within the same number of evaluations.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import draw
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> [draw(model, Auto(steps), seeds=[0, 1]).nfe for steps in (10, 30)]
    [10, 30]

    Args:
        steps: evaluations of the model for each sample.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: on a call, if the schedule's noise level does not fall along the grid.
    """

    @checked
    def __init__(self, steps: PositiveInt = 10, denoise_last: bool = True) -> None:
        times = steps + (not denoise_last)
        restarts = times >= TIMES_TO_RESTART  # costs an evaluation
        super().__init__(QuadraticGrid(times - restarts), order=3, denoise_last=denoise_last)
        self.steps = steps
