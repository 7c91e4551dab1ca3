"""Which restorer serves which noise where the user names none, and how one of Gaussian noise is made to serve another.

The choices are those that came out best where the noise was known (``benchmarks/denoise_misspecified.py``).
"""

import math

from scoreexp.observations import CorrelatedNoise, GaussianNoise, NoiseModel, PoissonGaussianNoise
from scoreexp.restorers.base import Restorer
from scoreexp.restorers.binned import Binned
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.pnp_coloured import PnPColoured
from scoreexp.restorers.posterior_mean import PosteriorMean
from scoreexp.restorers.stabilised import Stabilised

ENOUGH = 3.0  # counts at white, from which pixels are better than means of them
OF_WHITE_GAUSSIAN_NOISE = (BySampling, ImageFilter, PosteriorMean)


def usual_restorer(noise: NoiseModel) -> Restorer:
    """The restorer of a noisy image with a denoiser of images as its prior.

    >>> from scoreexp.observations import PoissonNoise
    >>> [type(usual_restorer(noise)).__name__ for noise in (GaussianNoise(0.2), PoissonNoise(4.0), PoissonNoise(1.0))]
    ['PosteriorMean', 'Stabilised', 'Binned']

    Noise of a law that has no stabilising transform gets one too, which refuses it on its call.
    """
    if isinstance(noise, CorrelatedNoise):
        return PnPColoured()
    restorer = serving(PosteriorMean(), noise)
    if isinstance(noise, PoissonGaussianNoise) and noise.peak < ENOUGH:
        return Binned(restorer, math.ceil((ENOUGH / noise.peak) ** 0.5))
    return restorer


def serving(restorer: Restorer, noise: NoiseModel) -> Restorer:
    """The restorer, ``Stabilised`` where it is one of white Gaussian noise and ``noise`` is another.

    >>> from scoreexp.observations import GammaNoise
    >>> from scoreexp.restorers.tv import TV
    >>> type(serving(TV(), GammaNoise(4.0))).__name__
    'Stabilised'
    """
    is_other = not isinstance(noise, GaussianNoise | CorrelatedNoise)
    return Stabilised(restorer) if is_other and isinstance(restorer, OF_WHITE_GAUSSIAN_NOISE) else restorer
