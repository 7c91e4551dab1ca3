r"""Dead, hot and stuck pixels of a sensor: single values that stand out of all their neighbours.

With ``z`` the image under the noise's stabilising transform, of standard deviation 1, and ``lo``, ``hi`` the extremes of the
eight neighbours of a pixel in its channel, it is dead where

.. math:: z_i - hi_i > \max(k, hi_i - lo_i) \quad \text{or} \quad lo_i - z_i > \max(k, hi_i - lo_i) .

Of white Gaussian noise on a smooth image this happens to less than ``2 \int \varphi(z)\, \Phi(z - k)^8 dz`` of the pixels:
1.5e-8 for k = 5, and 1.3e-7 at the border, where there are five neighbours. Edges and lines do not, since one of the
neighbours lies on them too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat
from scoreexp.observations.noise import CorrelatedNoise, GammaNoise, GaussianNoise, NoiseModel


@checked
def find_dead_pixels(y: Tensor, noise: NoiseModel, beyond: FinitePositiveFloat = 5.0) -> Tensor:
    """Single pixels that no noise of this law explains, see the module's rule.

    Points of light and of ink, one pixel wide, are found as well, and dead pixels side by side are not: the result is a
    proposal to look at. Of speckle (``GammaNoise``), which is black by itself, the bright ones alone are found. The rate
    of the module holds for noise that is independent or shared by neighbours; long tails (``ELDNoise``) raise it.

    >>> y = torch.zeros(1, 5, 5)
    >>> y[0, 2, 3] = 1.0
    >>> find_dead_pixels(y, GaussianNoise(0.1)).nonzero()
    tensor([[0, 2, 3]])

    Args:
        y: an image ``[C, H, W]`` in the units of the model, H and W at least 2.
        noise: of the image; that of lines is left out.
        beyond: ``k``, in units of its standard deviation.

    Returns:
        True where a pixel is dead, ``[C, H, W]``.

    Raises:
        ValueError: the image has another shape, or the noise is none or has no stabilising transform.
    """
    if y.ndim != 3 or min(y.shape[1:]) < 2:
        raise ValueError(
            f"an image of shape {tuple(y.shape)}: give [C, H, W] with two pixels a side at least"
        )
    noise = noise if noise.lines is None else noise.lines.noise
    if isinstance(noise, GaussianNoise | CorrelatedNoise):
        if not noise.sigma > 0:
            raise ValueError("dead pixels are told from noise, and sigma=0 is none: give a mask of them")
        z = y / noise.sigma
    else:
        z = noise.stabilise(y[None])[0]
    return torch.stack([_alone(channel, beyond, dark=not isinstance(noise, GammaNoise)) for channel in z])


def _alone(z: Tensor, beyond: float, *, dark: bool) -> Tensor:
    """Where ``z [H, W]`` stands out of its neighbours."""
    padded = F.pad(z[None], (1, 1, 1, 1), mode="reflect")[0]
    height, width = z.shape
    low, high = torch.full_like(z, torch.inf), torch.full_like(z, -torch.inf)
    for i in range(3):
        for j in range(3):
            if (i, j) != (1, 1):
                other = padded[i : i + height, j : j + width]
                low, high = torch.minimum(low, other), torch.maximum(high, other)
    margin = (high - low).clamp(min=beyond)
    hot: Tensor = z - high > margin
    return hot | (low - z > margin) if dark else hot
