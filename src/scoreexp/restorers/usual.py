"""Which restorer serves which observation where the user names none, and how one of Gaussian noise serves another.

The choices are those that came out best where the noise was known (``benchmarks/denoise_misspecified.py``) and where the
operator was (``benchmarks/restoration.py``).
"""

import math

from scoreexp.core.ranges import sigma_to_unit
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import (
    CorrelatedNoise,
    GaussianNoise,
    Identity,
    LinearOperator,
    NoiseModel,
    Observation,
    PoissonGaussianNoise,
)
from scoreexp.restorers.base import Restorer
from scoreexp.restorers.binned import Binned
from scoreexp.restorers.by_sampling import BySampling
from scoreexp.restorers.ddrm import DDRM
from scoreexp.restorers.declipped import Declipped
from scoreexp.restorers.destriped import Destriped
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.gradient import DPS
from scoreexp.restorers.likelihood import PiGDM
from scoreexp.restorers.pnp_coloured import PnPColoured
from scoreexp.restorers.posterior_mean import PosteriorMean
from scoreexp.restorers.proximal import known_svd
from scoreexp.restorers.stabilised import Stabilised
from scoreexp.samplers import DDIM, UniformGrid

SMALL = 2**20  # pixels
STEPS = 20  # of a chain that solves for the data
GRADIENT_STEPS = 100  # of one that steps towards them
ENOUGH = 3.0  # counts at white, from which pixels are better than means of them
OF_WHITE_GAUSSIAN_NOISE = (BySampling, ImageFilter, PosteriorMean)


def usual_restorer_of(observation: Observation) -> Restorer:
    """The restorer of an observation through an operator.

    That of its noise where there is none but noise; DDRM where the operator's decomposition is known and the noise is white
    and Gaussian; PiGDM where it is not known; DPS, which asks for a gradient only, for everything else.

    >>> import torch
    >>> from scoreexp.observations import GaussianBlur, Magnitude, Radon
    >>> y, noise = torch.zeros(1, 1, 8, 8), GaussianNoise(0.1)
    >>> operators = Identity(), GaussianBlur(0.5, size=8), Radon(8, angles=8), Magnitude()
    >>> [type(usual_restorer_of(Observation(y, operator, noise))).__name__ for operator in operators]
    ['PosteriorMean', 'DDRM', 'PiGDM', 'DPS']
    """
    operator, noise = observation.operator, observation.noise
    if isinstance(operator, Identity):
        return usual_restorer(noise, observation.y[0, 0].numel())
    if not isinstance(operator, LinearOperator) or not isinstance(noise, GaussianNoise):
        return DPS(UniformGrid(GRADIENT_STEPS))
    grid = UniformGrid(STEPS)
    return PiGDM(DDIM(grid, eta=1.0)) if known_svd(operator, observation.y) is None else DDRM(grid)


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


def require_known_level(restorer: Restorer, noise: NoiseModel, model: DenoiserBase | None) -> None:
    """Refuse noise that is fainter than the least that the model knows, where the restorer asks it for that very level.

    >>> from scoreexp import prior
    >>> require_known_level(PosteriorMean(), GaussianNoise(0.004), prior.load())
    Traceback (most recent call last):
    ValueError: the noise, 0.002 of the range, is fainter than 0.005, the least that the model knows: take ...

    Args:
        restorer: see ``usual_restorer``; one around others is asked for the innermost.
        noise: of the image.
        model: the prior, or None.

    Raises:
        ValueError: the message says what takes such noise.
    """
    while isinstance(restorer, Declipped | Destriped):
        noise = noise.lines.noise if isinstance(restorer, Destriped) and noise.lines is not None else noise
        restorer = restorer.restorer
    if model is None or not isinstance(restorer, PosteriorMean | PnPColoured):
        return
    least = model.schedule.sigma_range[0]
    if isinstance(noise, GaussianNoise | CorrelatedNoise) and 0 < noise.sigma < least:
        raise ValueError(
            f"the noise, {sigma_to_unit(noise.sigma):.2g} of the range, is fainter than {sigma_to_unit(least):g}, the least "
            "that the model knows: take a restorer without one (restorer=non_local_means), or, of a scan, look at a part of "
            "its range (window=[low,high])"
        )
