"""Generation from a mixture of noise and an image, as published for score embedding."""

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import to_model
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import PositiveFloat, Probability
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.by_sampling import noise_level_of, unscaled
from scoreexp.samplers import Sampler


class ConditionalStart(Restorer):
    r"""Generates from ``(1 - w) N(m, s^2) + w y`` at the schedule's last time, whatever noise ``y`` has.

    With ``w = 0`` it is generation from noise, which does not look at the observation: for a model of one image the
    published task. It is no posterior: neither the noise of ``y`` nor the noise level of the schedule's last time enters.

    Reference: Efficient denoising using score embedding in score-based diffusion models, A. Na, W. Gao, J. Wan, 2024,
    https://arxiv.org/abs/2404.06661

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(0.0))
    >>> restorer = se.restorers.ConditionalStart(se.samplers.DDIM(se.samplers.UniformGrid(50)), weight=1.0)
    >>> restorer(observation, model, streams=ImageStreams([0])).x.round(decimals=2)  # exactly 1; DDIM is of first order
    tensor([[0.9600, 0.9600]])

    Args:
        sampler: of the chain.
        weight: ``w`` of the observation, in [0, 1].
        sigma: standard deviation ``s`` of the noise, in units of the [0, 1] range: 1 is the paper's N(0, 1) for images in
            [0, 1], 0.5 the usual N(0, 1) of models of [-1, 1].
        mean: ``m``, in units of the [0, 1] range: 0 is black (the paper), 0.5 the middle of the range.

    Raises:
        ValueError: an argument is outside its range, or the observation is not the image itself or that with white noise.
    """

    @checked
    def __init__(
        self,
        sampler: Sampler,
        weight: Probability = 0.0,
        sigma: PositiveFloat = 1.0,
        mean: float = 0.0,
    ) -> None:
        self.sampler, self.weight, self.sigma, self.mean = sampler, weight, sigma, mean

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        noise_level_of(observation)
        noise = to_model(self.mean + self.sigma * streams.normal(observation.y))
        start = (1 - self.weight) * noise + self.weight * observation.y
        result = self.sampler(model, start, streams=streams, cond=cond, keep=keep, callback=callback)
        return result.x, unscaled(result, model.schedule)
