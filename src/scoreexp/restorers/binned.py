r"""Restore an image of fewer pixels, each the mean of ``k x k``, for noise that hides what is smaller.

.. math:: \bar y = \mathrm{mean}_{k \times k}\, y, \qquad x = \mathrm{bicubic}(R(\bar y)),

where ``k^2`` times the photons, or the looks, fall on a pixel (``NoiseModel.of_mean``). With few counts the stabilising
transform loses more than the pixels do.

Reference: L. Azzari, A. Foi, "Variance Stabilization for Noisy+Estimate Combination in Iterative Poisson Denoising", 2016,
https://doi.org/10.1109/LSP.2016.2580600.
"""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer, RestorerAround, require_noise_alone
from scoreexp.restorers.tiling import mirror_to_multiple


class Binned(RestorerAround):
    """See the module's formula.

    >>> import torch
    >>> from scoreexp.observations import Identity, PoissonNoise
    >>> from scoreexp.restorers import TV, Stabilised
    >>> observation = Observation.simulate(torch.zeros(1, 1, 33, 32), Identity(), PoissonNoise(1.0), ImageStreams([0]))
    >>> Binned(Stabilised(TV()), factor=2)(observation, streams=ImageStreams([0])).x.shape
    torch.Size([1, 1, 33, 32])

    Args:
        restorer: of the smaller image.
        factor: ``k``.

    Raises:
        ValueError: ``factor`` is below 1; on a call, the data are no image, the operator is not the identity, or the law of
            a mean is not known.
    """

    @checked
    def __init__(self, restorer: Restorer, factor: PositiveInt = 2) -> None:
        self.restorer, self.factor = restorer, factor

    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y = observation.y
        require_noise_alone(observation, "Binned")
        height, width = y.shape[-2:]
        multiple = model.downsampling_factor if isinstance(model, DenoiserBase) else 1
        few = F.avg_pool2d(mirror_to_multiple(y, self.factor * multiple), self.factor)

        def back(x: Tensor) -> Tensor:
            large = F.interpolate(x, scale_factor=self.factor, mode="bicubic", align_corners=False)
            return large[..., :height, :width]

        binned = replace(observation, y=few, noise=observation.noise.of_mean(self.factor**2))
        return self.changed_back(binned, back, model, streams, cond, keep, callback)
