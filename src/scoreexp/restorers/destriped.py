r"""A restorer for noise whose lines share an offset: the offsets are estimated from the image and taken off before.

1. ``s``: the offsets of the lines of each channel, by ``observations.estimate_stripes`` with the known levels; their profile
   is that of the image plus the stripes;
2. the restorer sees ``y - s`` with the noise without lines.

What is left of the offsets, some ``sqrt(v / H)`` of a line of ``H`` pixels and more where the image has edges along the
lines, is taken for a part of the image. Noise without lines goes to the restorer as it is.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import Identity, Observation, estimate_stripes
from scoreexp.restorers.base import Callback, Restorer, RestorerAround


def without_lines(observation: Observation) -> Observation:
    """The observation ``y - s`` of the noise without lines; itself where lines share nothing.

    >>> from scoreexp.observations import GaussianNoise, StripeNoise
    >>> noise = StripeNoise(GaussianNoise(0.02), sigma=0.2)
    >>> without_lines(Observation(torch.zeros(1, 1, 8, 8), Identity(), noise)).noise.sigma
    0.02

    Raises:
        ValueError: the operator is not the identity, or the image has fewer than 8 lines.
    """
    lines, y = observation.noise.lines, observation.y
    if lines is None:
        return observation
    if not isinstance(observation.operator, Identity):
        raise ValueError(
            f"Destriped is for noise alone, and {type(observation.operator).__name__} is no identity: its data "
            "have other lines than the image"
        )
    variance = float(lines.noise.variance(y.clamp(min=-1)).mean())
    offsets = [estimate_stripes(one, lines.axis, variance=variance, sigma=lines.sigma).offsets for one in y]
    return replace(observation, y=y - torch.stack(offsets), noise=lines.noise)


class Destriped(RestorerAround):
    """See the module's steps.

    >>> from scoreexp.observations import GaussianNoise, StripeNoise
    >>> from scoreexp.restorers import TV
    >>> noise = StripeNoise(GaussianNoise(0.02), sigma=0.2)
    >>> observation = Observation.simulate(torch.zeros(1, 1, 32, 32), Identity(), noise, ImageStreams([0]))
    >>> made = Destriped(TV())(observation, streams=ImageStreams([0])).x
    >>> bool(made.std() < 0.1 * observation.y.std())
    True

    Args:
        restorer: for the noise without lines.

    Raises:
        ValueError: on a call, the operator is not the identity, or the image has fewer than 8 lines.
    """

    def __init__(self, restorer: Restorer) -> None:
        self.restorer = restorer

    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        return self.restorer.restore(without_lines(observation), model, streams, cond, keep, callback)
