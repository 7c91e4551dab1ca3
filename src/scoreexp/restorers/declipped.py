r"""A restorer for noise that was clipped, as in every picture of 8 bits: the bias of clipping is taken off its result.

.. math:: x = m^{-1}(R(y)), \qquad m(x) = E[\min(\max(y, -1), 1) \mid x] ,

because a restorer of noise of mean 0 tends to ``m(x)``, which is grayer than ``x`` where noise goes beyond black or white:
by 0.4 of its standard deviation at the ends themselves. With ``y`` normal, of the variance that the law has at ``x``,

.. math:: m(x) = -1 + \sigma h\!\left(\tfrac{x + 1}{\sigma}\right) - \sigma h\!\left(\tfrac{x - 1}{\sigma}\right), \qquad
          h(t) = t\, \Phi(t) + \varphi(t) .

Reference: A. Foi, "Clipped noisy images: Heteroskedastic modeling and practical denoising", 2009,
https://doi.org/10.1016/j.sigpro.2009.04.035.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.observations import NoiseModel, Observation
from scoreexp.restorers.base import Callback, Restorer, RestorerAround

Ends = Literal["black", "white", "both"]
TABLE = 2048  # values at which m is known


class Declipped(RestorerAround):
    """See the module's formula. The result lies in [-1, 1].

    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.restorers import TV
    >>> streams, white = ImageStreams([0]), torch.ones(1, 1, 64, 64)
    >>> observation = Observation.simulate(white, Identity(), GaussianNoise(0.4), streams)
    >>> clipped = Observation(observation.y.clamp(-1, 1), Identity(), observation.noise)
    >>> [round(float(restorer(clipped, streams=streams).x.mean()), 2) for restorer in (TV(5.0), Declipped(TV(5.0)))]
    [0.84, 1.0]

    Args:
        restorer: of the noise as it was before it was clipped.
        ends: where it was clipped.

    Raises:
        ValueError: ``ends`` is none of the choices; on a call, what the restorer raises.
    """

    @checked
    def __init__(self, restorer: Restorer, ends: Ends = "both") -> None:
        self.restorer, self.ends = restorer, ends

    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        x = torch.linspace(-1, 1, TABLE, dtype=torch.float64)
        means = clipped_mean(x, observation.noise, self.ends).cummax(0).values

        def back(estimate: Tensor) -> Tensor:
            known, values = means.to(estimate), x.to(estimate)
            place = torch.searchsorted(known, estimate.contiguous()).clamp(1, TABLE - 1)
            low, high = known[place - 1], known[place]
            share = ((estimate - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
            return values[place - 1] + share * (values[place] - values[place - 1])

        return self.changed_back(observation, back, model, streams, cond, keep, callback)


def clipped_mean(x: Tensor, noise: NoiseModel, ends: Ends = "both") -> Tensor:
    """``m(x)`` of the module, elementwise, of values that are clipped at these ends.

    >>> from scoreexp.observations import GaussianNoise
    >>> clipped_mean(torch.tensor([-1.0, 0.0, 1.0]), GaussianNoise(0.1))
    tensor([-0.9601,  0.0000,  0.9601])
    """
    sigma = noise.variance(x[None])[0].sqrt().clamp(min=1e-12)
    mean = x
    if ends != "white":
        mean = mean + sigma * _beyond((x + 1) / sigma)
    if ends != "black":
        mean = mean - sigma * _beyond((1 - x) / sigma)
    return mean


def _beyond(t: Tensor) -> Tensor:
    """``h(t) - t``, what is beyond an end that is ``t`` standard deviations away: ``phi(t) - t Phi(-t)``."""
    return torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi) - t * torch.special.ndtr(-t)
