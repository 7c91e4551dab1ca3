"""Denoising by a sampler: the chain that leads from noise to data, entered at the observed noise level."""

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers import Sampler, SampleResult
from scoreexp.schedules import Schedule


class BySampling(Restorer):
    r"""Draws from the posterior of ``x_0`` given ``y = x_0 + sigma z``.

    ``alpha(t*) y`` with ``sigma(t*) / alpha(t*) = sigma`` is a draw of ``x_t`` at ``t*``, so a sampler that starts there
    ends at the posterior: a stochastic one at a draw of it, a deterministic one on the probability flow through ``y``.
    With a grid of one time it gives the posterior mean.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(1.0))
    >>> BySampling(DDIM(UniformGrid(1)))(observation, model, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Args:
        sampler: of the chain.
    """

    @checked
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        schedule, sigma = model.schedule, noise_level_of(observation)
        start, t_start = self.sampler.start(schedule, observation.y, sigma)
        result = self.sampler(
            model, start, streams=streams, t_start=t_start, cond=cond, keep=keep, callback=callback
        )
        return result.x, unscaled(result, schedule)


def unscaled(result: SampleResult, schedule: Schedule) -> list[Tensor]:
    """The kept states as estimates of ``x_0``: ``x_t / alpha_t`` where alpha is not 0, and the result itself."""
    alphas = (schedule.at(t)[0] for t in result.times[:-1].tolist())
    before = zip(result.trajectory[:-1], alphas, strict=True)
    return [*(x / alpha for x, alpha in before if alpha > 0), *result.trajectory[-1:]]


def noise_level_of(observation: Observation) -> float:
    """``sigma`` of an observation ``y = x_0 + sigma z``.

    Raises:
        ValueError: it is of another kind.
    """
    if not (isinstance(observation.operator, Identity) and isinstance(observation.noise, GaussianNoise)):
        raise ValueError(
            f"a sampler alone denoises Gaussian noise under the identity, not {type(observation.noise).__name__} under "
            f"{type(observation.operator).__name__}: use a restorer for this observation"
        )
    return observation.noise.sigma
