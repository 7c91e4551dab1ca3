"""The probability-flow equation by a Runge-Kutta solver."""

from typing import Any

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.angular_flow import AngularFlow
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.numerics.ode import OdeSolver
from scoreexp.samplers.base import Sampler
from scoreexp.samplers.grids import TimeGrid


class ProbabilityFlow(Sampler):
    r"""Solution of the probability-flow equation from each time of the grid to the next.

    .. math:: \frac{dx}{dt} = a x - \tfrac12 g^2 \nabla \log p_t(x),

    integrated in the angle ``arctan(sigma / alpha)`` (see ``scoreexp.denoisers.angular_flow``), so that the result does not
    depend on how the schedule runs through the noise levels. With the adaptive ``RK45`` the accuracy comes from its
    tolerances, each sample has its own steps, and a grid of two times, the first and the last, is enough; more times
    only add states to keep. With ``RungeKutta`` each interval of the grid is one step.

    Reference: Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, section 4.3 and appendix D.4.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.numerics.ode import RK45
    >>> oracle = se.oracles.Gaussian(torch.ones(2), torch.zeros(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.ProbabilityFlow(se.samplers.UniformGrid(2), RK45(rtol=1e-3, atol=1e-3))
    >>> se.samplers.draw(model, sampler, seeds=[0]).x
    tensor([[1., 1.]])

    Args:
        grid: the times at which the solution is wanted.
        solver: the Runge-Kutta solver; its tolerances are in the units of the data ([-1, 1]).
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.

    Raises:
        ValueError: (on a call) if the schedule's noise level does not fall along the grid.
        FloatingPointError: (on a call) if the model's output is not finite; names the time.
    """

    @checked
    def __init__(self, grid: TimeGrid, solver: OdeSolver, denoise_last: bool = True) -> None:
        super().__init__(grid, denoise_last)
        self.solver = solver

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        flow = AngularFlow(model)
        (angle_t, scale_t), (angle_s, scale_s) = flow.at(t), flow.at(s)
        solution = self.solver(flow.velocity, x_t / scale_t, angle_t, angle_s, step_size=state)
        return scale_s * solution.y, solution.step_size
