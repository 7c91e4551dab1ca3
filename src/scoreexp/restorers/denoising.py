"""Denoising images of a data set: the observation of each, and the noise of a random sampler, are functions of its place."""

from torch import Tensor

from scoreexp.core.ranges import sigma_to_model
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, Identity, NoiseModel, Observation, Operator
from scoreexp.restorers.base import Callback, Restoration, Restorer


def observe(x: Tensor, index: Tensor, sigma: float, seed: int) -> Observation:
    """The noisy observation of clean images.

    Args:
        x: images ``[B, C, H, W]`` in [-1, 1].
        index: their positions in the data set ``[B]``.
        sigma: standard deviation of the noise, in units of the [0, 1] range.
        seed: names the noise together with the position.
    """
    return observe_through(x, index, Identity(), GaussianNoise(sigma_to_model(sigma)), seed)


def observe_through(
    x: Tensor, index: Tensor, operator: Operator, noise: NoiseModel, seed: int
) -> Observation:
    """The observation of clean images through any operator with any noise; other arguments as of ``observe``."""
    streams = ImageStreams([stream_seed(seed, "observation", i) for i in index.tolist()])
    return Observation.simulate(x, operator, noise, streams)


def denoise_observed(
    restorer: Restorer,
    model: DenoiserBase,
    observation: Observation,
    index: Tensor,
    seed: int,
    *,
    cond: Tensor | None = None,
    keep: int = 0,
    callback: Callback | None = None,
) -> Restoration:
    """Restore the observations of the images ``index[B]``; a restorer that draws noise draws it by (seed, position)."""
    streams = ImageStreams([stream_seed(seed, "denoise", i) for i in index.tolist()])
    return restorer(observation, model, streams=streams, cond=cond, keep=keep, callback=callback)
