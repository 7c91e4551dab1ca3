"""Restoring a dark image by exposing it further: the photons that are missing are drawn."""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.objectives.exposure import level_of_peak
from scoreexp.observations import Identity, Observation, PoissonGaussianNoise
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers.base import batch_of, spread


class Exposure(Restorer):
    r"""From the observed exposure ``p_0`` to ``p_K = ratio p_0`` in equal steps, with a model of ``ExposureMatching``:

    .. math:: n_{k+1} = n_k + \mathrm{Poisson}\left((p_{k+1} - p_k)\, \hat u_k\right), \qquad
              \hat u_k = E[u | n_k] ,

    and the result is ``E[x_0 | n_K]``, ``steps + 1`` evaluations. The count grows at the rate ``E[u | n_p]``; in the limit
    of small steps this is the exact law of the longer exposure given the shorter one. For a Gamma prior of shape a and rate
    b the photons that are added are negative binomial, of mean ``m = (p_K - p_0) (a + n_0) / (b + p_0)`` and variance
    ``m / (1 - r)`` with ``r = (p_K - p_0) / (b + p_K)``. The mean is exact for any number of steps.

    The authors' program draws all missing photons anew from the observation in each step, ``n_{k+1} = n_0 + Poisson((p_{k+1}
    - p_0) u_hat_k)`` (``anew=True``). For that prior its variance tends to ``m / (1 - r^2)``: its draws are too much alike.

    Reference: Y. Wang et al., "ExposureDiffusion: Learning to Expose for Low-light Image Enhancement", 2023,
    https://arxiv.org/abs/2307.07710.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import PoissonNoise
    >>> from scoreexp.schedules import VE
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VE())
    >>> observation = Observation(torch.zeros(1, 2), Identity(), PoissonNoise(peak=10.0))
    >>> Exposure(ratio=4.0, steps=3)(observation, model, streams=ImageStreams([0])).nfe
    4

    Args:
        ratio: of the exposure to reach to the observed one, > 1.
        steps: ``K``, >= 1 (3 in the paper).
        anew: draw as the authors' program does.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is none of photons under the identity, or
            an exposure is outside the noise levels of the model's schedule.
    """

    @checked
    def __init__(self, ratio: PositiveFloat, steps: PositiveInt = 3, anew: bool = False) -> None:
        if not 1 < ratio < float("inf"):
            raise ValueError(
                f"ratio={ratio}: choose a finite ratio > 1, how many times longer the exposure shall be"
            )
        self.ratio, self.steps, self.anew = float(ratio), steps, anew

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``cond`` is passed to the model; the estimates on the way are ``E[x_0 | n_k]``."""
        noise = observation.noise
        if not (isinstance(observation.operator, Identity) and isinstance(noise, PoissonGaussianNoise)):
            raise ValueError(
                f"Exposure is for counted photons, not {type(noise).__name__} under "
                f"{type(observation.operator).__name__}: give PoissonNoise(peak) or PoissonGaussianNoise(peak, sigma) "
                "under Identity()"
            )
        reading = noise.peak * noise.sigma / 2  # photons
        peaks = noise.peak * torch.linspace(1, self.ratio, self.steps + 1, dtype=torch.float64)
        times = model.schedule.t_of_sigma(level_of_peak(peaks, reading)).tolist()
        first = photons = noise.peak * (observation.y + 1) / 2
        kept, trajectory = spread(0, self.steps, keep), []
        with torch.no_grad():
            for k, (peak, t) in enumerate(zip(peaks.tolist(), times, strict=True)):
                x_t = model.schedule.at(t)[0] * (2 * photons / peak - 1)
                x0_hat = model(x_t, batch_of(t, x_t), cond)
                if not x0_hat.isfinite().all():
                    raise FloatingPointError(
                        f"Exposure: the estimate is not finite at step {k} of {self.steps}: check the weights of the network"
                    )
                if k in kept:
                    trajectory.append(x0_hat)
                if callback is not None:
                    callback(k + 1, self.steps + 1, 2 * photons / peak - 1, x0_hat)
                if k < self.steps:
                    begun, counted = (noise.peak, first) if self.anew else (peak, photons)
                    missing = (peaks[k + 1].item() - begun) * ((x0_hat + 1) / 2).clamp(min=0)
                    photons = counted + streams.poisson(missing)
        return x0_hat, trajectory
