"""Which restorer serves which noise where the user names none, and how one of Gaussian noise is made to serve another.

The choices are those that came out best where the noise was known (``benchmarks/denoise_misspecified.py``).
"""

import math

from scoreexp.observations import CorrelatedNoise, GaussianNoise, NoiseModel, PoissonGaussianNoise
from scoreexp.restorers.base import Restorer
from scoreexp.restorers.binned import Binned
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.destriped import Destriped
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.pnp_coloured import PnPColoured
from scoreexp.restorers.posterior_mean import PosteriorMean
from scoreexp.restorers.stabilised import Stabilised

SMALL = 2**20  # pixels
ENOUGH = 3.0  # counts at white, from which pixels are better than means of them
OF_WHITE_GAUSSIAN_NOISE = (BySampling, ImageFilter, PosteriorMean)


def usual_restorer(noise: NoiseModel, pixels: int) -> Restorer:
    """The restorer of a noisy image with a denoiser of images as its prior.

    The posterior mean is that of all turns and reflections, some 0.2 dB better than one evaluation, up to 2^20 pixels.

    >>> from scoreexp.observations import PoissonNoise
    >>> [type(usual_restorer(noise, 4096)).__name__ for noise in (GaussianNoise(0.2), PoissonNoise(4.0), PoissonNoise(1.0))]
    ['PosteriorMean', 'Stabilised', 'Binned']

    Noise of a law that has no stabilising transform gets one too, which refuses it on its call.
    """
    if noise.lines is not None:
        return Destriped(usual_restorer(noise.lines.noise, pixels))
    if isinstance(noise, CorrelatedNoise):
        return PnPColoured()
    restorer = serving(PosteriorMean(8 if pixels <= SMALL else 1), noise)
    if isinstance(noise, PoissonGaussianNoise) and noise.peak < ENOUGH:
        return Binned(restorer, math.ceil((ENOUGH / noise.peak) ** 0.5))
    return restorer


def serving(restorer: Restorer, noise: NoiseModel) -> Restorer:
    """The restorer, ``Stabilised`` where it is one of white Gaussian noise and ``noise`` is another.

    Lines are taken off before (``Destriped``).

    >>> from scoreexp.observations import GammaNoise
    >>> from scoreexp.restorers.tv import TV
    >>> type(serving(TV(), GammaNoise(4.0))).__name__
    'Stabilised'
    """
    if noise.lines is not None and isinstance(restorer, OF_WHITE_GAUSSIAN_NOISE):
        return Destriped(serving(restorer, noise.lines.noise))
    is_other = not isinstance(noise, GaussianNoise | CorrelatedNoise)
    return Stabilised(restorer) if is_other and isinstance(restorer, OF_WHITE_GAUSSIAN_NOISE) else restorer
