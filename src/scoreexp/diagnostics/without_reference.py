r"""How good a restoration is, and when to stop, where nobody knows the clean image.

**SURE.** For ``y = x + sigma z`` and any weakly differentiable ``f`` the mean squared error has the unbiased estimate

.. math:: \frac1n |f(y) - y|^2 - \sigma^2 + \frac{2 \sigma^2}{n} \operatorname{div} f(y), \qquad
          \operatorname{div} f(y) \approx \frac{1}{\epsilon} b^T (f(y + \epsilon b) - f(y)),

with signs ``b`` and a step ``epsilon`` that is a share of ``sigma``. For noise of any covariance ``C(x)``,

.. math:: \frac1n |f(y) - y|^2 - \frac1n \operatorname{tr} C + \frac2n \operatorname{tr}(C\, \nabla f), \qquad
          \operatorname{tr}(C\, \nabla f) \approx \frac{1}{\epsilon} b^T (f(y + \epsilon b) - f(y)),

with ``b`` a draw of the noise itself: exact for Gaussian noise, white or not, and for linear ``f``; for the others to first
order, with ``C`` at the estimate.

**Split.** Two observations of one image with independent noise are made of one: photons are dealt out, Gaussian noise is
added to one and taken from the other. What is restored from the first has, against the second, its own error and the noise
of the second, which is known.

**Whiteness.** The residual of a good restoration of white noise is white. With the autocorrelations ``rho_k`` at ``K`` lags,
of which none is minus another, ``n sum_k rho_k^2`` has, if it is white, the law chi-squared with ``K`` degrees of freedom.

**Debiasing.** Posterior means are drawn towards the mean of the prior. ``x_hat - V grad log p(x_hat)``, with the law ``p``
of the estimates and their mean squared error ``V``, undoes that: for Gaussians its mean given ``x`` is ``x``, and its
variance is that of ``x`` and of the noise together.

References:
    C. M. Stein, "Estimation of the Mean of a Multivariate Normal Distribution", 1981, https://doi.org/10.1214/aos/1176345632;
    S. Ramani, T. Blu, M. Unser, "Monte-Carlo SURE: A Black-Box Optimization of Regularization Parameters for General
    Denoising Algorithms", 2008, https://doi.org/10.1109/TIP.2008.2001404;
    T. Pang, H. Zheng, Y. Quan, H. Ji, "Recorrupted-to-Recorrupted: Unsupervised Deep Learning for Image Denoising", 2021,
    https://doi.org/10.1109/CVPR46437.2021.00208;
    A. Neufeld, A. Dharamshi, L. L. Gao, D. Witten, "Data thinning for convolution-closed distributions", 2023,
    https://arxiv.org/abs/2301.07276;
    G. E. P. Box, D. A. Pierce, "Distribution of Residual Autocorrelations in Autoregressive-Integrated Moving Average Time
    Series Models", 1970, https://doi.org/10.1080/01621459.1970.10481180;
    M. B. Pettersson, C. T. Jerzak, A. Daoud, "Debiasing Machine Learning Predictions for Causal Inference Without
    Additional Ground Truth Data", 2025, https://arxiv.org/abs/2508.01341.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import mean_per_sample
from scoreexp.core.types import OpenProbability, PositiveFloat, PositiveInt
from scoreexp.observations import GaussianNoise, Identity, NoiseModel, Observation, PoissonNoise

STEP = 0.01  # of the difference quotient, in units of sigma
DARK = 0.1  # of the mean variance, which is taken for less: of black pixels there may be none


@checked
def sure(
    f: Callable[[Tensor], Tensor],
    y: Tensor,
    sigma: PositiveFloat,
    streams: ImageStreams,
    probes: PositiveInt = 1,
) -> Tensor:
    """Stein's unbiased estimate of the mean squared error of ``f(y)``, for ``y = x + sigma z``.

    >>> y = torch.randn(1, 10000, generator=torch.Generator().manual_seed(0))
    >>> sure(lambda y: 0 * y, y, 1.0, ImageStreams([0])).abs().item() < 0.03  # x = 0 is met exactly
    True

    Args:
        f: the restoration ``[B, *] -> [B, *]``, the same function at each call (no fresh noise).
        y: data ``[B, *]``.
        sigma: standard deviation of their noise, > 0.
        streams: one random stream per sample.
        probes: of the divergence, averaged; each is one more call of ``f``.

    Returns:
        ``[B]``, in squared units of ``y``.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    def signs() -> Tensor:
        return torch.where(streams.normal(y) < 0, -torch.ones_like(y), torch.ones_like(y))

    restored = f(y)
    divergence = _trace(f, y, restored, signs, STEP * sigma, probes)
    return mean_per_sample((restored - y) ** 2) - sigma**2 + 2 * sigma**2 * divergence


@checked
def sure_of_noise(
    f: Callable[[Tensor], Tensor],
    y: Tensor,
    noise: NoiseModel,
    streams: ImageStreams,
    probes: PositiveInt = 1,
) -> Tensor:
    """The estimate of the mean squared error of ``f(y)`` for noise of any law, see the module.

    >>> from scoreexp.observations import CorrelatedNoise
    >>> noise = CorrelatedNoise(sigma=1.0)
    >>> y = noise.sample(torch.zeros(1, 1, 64, 64), ImageStreams([0]))
    >>> sure_of_noise(lambda y: 0 * y, y, noise, ImageStreams([1])).abs().item() < 0.1  # x = 0 is met exactly
    True

    Args:
        f: the restoration ``[B, *] -> [B, *]``, the same function at each call (no fresh noise).
        y: data ``[B, *]``.
        noise: their law.
        streams: one random stream per sample.
        probes: of the trace, averaged; each is one more call of ``f``.

    Returns:
        ``[B]``, in squared units of ``y``.

    Raises:
        ValueError: a parameter is outside its domain.
    """
    restored = f(y)
    variance = noise.variance(restored.clamp(min=-1))  # where a law needs intensities
    own = _own_variance(f, y, restored, noise, streams, probes)
    return mean_per_sample((restored - y) ** 2 - variance) + 2 * own


@checked
def posterior_variance(
    f: Callable[[Tensor], Tensor],
    y: Tensor,
    noise: NoiseModel,
    streams: ImageStreams,
    probes: PositiveInt = 1,
) -> Tensor:
    """The mean squared error that a posterior mean ``f`` ascribes to itself, ``tr(C grad f) / n`` by Tweedie's formula.

    An error of the noise level by a few per cent, which is more than all that is left to ``sure_of_noise``, is one of a few
    per cent here; but it believes the prior.

    >>> y = torch.randn(1, 10000, generator=torch.Generator().manual_seed(0))
    >>> posterior_variance(lambda y: y / 2, y, GaussianNoise(1.0), ImageStreams([0])).round(decimals=1)  # of x ~ N(0, 1)
    tensor([0.5000])

    Args:
        f: the posterior mean ``[B, *] -> [B, *]``.
        y: data ``[B, *]``.
        noise: their law.
        streams: one random stream per sample.
        probes: of the trace, averaged; each is one more call of ``f``.

    Returns:
        ``[B]``, in squared units of ``y``.

    Raises:
        ValueError: a parameter is outside its domain.
    """
    return _own_variance(f, y, f(y), noise, streams, probes)


def _own_variance(
    f: Callable[[Tensor], Tensor],
    y: Tensor,
    restored: Tensor,
    noise: NoiseModel,
    streams: ImageStreams,
    probes: int,
) -> Tensor:
    x = restored.clamp(min=-1)  # where a law needs intensities
    return _trace(f, y, restored, lambda: noise.sample(x, streams) - x, STEP, probes)


def _trace(
    f: Callable[[Tensor], Tensor],
    y: Tensor,
    restored: Tensor,
    draw: Callable[[], Tensor],
    step: float,
    probes: int,
) -> Tensor:
    """``E p^T (grad f) p / n`` at ``y``, where ``f`` is ``restored``, over probes that are drawn, ``[B]``."""
    trace = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for _ in range(probes):
        probe = draw()
        trace += mean_per_sample(probe * (f(y + step * probe) - restored)) / (step * probes)
    return trace


@checked
def split(
    observation: Observation, streams: ImageStreams, share: OpenProbability = 0.5
) -> tuple[Observation, Observation]:
    """Two observations of one image with independent noise, of ``share`` and ``1 - share`` of the light.

    >>> first, second = split(Observation(torch.zeros(1, 4), Identity(), GaussianNoise(1.0)), ImageStreams([0]), 0.5)
    >>> round(first.noise.sigma, 3), torch.allclose(first.y, -second.y)
    (1.414, True)

    Args:
        observation: with Gaussian noise, or with whole counts of Poisson noise.
        streams: one random stream per sample.
        share: of the first, in (0, 1); its variance is ``1 / share`` of the observation's.

    Raises:
        ValueError: the noise is of another law, the counts are not whole, or ``share`` is outside its domain.
    """
    y, noise = observation.y, observation.noise
    if type(noise) is GaussianNoise:
        z = noise.sigma * streams.normal(y)
        odds = (1 - share) / share
        first, second = y + odds**0.5 * z, y - odds**-0.5 * z
        noises = GaussianNoise(noise.sigma / share**0.5), GaussianNoise(noise.sigma / (1 - share) ** 0.5)
        return replace(observation, y=first, noise=noises[0]), replace(observation, y=second, noise=noises[1])
    if type(noise) is PoissonNoise:
        exact = noise.peak * (y + 1) / 2
        counts = exact.round()
        if not bool(((exact - counts).abs() < 0.02).all() and (counts >= 0).all()):
            raise ValueError("counts are not whole: give the data as they were counted, 2 n / peak - 1")
        taken = streams.binomial(counts, share)
        light = share * noise.peak, (1 - share) * noise.peak
        parts = (2 * taken / light[0] - 1, 2 * (counts - taken) / light[1] - 1)
        return (
            replace(observation, y=parts[0], noise=PoissonNoise(light[0])),
            replace(observation, y=parts[1], noise=PoissonNoise(light[1])),
        )
    raise ValueError(
        f"{type(noise).__name__} is not split: only Gaussian and Poisson noise fall into independent parts here"
    )


def split_error(x: Tensor, second: Observation) -> Tensor:
    """Unbiased estimate of the mean squared error of ``x``, restored from the first part, against the ``second``.

    >>> error = split_error(torch.zeros(1, 4), Observation(torch.ones(1, 4), Identity(), GaussianNoise(0.5)))
    >>> error
    tensor([0.7500])

    Args:
        x: estimate ``[B, *]``.
        second: the part that was not used, see ``split``.

    Returns:
        ``[B]``, in squared units of ``x``; the least of several tells when to stop.

    Raises:
        ValueError: the operator is not the identity.
    """
    if not isinstance(second.operator, Identity):
        raise ValueError(
            f"the error is that of a denoised image, and {type(second.operator).__name__} is no identity"
        )
    return mean_per_sample((x - second.y) ** 2 - second.noise.variance(second.y))


class Whiteness(NamedTuple):
    """What ``whiteness`` returns.

    Attributes:
        statistic: ``n sum_k rho_k^2 [B]``.
        p_value: the chance of as large a one if the residual is white, ``[B]``.
        correlations: ``rho_k [B, K]``, in the order of ``lags``.
        lags: rows and columns ``[K, 2]``.
    """

    statistic: Tensor
    p_value: Tensor
    correlations: Tensor
    lags: Tensor


@checked
def whiteness(residual: Tensor, reach: PositiveInt = 2) -> Whiteness:
    """Whether residuals are white, by their autocorrelations over periodic borders.

    >>> noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> bool(whiteness(noise).p_value > 0.01), bool(whiteness(noise + noise.roll(1, -1)).p_value < 1e-6)
    (True, True)

    Args:
        residual: ``y - x`` of images ``[B, C, H, W]``, in units of the noise's standard deviation where that varies.
        reach: lags of at most so many rows and columns, ``K = 2 reach (reach + 1)`` of them.

    Raises:
        ValueError: another shape, or an image too small for these lags, or a residual without variance.
    """
    if residual.ndim != 4 or min(residual.shape[-2:]) <= 2 * reach:
        raise ValueError(
            f"residuals of shape {tuple(residual.shape)} with reach={reach}: give images [B, C, H, W] with more than "
            "2 reach pixels a side, and a reach of 1 at least"
        )
    r = residual - residual.mean((-1, -2), keepdim=True)
    power = r.square().flatten(1).sum(1)
    if not bool((power > 0).all()):
        raise ValueError("a residual has no variance: nothing was removed, or it is constant")
    lags = [(i, j) for i in range(reach + 1) for j in range(-reach, reach + 1) if (i, j) > (0, 0)]
    rho = torch.stack([(r * r.roll(lag, (-2, -1))).flatten(1).sum(1) / power for lag in lags], 1)
    statistic = r[0].numel() * rho.square().sum(1)
    p_value = torch.special.gammaincc(torch.full_like(statistic, len(lags) / 2), statistic / 2)
    return Whiteness(statistic, p_value, rho, torch.tensor(lags))


class ResidualCheck(NamedTuple):
    """What ``check_residual`` returns.

    Attributes:
        scale: of the residual, in units of the standard deviation of the noise: 1 less what the restoration took from it,
            for a posterior mean ``sqrt(1 - MSE / Var)``.
        correlation: the largest deviation of an autocorrelation from that of the noise, at lags of at most two pixels.
        shift: mean of the residual in each channel ``[C]``, in units of [0, 1]: what the image lost of its colour.
    """

    scale: float
    correlation: float
    shift: tuple[float, ...]


def check_residual(observation: Observation, x: Tensor) -> ResidualCheck:
    """How far what was removed is the noise that was assumed.

    >>> noise, x = GaussianNoise(0.2), torch.zeros(1, 1, 64, 64)
    >>> observation = Observation.simulate(x, Identity(), noise, ImageStreams([0]))
    >>> scale, correlation, shift = check_residual(observation, x)
    >>> abs(scale - 1) < 0.05, correlation < 0.1, abs(shift[0]) < 0.01
    (True, True, True)

    Args:
        observation: one image ``[1, C, H, W]`` with more than four pixels a side.
        x: what it was restored to.

    Raises:
        ValueError: as ``whiteness``.
    """
    noise, residual = observation.noise, observation.y - x
    clean = x.clamp(min=-1)  # where a law needs intensities
    variance = noise.variance(clean)
    deviation = variance.clamp(min=max(DARK * float(variance.mean()), 1e-12)).sqrt()
    found = whiteness(residual / deviation)
    drawn = whiteness((noise.sample(clean, ImageStreams([0], "residual")) - clean) / deviation)
    return ResidualCheck(
        float((residual / deviation).square().mean().sqrt()),
        float((found.correlations - drawn.correlations).abs().max()),
        tuple(sigma_to_unit(float(mean)) for mean in residual.mean((0, 2, 3))),
    )


@checked
def debiased(estimate: Tensor, score: Tensor, error: PositiveFloat) -> Tensor:
    """``x_hat - V grad log p(x_hat)``: estimates without their shrinkage towards the mean.

    >>> estimate = torch.tensor([[0.5], [-0.5]])  # half of y, from a prior N(0, 1) and noise of variance 1
    >>> debiased(estimate, score=-estimate / 0.5, error=0.5)
    tensor([[ 1.],
            [-1.]])

    Args:
        estimate: posterior means ``[B, *]``.
        score: gradient of the log-density of the estimates, at them ``[B, *]``.
        error: ``V``, their mean squared error, > 0.

    Raises:
        ValueError: ``error`` is not positive.
    """
    return estimate - error * score
