r"""Bilateral filter: the mean of the neighbours, weighted by how near they are in place and in value.

.. math:: u_i = \frac{\sum_j w_{ij} y_j}{\sum_j w_{ij}}, \qquad
          w_{ij} = \exp\!\Big(-\frac{|i - j|^2}{2 r^2} - \frac{|y_i - y_j|^2}{2 C (\mathtt{strength}\, \sigma)^2}\Big)

over the pixels ``j`` of the image at most ``ceil(3 r)`` rows and columns away; ``C`` is the number of channels.

References:
    C. Tomasi, R. Manduchi, "Bilateral Filtering for Gray and Color Images", 1998, https://doi.org/10.1109/ICCV.1998.710815;
    M. Zhang, B. K. Gunturk, "Multiresolution Bilateral Filtering for Image Denoising", 2008,
    https://doi.org/10.1109/TIP.2008.2006658 (the default parameters).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveFloat
from scoreexp.restorers.filtering import ImageFilter


class Bilateral(ImageFilter):
    """See the module's formula.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> step = torch.tensor([[0.0, 0.1, 0.0, 5.0, 5.1, 5.0]])[None, None]
    >>> observation = Observation(step, Identity(), GaussianNoise(0.1))
    >>> Bilateral()(observation, streams=ImageStreams([0])).x.round(decimals=2)
    tensor([[[[0.0300, 0.0400, 0.0300, 5.0300, 5.0400, 5.0300]]]])

    Args:
        radius: ``r``, standard deviation of the weights in place, in pixels, > 0.
        strength: standard deviation of the weights in value, in units of ``sigma``, > 0.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image with white Gaussian noise.
    """

    @checked
    def __init__(self, radius: FinitePositiveFloat = 1.8, strength: PositiveFloat = 1.95) -> None:
        self.radius, self.strength = radius, strength

    def apply(self, y: Tensor, sigma: float) -> Tensor:
        reach, (height, width) = math.ceil(3 * self.radius), y.shape[-2:]
        scale = 2 * y.shape[1] * (self.strength * sigma) ** 2
        around = pad(y, [reach] * 4)
        inside = pad(torch.ones_like(y[:, :1]), [reach] * 4)
        total, weights = torch.zeros_like(y), torch.zeros_like(y[:, :1])
        for row in range(-min(reach, height - 1), min(reach, height - 1) + 1):
            for column in range(-min(reach, width - 1), min(reach, width - 1) + 1):
                window = (
                    ...,
                    slice(reach + row, reach + row + height),
                    slice(reach + column, reach + column + width),
                )
                other = around[window]
                place = (row**2 + column**2) / (2 * self.radius**2)
                weight = inside[window] * torch.exp(
                    -place - (y - other).square().sum(1, keepdim=True) / scale
                )
                total += weight * other
                weights += weight
        return total / weights
