r"""Which noise one image has, and how much: from the image alone.

Diagonal detail of an orthonormal wavelet (as in ``level``) is noise where the image is smooth. Pixels are sorted by
brightness into bins; in each, the quarter in the smoothest surroundings gives the variance ``v`` at the mean ``m`` by the
median of the magnitudes. The candidates are lines through these points, in units of [0, 1],

.. math:: v = s^2 \;\text{(Gaussian)}, \quad v = K m \;\text{(Poisson)}, \quad v = m^2 / L \;\text{(Gamma)}, \quad
          v = K m + s^2 \;\text{(Poisson-Gaussian)},

fitted to relative deviations with Cauchy's weights, in units of those below the line, because texture lifts some bins far
above it. The result is refined on the coarsely denoised image: noise of the fitted model is drawn on it and measured in
the same way, which tells what the median, sparse counts, clipping and the smoothing do to each bin.

**Counts.** Where the values are whole multiples of one step, and the variance is about the step times the mean, the step is
the gain, exactly.

**Correlation.** White noise has one level at all scales. Noise that was filtered rises steeply from the finest scale to the
next and less steeply after; its length is that of ``CorrelatedNoise`` with these levels. Texture rises as steeply from each
scale to the next, by 2 at least, and what a geometric series leaves at the finest scale is taken off.

**Check.** The residual of the smoothed image over the standard deviation that the model predicts for it has the
concomitant scale 1, at all frequencies and not in the wavelet's band alone.

**One law.** Where the user names it, it is the only candidate, and a law that is nearer is a doubt.

On photographs (``benchmarks/results/noise_estimation.json``) 186 of the 190 estimates called good named the right model, the
others a Poisson-Gaussian one for Gaussian noise. The parameters were then within about 10 % for Gaussian, Gamma and Poisson
noise (3 % at one count per pixel and below), within 20 % for correlated, the gain of weak Poisson-Gaussian within a third.

References:
    A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian, "Practical Poissonian-Gaussian Noise Modeling and Fitting for
    Single-Image Raw-Data", 2008, https://doi.org/10.1109/TIP.2008.2001399;
    A. B. Owen, "A robust hybrid of lasso and ridge regression", 2007, https://doi.org/10.1090/conm/443/08555 (the
    concomitant scale);
    D. L. Donoho, I. M. Johnstone, "Ideal spatial adaptation by wavelet shrinkage", 1994,
    https://doi.org/10.1093/biomet/81.3.425.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import nnls
from scipy.special import gammainc, ndtr
from scipy.stats import poisson

from scoreexp.core.ranges import sigma_to_model, to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.observations.noise.base import NoiseModel
from scoreexp.observations.noise.correlated import CorrelatedNoise
from scoreexp.observations.noise.gamma import GammaNoise
from scoreexp.observations.noise.gaussian import GaussianNoise
from scoreexp.observations.noise.level import (
    CHANNEL_RATIO,
    CLIPPED_SHARE,
    HIGH,
    LOW,
    MEDIAN_MAGNITUDE,
    TRUSTED_SIDE,
    correlate,
    estimate_sigma,
    require_picture,
)
from scoreexp.observations.noise.poisson import PoissonGaussianNoise, PoissonNoise

WHOLE_PIXELS, TILE, TILES = 2**19, 180, 4  # of larger images TILES x TILES tiles are looked at
SMOOTH = 2.5  # pixels: standard deviation of the filter whose result stands for the clean image
LEFT_IN_SMOOTH = 1 / (4 * math.pi * SMOOTH**2)  # of the variance of white noise
LEFT_IN_RESIDUAL = 1 - 3 * LEFT_IN_SMOOTH
FLAT = 0.4  # share of the pixels that lie in the smoothest surroundings
PER_BIN, FEWEST_BINS, MOST_BINS = 500, 6, 24  # flat pixels in a bin; bins in a channel
PASSES = 2
FEW = 0.9  # of the variance, below which the median is that of few counts and squares are measured
MEASURABLE = 0.3, 2.0  # of the variance, that must be found of drawn noise in a bin
LENGTHS = np.linspace(0.3, 3, 136)  # pixels, of correlated noise
WHITE, STEEPER, BLUE = 1.25, 1.1, 0.85  # rises of the level from one scale to the next
TEXTURE = 0.3  # share of the variance
GOOD_FIT, GOOD_SCALES = 0.15, 0.12  # deviations from the line and from the levels
RIVAL = 10.0  # of the cost, that two parameters instead of one, or this model instead of another, must save
SURE = 0.02  # deviation that no fit is better than
AGREES = 0.25  # deviation of the check
NARROW = 0.25  # share of the noise in the variance of the smoothed image
MOST_COUNTS, NEAR_STEP, ROUNDED = 400, 0.3, 0.51 / 255
LEAST_GAIN = (
    0.01  # share of the variance that is of counts where a Poisson-Gaussian law is named and shows none
)
BRIGHT, NEARLY_BLACK, DARKER = 0.2, 0.2, 0.002  # of white; of the smoothed image; a share of the pixels
LEAST_CLIPPED = 1e-4  # share of the values
LAWS: tuple[type[NoiseModel], ...] = (
    GaussianNoise,
    PoissonNoise,
    GammaNoise,
    PoissonGaussianNoise,
    CorrelatedNoise,
)


class Estimate(NamedTuple):
    """What ``estimate`` returns.

    Attributes:
        noise: in the units of the model ([-1, 1]); the nearest one where none fits.
        trust: whether to rely on it.
        why: in a clause, what the trust rests on.
    """

    noise: NoiseModel
    trust: Literal["good", "doubtful"]
    why: str


class _Bins(NamedTuple):
    """Of each bin, in units of [0, 1].

    Attributes:
        mean: ``[N]``.
        variance: of the detail at each scale ``[N, 3]``, by the median of its magnitudes.
        square: the same by its mean square.
        channel: ``[N]``.
    """

    mean: np.ndarray
    variance: np.ndarray
    square: np.ndarray
    channel: np.ndarray


class _Fit(NamedTuple):
    """A model of the variances, its relative deviation from them, and what it costs (twice minus the log-likelihood)."""

    noise: NoiseModel
    misfit: float
    cost: float


_Parts = list[list[np.ndarray]]  # for each channel, pieces [h, w] of it


def estimate(pixels: np.ndarray, law: type[NoiseModel] | None = None) -> Estimate:
    """The noise model of one picture.

    >>> counts = np.random.default_rng(0).poisson(np.linspace(1, 20, 128), (128, 128))
    >>> noise, trust, why = estimate(counts[..., None] / 20)
    >>> type(noise).__name__, round(noise.peak, 6), trust, why
    ('PoissonNoise', 20.0, 'good', 'its values are whole multiples of one count')

    Args:
        pixels: ``[H, W, C]`` floating point, nominally in [0, 1], best not clipped; H and W at least 16.
        law: the one of ``LAWS`` whose parameters alone are to be found; None: whichever fits best.

    Raises:
        ValueError: another shape or type, an image that is too small, values that are not finite, or another law.
    """
    if law is not None and law not in LAWS:
        allowed = ", ".join(each.__name__ for each in LAWS)
        raise ValueError(
            f"the parameters of {law.__name__} cannot be estimated, those of {allowed} can: give them"
        )
    require_picture(pixels)
    if law is GaussianNoise and min(pixels.shape[:2]) < TRUSTED_SIDE:  # there are no pixels to leave out
        white = estimate_sigma(pixels)
        return Estimate(GaussianNoise(sigma_to_model(white.sigma)), white.trust, white.why)
    parts = _parts(pixels)
    smooth = _smoothed(parts)
    doubts = _doubts_of_the_data(pixels)
    counted = law in (None, PoissonNoise, PoissonGaussianNoise)
    if counted and (step := _step_of_counts(parts, smooth)) is not None:
        if pixels.max() <= 1 and _clipped_counts(step, smooth) > 10:
            doubts.append("counts above white are missing: it is clipped")
        counts = PoissonGaussianNoise(1 / step) if law is PoissonGaussianNoise else PoissonNoise(1 / step)
        return _estimate(counts, doubts, "its values are whole multiples of one count")
    bins = _measure(parts, smooth, smooth)
    if not np.median(bins.variance[:, 0]) > 1e-12:
        return Estimate(GaussianNoise(0.0), "doubtful", "no noise was found")
    line = GaussianNoise if law is CorrelatedNoise else law
    squares = bins._replace(variance=bins.square)  # few counts deceive the median
    noise, refined = _nearest(squares, line), bins
    for _ in range(PASSES):
        found = _measure_drawn(noise, smooth, clipped=bool(pixels.min() >= 0 and pixels.max() <= 1))
        refined = _refined(bins, found, noise)
        if len(refined.mean) < 0.5 * len(bins.mean):
            return _estimate(noise, [*doubts, "too few of its pixels show their noise"], "")
        noise = _nearest(refined, line)
    levels = _levels(refined, noise)
    first, second = levels[1] / levels[0], levels[2] / levels[1]
    shared = first > WHITE and first > STEEPER * second
    if law is CorrelatedNoise or (shared and law is None):
        return _correlated(levels, refined, doubts)
    texture = 0.0 if shared else _share_of_texture(levels)
    if shared:
        doubts.append("neighbours share its noise, as CorrelatedNoise has it")
    elif texture > TEXTURE:
        doubts.append("its noise is not white or is weaker than its texture")
    elif first < BLUE:
        doubts.append("its noise is not white, and the nearest model is")
    kept = refined._replace(variance=refined.variance * (1 - min(texture, TEXTURE)))
    fits = _fits(kept, line)
    noise = _best(fits, law)
    if isinstance(noise, GammaNoise) and _is_darker(parts, smooth, noise):
        if law is None:
            fits = [fit for fit in fits if fit.noise is not noise]
            noise = _best(fits, law)
        else:
            doubts.append("it has pixels that are darker than speckle can be")
    doubts += _doubts_of_the_fit(kept, noise, fits) if law is None else _doubts_of_the_law(kept, noise)
    doubts += _doubts_of_the_channels(kept, noise)
    scale = _scale_of_residual(noise, parts, smooth)
    if not abs(scale - 1) < AGREES and not doubts:
        doubts.append(f"the residual of the smoothed image has {scale:.2f} of the noise of this model")
    return _estimate(noise, doubts, f"the variance of {len(kept.mean)} levels of brightness fits it")


def clipped_ends(pixels: np.ndarray, noise: NoiseModel) -> tuple[bool, bool]:
    """Whether noise of this law was cut off at black and at white: as many values lie there as it should bring there.

    >>> noisy = np.random.default_rng(0).normal(0.9, 0.1, (64, 64, 1))
    >>> [clipped_ends(pixels, GaussianNoise(0.2)) for pixels in (noisy, noisy.clip(0, 1))]
    [(False, False), (False, True)]

    Args:
        pixels: ``[H, W, C]`` floating point, nominally in [0, 1].
        noise: of the image; of a law that is none of ``LAWS`` nothing is said.
    """
    if type(noise) not in LAWS:
        return False, False
    parts = _parts(pixels)
    smooth = np.concatenate([part.ravel() for part in chain(*_smoothed(parts))])
    sigma = np.sqrt(np.maximum(_variance(noise, smooth), 1e-12))
    values = np.concatenate([part.ravel() for part in chain(*parts)])
    found = []
    for there, beyond, distance in (
        (values == 0, pixels.min() < 0, smooth),
        (values == 1, pixels.max() > 1, 1 - smooth),
    ):
        expected = float(ndtr(-distance / sigma).mean())
        found.append(not beyond and expected > LEAST_CLIPPED and bool(there.mean() > expected / 2))
    at_zero = float(noise.variance(torch.tensor([-1.0]))) > 0  # else black has no noise that could be cut off
    return found[0] and at_zero, found[1]


def concomitant_scale(residual: np.ndarray) -> float:
    r"""The scale that minimises ``|r|^2 / (2 n s) + s / 2`` together with what ``r`` is the residual of: ``|r| / sqrt(n)``.

    >>> concomitant_scale(np.array([3.0, -4.0, 0.0, 0.0]))
    2.5

    Args:
        residual: any shape.

    Raises:
        ValueError: it is empty.
    """
    if residual.size == 0:
        raise ValueError("the residual is empty: give one value at least")
    return float(np.sqrt(np.mean(np.square(residual))))


def _estimate(noise: NoiseModel, doubts: Sequence[str], why: str) -> Estimate:
    return Estimate(noise, "doubtful" if doubts else "good", "; ".join(doubts) or why)


def _doubts_of_the_data(pixels: np.ndarray) -> list[str]:
    doubts = []
    if min(pixels.shape[:2]) < TRUSTED_SIDE:
        doubts.append(f"the image is smaller than {TRUSTED_SIDE} pixels")
    if pixels.max() <= 1 and (white := float((pixels == 1).mean())) > CLIPPED_SHARE:
        doubts.append(f"{white:.0%} of its values are clipped to white, so the noise may be stronger")
    return doubts


def _doubts_of_the_fit(bins: _Bins, noise: NoiseModel, fits: Sequence[_Fit]) -> list[str]:
    doubts = []
    mine = next(fit for fit in fits if type(fit.noise) is type(noise))
    name = type(noise).__name__
    if mine.misfit > GOOD_FIT:
        doubts.append(f"no model fits its noise, {name} is the nearest ({mine.misfit:.0%} off)")
    line = type(noise) is PoissonGaussianNoise
    for fit in fits:
        nested = type(fit.noise) is not GammaNoise if line else type(fit.noise) is PoissonGaussianNoise
        if fit is not mine and not nested and fit.cost - mine.cost < RIVAL:
            doubts.append(f"{type(fit.noise).__name__} fits it about as well as {name}")
    of_smooth = float(_variance(noise, bins.mean).mean()) * LEFT_IN_SMOOTH
    if type(noise) is not GaussianNoise and of_smooth > NARROW * bins.mean.var():
        doubts.append("its brightness varies too little to tell how its noise depends on it")
    return doubts


def _doubts_of_the_law(bins: _Bins, noise: NoiseModel) -> list[str]:
    """Of one that was named: how far it is from the variances, and what is nearer."""
    misfit = _misfit(bins.variance[:, 0], _variance(noise, bins.mean))
    if misfit <= GOOD_FIT:
        return []
    name, nearest = type(noise).__name__, type(_nearest(bins)).__name__
    nearer = "" if nearest == name else f", {nearest} is nearer"
    return [f"{name} does not fit its noise ({misfit:.0%} off){nearer}"]


def _doubts_of_the_channels(bins: _Bins, noise: NoiseModel) -> list[str]:
    off = bins.variance[:, 0] / np.maximum(_variance(noise, bins.mean), 1e-12)
    medians = [np.median(off[bins.channel == channel]) for channel in np.unique(bins.channel)]
    return ["its channels disagree"] if max(medians) > CHANNEL_RATIO**2 * min(medians) else []


def _parts(pixels: np.ndarray) -> _Parts:
    """For each channel the whole of it, or evenly spaced tiles."""
    height, width, channels = pixels.shape
    places = [(slice(None), slice(None))]
    if height * width > WHOLE_PIXELS:
        tops, lefts = (
            np.linspace(0, max(side - TILE, 0), TILES).round().astype(int) for side in (height, width)
        )
        places = [(slice(top, top + TILE), slice(left, left + TILE)) for top in tops for left in lefts]
    return [[pixels[*place, c].astype(np.float64) for place in places] for c in range(channels)]


def _smoothed(parts: _Parts) -> _Parts:
    return [[gaussian_filter(part, SMOOTH) for part in channel] for channel in parts]


def _measure(parts: _Parts, guides: _Parts, truth: _Parts) -> _Bins:
    """Variances of ``parts`` in bins of equal brightness of ``guides``, whose means are those of ``truth``."""
    rows = []
    for channel, (noisy, guide, clean) in enumerate(zip(parts, guides, truth)):
        details = [_details(part) for part in noisy]
        shapes = [d.shape[1:] for d in details]
        slopes = [_slope(g) for g in guide]
        detail = np.concatenate([d.reshape(len(d), -1) for d in details], 1)
        bright, slope, mean = (
            np.concatenate([_inside(image, shape).ravel() for image, shape in zip(images, shapes)])
            for images in (guide, slopes, clean)
        )
        count = int(np.clip(bright.size * FLAT / PER_BIN, FEWEST_BINS, MOST_BINS))
        for members in np.array_split(np.argsort(bright, kind="stable"), count):
            flat = members[slope[members] <= np.quantile(slope[members], FLAT)]
            level = np.median(np.abs(detail[:, flat]), axis=1) / MEDIAN_MAGNITUDE
            rows.append((mean[flat].mean(), level**2, (detail[:, flat] ** 2).mean(1), channel))
    return _Bins(*(np.array(column) for column in zip(*rows)))


def _measure_drawn(noise: NoiseModel, clean: _Parts, clipped: bool) -> _Bins:
    """What is measured of ``noise`` alone, drawn on ``clean`` and put into bins as in a picture."""
    drawn = []
    for channel, images in enumerate(clean):
        streams = ImageStreams([channel], "noise estimate")
        rows = [
            to_unit(noise.sample(to_model(torch.from_numpy(image.clip(0)))[None], streams))[0]
            for image in images
        ]
        drawn.append([row.numpy().clip(0, 1) if clipped else row.numpy() for row in rows])
    alone = [[a - b for a, b in zip(*pair)] for pair in zip(drawn, clean)]
    return _measure(alone, _smoothed(drawn), clean)


def _refined(bins: _Bins, found: _Bins, noise: NoiseModel) -> _Bins:
    """``bins`` without what the measurement made of ``noise`` in ``found``; those that hardly show it are left out."""
    known = np.maximum(_variance(noise, found.mean), 1e-12)[:, None]
    few = np.median(found.variance[:, 0] / known[:, 0]) < FEW
    measured, drawn = (bins.square, found.square) if few else (bins.variance, found.variance)
    ratio = drawn / known
    usable = (ratio[:, 0] > MEASURABLE[0]) & (ratio[:, 0] < MEASURABLE[1]) & (ratio > 0).all(1)
    variance = measured[usable] / ratio[usable]
    return _Bins(found.mean[usable], variance, variance, bins.channel[usable])


def _details(x: np.ndarray) -> np.ndarray:
    """Diagonal detail of ``x[H, W]`` at three scales, where the coarsest is known: ``[3, h, w]``."""
    found = []
    for step in (1, 2, 4) if min(x.shape) > 24 else (1, 1, 1):
        found.append(correlate(correlate(x, HIGH, 0, step), HIGH, 1, step))
        x = correlate(correlate(x, LOW, 0, step), LOW, 1, step)
    return np.stack([_inside(detail, found[-1].shape) for detail in found])


def _slope(guide: np.ndarray) -> np.ndarray:
    return np.hypot(*np.gradient(gaussian_filter(guide, 1.5)))


def _inside(x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The middle of ``x[H, W]``."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape, shape))
    return x[top : top + shape[0], left : left + shape[1]]


def _variance(noise: NoiseModel, mean: np.ndarray) -> np.ndarray:
    """Of ``noise`` at intensities of [0, 1], in these units."""
    return noise.variance(to_model(torch.from_numpy(mean.clip(0)))).numpy() / 4


def _fits(bins: _Bins, law: type[NoiseModel] | None = None) -> list[_Fit]:
    """Each candidate, as near the variances of the finest scale as it comes; the simplest first; or ``law`` alone."""
    v, m = bins.variance[:, 0], bins.mean.clip(0)
    one = np.ones_like(m)
    (s2,), (gain,), (square,), (slope, rest) = (
        _line(v, np.stack(columns, 1)) for columns in ([one], [m], [m**2], [m, one])
    )
    noises: list[NoiseModel] = [GaussianNoise(sigma_to_model(s2**0.5))]
    if gain > 0:
        noises += [PoissonNoise(1 / gain), GammaNoise(1 / square)]
    if law is PoissonGaussianNoise and slope < LEAST_GAIN * gain:
        slope, rest = LEAST_GAIN * gain, (1 - LEAST_GAIN) * s2
    if slope > 0:
        noises.append(PoissonGaussianNoise(1 / slope, sigma_to_model(rest**0.5)))
    fits = []
    for noise in (each for each in noises if law in (None, type(each))):
        misfit = _misfit(v, _variance(noise, m))
        extra = RIVAL if type(noise) is PoissonGaussianNoise else 0.0
        fits.append(_Fit(noise, misfit, 2 * len(v) * math.log(misfit + SURE) + extra))
    return fits


def _nearest(bins: _Bins, law: type[NoiseModel] | None = None) -> NoiseModel:
    """The candidate of the least cost, of ``law`` where there is one."""
    return _best(_fits(bins, law), law)


def _best(fits: Sequence[_Fit], law: type[NoiseModel] | None) -> NoiseModel:
    """That of the least cost.

    Raises:
        ValueError: there is none, as the picture is black, where the noise of this law has no variance.
    """
    if not fits:
        assert law is not None
        raise ValueError(f"the image is black, where {law.__name__} is none: give its parameters, or another")
    return min(fits, key=lambda fit: fit.cost).noise


def _is_darker(parts: _Parts, smooth: _Parts, noise: GammaNoise) -> bool:
    """Whether more pixels of flat places are nearly black than the law has there, as where noise was clipped."""
    found = []
    for part, guide in zip(chain(*parts), chain(*smooth)):
        slope = _slope(guide)
        bright = (slope <= np.quantile(slope, FLAT)) & (guide > BRIGHT)
        found.append(part[bright] <= NEARLY_BLACK * guide[bright])
    share = float(np.concatenate(found).mean()) if any(map(len, found)) else 0.0
    return share > 2 * float(gammainc(noise.looks, NEARLY_BLACK * noise.looks)) + DARKER


def _line(v: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Coefficients >= 0 of ``v ~ columns [N, k]`` by relative deviations, from least to Cauchy's weighted squares."""
    found = np.zeros(columns.shape[1])
    line = v.mean() * np.ones_like(v)
    weight = np.ones_like(v)
    for _ in range(40):
        found, _ = nnls(columns * (weight / line)[:, None], v * weight / line)
        line = np.maximum(columns @ found, 1e-3 * v.mean())
        deviation = np.log(np.maximum(v, 1e-3 * v.mean()) / line)
        below = -deviation[deviation < 0]  # free of texture
        limit = 3 * max(float(np.median(below)) if len(below) else 0.0, SURE)
        weight = 1 / np.sqrt(1 + (deviation / limit) ** 2)
    return found


def _misfit(v: np.ndarray, line: np.ndarray) -> float:
    """Root mean square of ``log(v / line)`` over the three quarters of the bins where it is smallest."""
    floor = 1e-3 * v.mean()
    square = np.sort(np.log(np.maximum(v, floor) / np.maximum(line, floor)) ** 2)
    return float(np.sqrt(square[: -(-3 * len(square) // 4)].mean()))


def _step_of_counts(parts: _Parts, smooth: _Parts) -> float | None:
    """The step between the values, if they have one that is not of 8 bits, and their variance agrees."""
    values = np.unique(np.concatenate([part.ravel() for part in chain(*parts)]))
    if not 2 <= len(values) <= MOST_COUNTS or values[0] != 0:
        return None
    step = float(np.median(np.diff(values)))
    for _ in range(2):
        count = np.round(values / step)
        step = float(values @ count / (count @ count))
    off = float(np.abs(values - count * step).max())
    if off > (ROUNDED if step > 5 * ROUNDED else 1e-3 * step) or abs(255 * step - 1) < 0.01:
        return None
    variance, mean = 0.0, 0.0
    for part, guide in zip(chain(*parts), chain(*smooth)):
        detail, slope = _details(part)[0], _slope(guide)
        flat = _inside(slope <= np.quantile(slope, FLAT), detail.shape)
        variance += float((detail[flat] ** 2).sum())
        mean += float(_inside(guide, detail.shape)[flat].sum())
    return step if abs(variance - step * mean) < NEAR_STEP * step * mean else None


def _clipped_counts(step: float, smooth: _Parts) -> float:
    """How many values above 1 are to be expected."""
    most = round(1 / step)
    return sum(float(poisson.sf(most, image.clip(0) / step).sum()) for image in chain(*smooth))


def _scale_of_residual(noise: NoiseModel, parts: _Parts, smooth: _Parts) -> float:
    """Concomitant scale of the residual where the image is flat, in units of what ``noise`` leaves there."""
    residuals, expected = [], []
    for part, guide in zip(chain(*parts), chain(*smooth)):
        slope = _slope(guide)
        flat = slope <= np.quantile(slope, FLAT)
        residuals.append((part - guide)[flat])
        expected.append(np.sqrt(LEFT_IN_RESIDUAL * _variance(noise, guide[flat])))
    return concomitant_scale(np.concatenate(residuals)) / concomitant_scale(np.concatenate(expected))


def _correlated(levels: np.ndarray, bins: _Bins, doubts: list[str]) -> Estimate:
    """The length and the level whose three levels are nearest in the logarithm."""
    logs = np.log(levels / _levels_of_filtered())
    deviation = logs.std(1)
    best = int(deviation.argmin())
    noise = CorrelatedNoise(sigma_to_model(float(np.exp(logs[best].mean()))), float(LENGTHS[best]))
    spread = _misfit(bins.variance[:, 1], np.full_like(bins.mean, levels[1] ** 2))
    if deviation[best] > GOOD_SCALES:
        doubts.append("its noise is not white or is weaker than its texture")
    if spread > GOOD_FIT:
        doubts.append(
            "no model fits noise that neighbours share and that depends on brightness, CorrelatedNoise is near"
        )
    return _estimate(noise, doubts, "three scales fit a filter of this length")


def _levels(bins: _Bins, noise: NoiseModel) -> np.ndarray:
    """Level at each scale of the half of the bins that are nearest to the model, those of the least texture."""
    line = np.maximum(_variance(noise, bins.mean), 1e-12)
    off = np.abs(np.log(np.maximum(bins.variance[:, 0], 1e-12) / line))
    near = off <= np.median(off)
    return np.sqrt(np.median(bins.variance[near] / line[near, None], axis=0) * line.mean())


def _share_of_texture(levels: np.ndarray) -> float:
    """Of the variance of the finest scale: that of a geometric series, by a factor of 4 at least from scale to scale."""
    one, two, four = levels**2
    factor = max((four - two) / (two - one), 4.0) if two > one else math.inf
    return float((two - one) / one / (factor - 1))


@cache
def _levels_of_filtered() -> np.ndarray:
    """Levels at the three scales of ``CorrelatedNoise(1, length)`` for each of ``LENGTHS``: ``[N, 3]``."""
    impulse = np.zeros((1, 96))
    impulse[0, 48] = 1
    bands, x = [], impulse
    for step in (1, 2, 4):
        bands.append(correlate(x, HIGH, 1, step)[0])
        x = correlate(x, LOW, 1, step)
    powers = [np.abs(np.fft.rfft(band, 256)) ** 2 for band in bands]
    weights = np.r_[1, np.full(127, 2.0), 1]
    place = np.minimum(np.arange(256), 256 - np.arange(256))
    filters = np.abs(np.fft.rfft(np.exp(-(place**2) / (2 * LENGTHS[:, None] ** 2)))) ** 2
    filters /= (filters @ weights)[:, None]
    return np.stack([filters @ (weights * power) for power in powers], 1)
