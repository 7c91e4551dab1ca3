r"""Plug-and-play proximal gradients for Gaussian noise that neighbouring pixels share, with the prior of white noise.

The covariance of stationary noise is diagonal in the Fourier domain, with the spectrum ``S``. From a share of the level of
its strongest frequency, ``s_1 = start max(S)^(1/2)``, down to ``s_N = end sigma`` in equal ratios, from ``z_1 = y``:

1. ``x_i = D(z_i, s_i)``;
2. ``z_{i+1} = x_i + F^{-1} min(1, s_{i+1}^2 / S) F (y - x_i)``.

Step 2 is a gradient step on ``(y - x)^T C^{-1} (y - x) / 2`` of the length ``s^2``, with which step 1 is the proximal
operator of the prior; frequencies of less noise than ``s`` take the data as they are, or it would diverge. Repeated at one
level it ends, for Gaussian data, at the posterior mean under noise of the spectrum ``max(S, s^2)``.

References:
    S. V. Venkatakrishnan, C. A. Bouman, B. Wohlberg, "Plug-and-Play Priors for Model Based Reconstruction", 2013,
    https://doi.org/10.1109/GlobalSIP.2013.6737048;
    K. Zhang, Y. Li, W. Zuo, L. Zhang, L. Van Gool, R. Timofte, "Plug-and-Play Image Restoration with Deep Denoiser Prior",
    2022, https://arxiv.org/abs/2008.13751 (falling levels).
"""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import CorrelatedNoise, GaussianNoise, Identity, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers.base import batch_of, spread
from scoreexp.samplers.starts import start_from_observation


class PnPColoured(Restorer):
    """See the module's steps; one evaluation of the network in each, without gradient.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.1)), VP())
    >>> y = CorrelatedNoise(0.5).sample(torch.zeros(1, 1, 8, 8), ImageStreams([0]))
    >>> restored = PnPColoured()(Observation(y, Identity(), CorrelatedNoise(0.5)), model, streams=ImageStreams([0]))
    >>> restored.nfe, bool(restored.x.norm() < 0.5 * y.norm())
    (2, True)

    Args:
        steps: ``N``.
        start: > 0; with 1 all noise is gone after the first step, and much of the image, which the further ones bring back.
        end: the last level, in units of the noise's standard deviation, > 0; the first is no lower.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the noise is neither Gaussian nor correlated, the operator
            is not the identity, or a level is none of the model's.
    """

    @checked
    def __init__(
        self, steps: PositiveInt = 2, start: FinitePositiveFloat = 0.5, end: FinitePositiveFloat = 1.0
    ) -> None:
        self.steps, self.start, self.end = steps, start, end

    @torch.no_grad()
    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y, noise = observation.y, observation.noise
        if not isinstance(observation.operator, Identity) or not isinstance(
            noise, CorrelatedNoise | GaussianNoise
        ):
            raise ValueError(
                f"PnPColoured denoises Gaussian noise, white or correlated, not {type(noise).__name__} under "
                f"{type(observation.operator).__name__}: use another restorer"
            )
        observation.require_finite()
        if noise.sigma == 0:
            return y.clone(), [y.clone()][-keep:] if keep else []
        spectrum = noise.spectrum(y) if isinstance(noise, CorrelatedNoise) else noise.variance(y[:1, :1])
        last = self.end * noise.sigma
        first = max(self.start * float(spectrum.max()) ** 0.5, last)
        first = min(first, max(model.schedule.sigma_range[1], last))
        kept, trajectory, x, z = spread(1, self.steps, keep), [], y, y
        for i in range(1, self.steps + 1):
            share = (i - 1) / max(self.steps - 1, 1)
            level = math.exp((1 - share) * math.log(first) + share * math.log(last))
            if i > 1:
                step = (level**2 / spectrum.clamp(min=level**2)).to(y)
                z = x + torch.fft.ifft2(step * torch.fft.fft2(y - x)).real
            x_t, t = start_from_observation(model.schedule, z, level)
            x = model(x_t, batch_of(t, x_t), cond)
            if i in kept:
                trajectory.append(x)
            if callback is not None:
                callback(i, self.steps, z, x)
        return x, trajectory
