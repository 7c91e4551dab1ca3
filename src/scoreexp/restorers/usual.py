"""Which restorer serves which noise where the user names none, and how one of Gaussian noise is made to serve another.

The choices are those that came out best where the noise was known (``benchmarks/denoise_misspecified.py``).
"""

from scoreexp.observations import CorrelatedNoise, GaussianNoise, NoiseModel
from scoreexp.restorers.base import Restorer
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.pnp_coloured import PnPColoured
from scoreexp.restorers.posterior_mean import PosteriorMean
from scoreexp.restorers.stabilised import Stabilised

OF_WHITE_GAUSSIAN_NOISE = (BySampling, ImageFilter, PosteriorMean)


def usual_restorer(noise: NoiseModel) -> Restorer:
    """The restorer of a noisy image with a denoiser of images as its prior.

    >>> from scoreexp.observations import PoissonNoise
    >>> type(usual_restorer(GaussianNoise(0.2))).__name__, type(usual_restorer(PoissonNoise(4.0))).__name__
    ('PosteriorMean', 'Stabilised')

    Noise of a law that has no stabilising transform gets one too, which refuses it on its call.
    """
    return PnPColoured() if isinstance(noise, CorrelatedNoise) else serving(PosteriorMean(), noise)


def serving(restorer: Restorer, noise: NoiseModel) -> Restorer:
    """The restorer, ``Stabilised`` where it is one of white Gaussian noise and ``noise`` is another.

    >>> from scoreexp.observations import GammaNoise
    >>> from scoreexp.restorers.tv import TV
    >>> type(serving(TV(), GammaNoise(4.0))).__name__
    'Stabilised'
    """
    is_other = not isinstance(noise, GaussianNoise | CorrelatedNoise)
    return Stabilised(restorer) if is_other and isinstance(restorer, OF_WHITE_GAUSSIAN_NOISE) else restorer
