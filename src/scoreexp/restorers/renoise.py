r"""Denoise by diffusing: the observation gets the noise that it lacks at a time ``t*``, and the chain goes back from there.

.. math:: x_{t^*} = \alpha\, y + \sqrt{\sigma^2 - \alpha^2\, \mathrm{Var}[y | y]}\; z .

With white Gaussian noise ``x_{t*}`` is a draw of the marginal at ``t*``. Noise of another law is drowned in Gaussian noise,
the better the later ``t*``, while less is kept of the observation: at ``t_max`` nothing is, and the result is a draw of the
prior. At the earliest time, where the observation has all the noise, it is denoising by a sampler (``BySampling``).

Reference: X. Liu, L. Yi, "GeneOH Diffusion: Towards Generalizable Hand-Object Interaction Denoising via Denoising
Diffusion", 2024, https://arxiv.org/abs/2402.14810, section 4.
"""

from typing import Annotated

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Identity, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.by_sampling import unscaled
from scoreexp.samplers import Sampler


class Renoise(Restorer):
    """See the module's formula; the variance of other noise than Gaussian is taken at ``y``, none below black.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import PoissonNoise
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> observation = Observation(torch.zeros(1, 2), Identity(), PoissonNoise(30.0))
    >>> Renoise(DDIM(UniformGrid(10)), t_star=0.3)(observation, model, streams=ImageStreams([0])).nfe
    10

    Args:
        sampler: of the chain back.
        t_star: where it begins, as a share of the schedule's ``t_max``, in (0, 1].

    Raises:
        ValueError: ``t_star`` is outside its domain; on a call, the observation has more noise than there is at ``t*``.
    """

    @checked
    def __init__(
        self, sampler: Sampler, t_star: Annotated[float, (">", 0), ("<=", 1), "a share of t_max"] = 0.5
    ) -> None:
        self.sampler, self.t_star = sampler, t_star

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y, schedule = observation.y, model.schedule
        if not isinstance(observation.operator, Identity):
            raise ValueError(
                f"Renoise denoises, and {type(observation.operator).__name__} is no identity: use another restorer"
            )
        t = self.t_star * schedule.t_max
        alpha, sigma = schedule.at(t)
        lacking = sigma**2 - alpha**2 * observation.noise.variance(y.clamp(min=-1))
        if not bool((lacking >= -1e-6 * sigma**2).all()):
            largest = float(observation.noise.variance(y.clamp(min=-1)).max()) ** 0.5
            raise ValueError(
                f"the observation has noise of {largest:.4g}, more than the {sigma / alpha:.4g} at t_star={self.t_star}: "
                "choose a larger t_star"
            )
        x_t = alpha * y + lacking.clamp(min=0).sqrt() * streams.normal(y)
        result = self.sampler(model, x_t, streams=streams, t_start=t, cond=cond, keep=keep, callback=callback)
        return result.x, unscaled(result, schedule)
