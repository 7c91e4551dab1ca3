r"""Training on exposures: the forward process counts photons instead of adding Gaussian noise.

With the intensity ``u = (x + 1) / 2`` an exposure with ``p`` photons at ``u = 1`` counts

.. math:: n_p \sim \mathrm{Poisson}(p u), \qquad n_p | n_q \sim \mathrm{Binomial}(n_q, p / q) \quad (p < q),
          \qquad x_p = 2 n_p / p - 1 .

Shorter exposures are thinned longer ones, independently of the photons that were lost; ``x_p`` has the mean ``x_0`` and the
variance ``4 u / p``. The camera may add noise of ``s`` photons when it is read, once. The denoiser is told the exposure by
the time at which its schedule has the noise level of mid grey, ``u = 1/2``,

.. math:: (\sigma_t / \alpha_t)^2 = 2 / p + 4 s^2 / p^2 ,

and is given ``alpha_t x_p`` for ``x_t``, so that every denoiser and law of times serves; the noise itself is not Gaussian.
The loss ``w |x0_hat - x_0|^2`` is minimised by ``E[x_0 | n_p]``. ``restorers.Exposure`` goes the other way.

Reference: Y. Wang, Y. Yu, W. Yang, L. Guo, L.-P. Chau, A. Kot, B. Wen, "ExposureDiffusion: Learning to Expose for Low-light
Image Enhancement", 2023, https://arxiv.org/abs/2307.07710. Its adaptive residual layer is ``networks.AdaptiveResidual``.
"""

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import FiniteNonNegativeFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, streams_of
from scoreexp.objectives.weightings import Weighting
from scoreexp.observations.noise.poisson import intensity


def level_of_peak(peak: Tensor, reading: float) -> Tensor:
    """The noise level ``sqrt(2 / p + 4 s^2 / p^2)`` of exposures ``peak`` with the reading noise of ``reading`` photons."""
    return (2 / peak + (2 * reading / peak) ** 2).sqrt()


def peak_of_level(level: Tensor, reading: float) -> Tensor:
    """The exposure with that noise level, the inverse of ``level_of_peak``; 0 at an infinite one.

    >>> peak_of_level(torch.tensor(0.5), reading=0.0)
    tensor(8.)
    """
    return (1 + (1 + (2 * reading * level) ** 2).sqrt()) / level**2


class ExposureMatching(Objective):
    """``loss = w(alpha, sigma) mean |x0_hat(alpha_t x_p, t) - x_0|^2``, see the module's formulas.

    The counts are named by the noise of the call, which itself is the noise of reading.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.objectives import X0Weighting
    >>> from scoreexp.schedules import VE
    >>> model = OracleDenoiser(Gaussian(torch.zeros(3, 8, 8), torch.ones(3, 8, 8)), VE())
    >>> x = torch.zeros(4, 3, 8, 8)
    >>> ExposureMatching(X0Weighting())(model, Batch(x=x), torch.full((4,), 0.5), torch.zeros_like(x)).shape
    torch.Size([4])

    Args:
        weighting: ``w``.
        reading: ``s``, standard deviation of the reading noise in photons, >= 0.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, for a batch without clean data, noise of another shape,
            a negative intensity, or a time at which alpha is 0, where the exposure would be none.
    """

    @checked
    def __init__(self, weighting: Weighting, reading: FiniteNonNegativeFloat = 0.0) -> None:
        self.weighting, self.reading = weighting, float(reading)

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        x_0 = batch.x
        if x_0 is None:
            raise ValueError("the batch has no clean data x: this objective needs a data set that gives them")
        if noise.shape != x_0.shape:
            raise ValueError(
                f"noise of shape {tuple(noise.shape)} for data of shape {tuple(x_0.shape)}: draw as many"
            )
        t = t.to(device="cpu", dtype=torch.float64)
        alpha, sigma = model.schedule(t)
        if not (alpha > 0).all():
            raise ValueError(
                f"alpha of the {type(model.schedule).__name__} schedule is 0 at t = {t[alpha == 0][0].item():.6g}, an "
                "exposure without photons: choose schedule=ve, or schedule.t_max < 1"
            )
        peak = expand_to(peak_of_level(sigma / alpha, self.reading), x_0)
        photons = streams_of(noise, "photons").poisson(peak * intensity(x_0)) + self.reading * noise
        x_t = expand_to(alpha, x_0) * (2 * photons / peak - 1)
        squared_error = mean_per_sample((model(x_t, t, batch.cond) - x_0) ** 2)
        return expand_to(self.weighting(alpha, sigma), squared_error) * squared_error
