r"""ScoreDVI: a Gaussian posterior of the one image, with independent pixels, from the score of a denoiser.

``q(x) = N(\mu, \mathrm{diag}(v))`` maximises the evidence lower bound, in which the prior weighs ``\lambda``,

.. math:: E_q \log p(y | x) + \lambda \Big[ \tfrac12 \sum_i \log v_i + E_q \log p(x) \Big] .

The noise is a mixture of Gaussians with precisions ``\tau_k``, responsibilities ``r_{ik}`` and
``\tau_i = \sum_k r_{ik} E\tau_k``. With draws ``z = \mu + \sqrt v\, e`` and the score ``s`` of the prior the bound is
stationary where

.. math:: \tau_i (y_i - \mu_i) + \lambda\, E s(z)_i = 0, \qquad
          v_i = \frac{\lambda}{\tau_i + \lambda h_i}, \quad h_i = -E[s(z)_i e_i] / \sqrt{v_i} ,

and each step goes towards that: the precision ``\tau + \lambda h`` is averaged over the steps, and ``\mu`` moves along the
gradient divided by it (natural gradient). The paper has a network for ``\mu`` and ``v`` instead, trained by Adam. The score
is that of the denoiser at one noise level, ``(D(z) - z) / \sigma^2``, and so that of images with that little noise.

Where the variance ``V`` of the noise depends on the image (photons, speckle), ``\tau_k`` are in units of
``1 / V(D(z))``. For counts, ``(n - x) / x`` is the gradient of ``\log p(n | x)``. With ``V(y)`` a value would weigh the more
the darker it came out, one without any photon infinitely much, and the image would be too dark.

For Gaussian noise and a Gaussian prior of precision ``P``, ``\mu`` is the posterior mean, and ``v_i = 1 / (\tau + P_{ii})``:
the variance of a pixel given all others, which is less than its posterior variance ``((\tau + P)^{-1})_{ii}``.

Reference: J. Cheng, T. Liu, S. Tan, "Score Priors Guided Deep Variational Inference for Unsupervised Real-World Single Image
Denoising", 2023, https://arxiv.org/abs/2308.04682.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import (
    FiniteNonNegativeFloat,
    FinitePositiveFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
)
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage
from scoreexp.samplers.base import batch_of

FAINTEST = 1e-12  # variance
SPREAD = 4.0  # ratio of the precisions of neighbouring components at the start


class NoiseMixture:
    """``q`` of the noise: Gamma precisions, Dirichlet weights, and the responsibilities of each pixel.

    The prior of the precisions weighs as much as the image does, and has the given level as its mean; without it the
    bound can grow without end where the prior explains the image too well. All is in units of the variance given.

    >>> mixture = NoiseMixture(torch.zeros(1, 1, 1, 3), components=2)
    >>> mixture.update(torch.tensor([[[[1.0, 1.0, 100.0]]]]))
    >>> precision = mixture.precision().flatten()
    >>> bool(precision[2] < precision[0] / 2)  # the outlier
    True

    Args:
        y: an image ``[1, C, H, W]`` of the shape and type of that with the noise.
        components: ``K``.
    """

    def __init__(self, y: Tensor, components: int) -> None:
        places = torch.arange(components, dtype=y.dtype, device=y.device)
        scale = SPREAD ** (places - (components - 1) / 2).reshape(-1, 1, 1, 1)
        self.shape = torch.full_like(scale, 1 + y.numel() / (2 * components))
        self.first_rate = self.rate = self.shape / scale
        self.first_shape = self.shape
        self.weights = torch.ones_like(scale)
        self.shares = torch.full_like(y.expand(components, -1, -1, -1), 1 / components)

    def update(self, squares: Tensor) -> None:
        """One round of the variational updates, given ``E(y - x)^2 [1, C, H, W]`` over the variance given."""
        log_precision = torch.digamma(self.shape) - self.rate.log()
        log_weights = torch.digamma(self.weights) - torch.digamma(self.weights.sum())
        logits = log_weights + 0.5 * log_precision - 0.5 * self.shape / self.rate * squares
        self.shares = logits.softmax(0)
        counts = self.shares.sum((1, 2, 3), keepdim=True)
        self.shape = self.first_shape + counts / 2
        self.rate = self.first_rate + (self.shares * squares).sum((1, 2, 3), keepdim=True) / 2
        self.weights = 1 + counts

    def precision(self) -> Tensor:
        """``E tau_i [1, C, H, W]``."""
        return (self.shares * self.shape / self.rate).sum(0, keepdim=True)


class ScoreDVI(PerImage):
    """The mean of the variational posterior, see the module's formulas.

    >>> import scoreexp as se
    >>> prior = se.oracles.Gaussian(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    >>> model = se.denoisers.OracleDenoiser(prior, se.schedules.VE())
    >>> observation = Observation(torch.ones(1, 1, 2, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> restorer = ScoreDVI(components=0, level=0.02)
    >>> restorer(observation, model, streams=ImageStreams([0])).x.mean().round(decimals=2)  # y / 2
    tensor(0.5000)

    Args:
        steps: at most; each asks the model for ``2 pairs`` draws.
        weight: ``lambda`` of the prior; 0 returns the noisy image.
        components: ``K`` of the mixture; 0 takes the noise of the observation as it is.
        level: noise level at which the score is asked for, in units of [-1, 1]; None follows the standard deviation of the
            posterior, as in the paper.
        pairs: of draws ``e`` and ``-e`` for each expectation.
        rate: share of the way that a step goes.
        tolerance: the fit is over when the mean moves by less than this share of the noise's standard deviation within 25
            steps; 0 takes all steps.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image under the identity.
        FloatingPointError: on a call, the estimate is not finite.
    """

    needs_model: ClassVar[bool] = True
    method: ClassVar[str] = "ScoreDVI"
    smallest: ClassVar[int] = 1

    @checked
    def __init__(
        self,
        steps: PositiveInt = 100,
        weight: FiniteNonNegativeFloat = 1.0,
        components: NonNegativeInt = 3,
        level: FinitePositiveFloat | None = None,
        pairs: PositiveInt = 1,
        rate: FinitePositiveFloat = 0.3,
        tolerance: NonNegativeFloat = 0.1,
    ) -> None:
        self.steps, self.weight, self.components, self.level = steps, weight, components, level
        self.pairs, self.rate, self.tolerance = pairs, rate, tolerance

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        return self.posterior(observation, model, seed, followed)[0]

    @torch.no_grad()
    def posterior(
        self,
        observation: Observation,
        model: DenoiserBase | None,
        seed: int = 0,
        followed: Followed = lambda step, estimate: False,
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of ``q``, each ``[1, C, H, W]``, of one observed image."""
        assert model is not None
        y, streams = observation.y, ImageStreams([seed], "scoredvi")
        observation.require_finite()
        if self.weight == 0:
            return y.clone(), torch.zeros_like(y)
        mixture = NoiseMixture(y, self.components) if self.components else None
        mean, ratio = y.clone(), torch.ones_like(y)  # of precisions, to that of the noise as it is given
        # of the whole image: at a single value it may be 0, where no photon came
        precision = 2 / observation.noise.variance(y.clamp(min=-1)).mean().clamp(min=FAINTEST).expand_as(y)
        for step in range(1, self.steps + 1):
            rate = self.rate * min(
                1.0, 2 * (1 - (step - 1) / self.steps)
            )  # falls over the second half: draws average out
            deviation = (self.weight / precision).sqrt()
            noise = torch.cat([streams.normal(y) for _ in range(self.pairs)])
            noise = torch.cat([noise, -noise])
            z = mean + deviation * noise
            clean, square = self._denoised(model, z, float(deviation.square().mean().sqrt()))
            score = (clean - z) / square
            # an intensity is not known better than to its deviation
            variance = observation.noise.variance(clean.mean(0, keepdim=True).clamp(min=-1 + deviation))
            variance = variance.clamp(min=FAINTEST)
            tau = ratio / variance
            curvature = (-(score * noise).mean(0, keepdim=True) / deviation).clamp(min=0)
            precision = (1 - rate) * precision + rate * (tau + self.weight * curvature)
            mean = mean + rate * (tau * (y - mean) + self.weight * score.mean(0, keepdim=True)) / precision
            if mixture is not None:
                mixture.update(((y - mean).square() + self.weight / precision) / variance)
                ratio = mixture.precision()
            if not mean.isfinite().all():
                raise FloatingPointError(
                    f"the estimate is not finite at step {step} of {self.steps}: choose a smaller rate than {self.rate:g}"
                )
            if followed(step, mean):
                break
        return mean, self.weight / precision

    def _denoised(self, model: DenoiserBase, z: Tensor, deviation: float) -> tuple[Tensor, float]:
        """``D(z)`` for ``z[B, C, H, W]``, by the model at one noise level, and the square of that level."""
        low, high = model.schedule.sigma_range
        level = min(max(self.level or deviation, low), high)
        t = float(model.schedule.t_of_sigma(torch.tensor(level, dtype=torch.float64)))
        alpha, sigma = model.schedule.at(t)
        if not (alpha > 0 and math.isfinite(sigma)):
            raise ValueError(
                f"level={level:g} is where the model's schedule keeps no image: choose a smaller one"
            )
        return model(alpha * z, batch_of(t, z)), float(sigma / alpha) ** 2
