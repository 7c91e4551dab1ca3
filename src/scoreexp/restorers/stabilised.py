r"""A restorer of Gaussian noise for noise whose variance depends on the image.

1. ``z = f(y)`` has about the variance 1 everywhere (``NoiseModel.stabilise``);
2. the restorer sees ``w``, which is ``z`` with ``f`` of black and white at -1 and 1, with noise of the same scale; where the
   model does not know as much noise, nearer together, as of a picture of less contrast;
3. the result is ``x`` with ``E[f(y) | x]`` equal to its estimate of ``z``: the exact unbiased inverse, where the algebraic
   one would be wrong by a quarter of a photon.

Reference: M. Makitalo, A. Foi, "Optimal Inversion of the Generalized Anscombe Transformation for Poisson-Gaussian Noise",
2013, https://doi.org/10.1109/TIP.2012.2202675.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.restorers.base import Callback, Restorer, RestorerAround

BLACK = 2 / 255 - 1  # the logarithm of 0 is far away


class Stabilised(RestorerAround):
    """See the module's steps. White Gaussian noise needs no transform and goes to the restorer as it is.

    >>> from scoreexp.observations import PoissonNoise
    >>> from scoreexp.restorers import TV
    >>> noise = PoissonNoise(peak=10.0)
    >>> observation = Observation.simulate(torch.zeros(1, 1, 32, 32), Identity(), noise, ImageStreams([0]))
    >>> restored = Stabilised(TV(strength=5.0))(observation, streams=ImageStreams([0])).x
    >>> bool(restored.std() < 0.2 * observation.y.std())
    True

    Args:
        restorer: for white Gaussian noise under the identity.

    Raises:
        ValueError: on a call, no transform is known for the noise, or the operator is not the identity.
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
        noise, y = observation.noise, observation.y
        if isinstance(noise, GaussianNoise):
            return self.restorer.restore(observation, model, streams, cond, keep, callback)
        if not isinstance(observation.operator, Identity):
            raise ValueError(
                f"Stabilised is for noise alone, and {type(observation.operator).__name__} is no identity: the noise of "
                "what an operator mixes is not stabilised by a function of each value"
            )
        black, white = noise.stabilise(torch.tensor([BLACK, 1.0], dtype=torch.float64)).tolist()
        gray, unit = (white + black) / 2, 2 / (white - black)
        if self.needs_model and isinstance(model, DenoiserBase):
            unit = min(unit, model.schedule.sigma_range[1])

        def back(w: Tensor) -> Tensor:
            return noise.unstabilise(w / unit + gray)

        stable = replace(observation, y=unit * (noise.stabilise(y) - gray), noise=GaussianNoise(unit))
        return self.changed_back(stable, back, model, streams, cond, keep, callback)
