"""An image read as a probability density: the starting point of the Fokker-Planck equation.

This density lives on the image plane (bright pixels are likely positions); it is a modelling choice and has
nothing to do with the distribution of images, whose score a diffusion model learns.

References: Lau, Na, Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
Projection", 2025, https://arxiv.org/abs/2511.17634 (``sampled_kde``); Na, Gao, Briazkalo, Wan, "Efficient
Denoising using Score Embedding in Score-based Diffusion Models", 2024, https://arxiv.org/abs/2404.06661
(``value_pairs``).
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.ndimage import correlate1d
from scipy.stats import gaussian_kde

from scoreexp.core.checked import checked
from scoreexp.numerics.fokker_planck.grid import Array, Grid

InitialDensity = Literal["smoothed", "sampled_kde", "value_pairs"]

BACKGROUND = 0.1  # added to the brightness, so that black pixels keep some probability
SAMPLES = 2000
JITTER = 0.01
FLOOR = 1e-10
SCOTT_SQUARED = SAMPLES ** (-1 / 3)  # square of Scott's factor n^(-1/(d + 4)) in d = 2 dimensions
VALUE_BINS = 64
_PIXELS_AT_ONCE = 2**13  # the transforms of so many pixels stay in the cache of a core


@checked
def initial_log_density(
    image: ArrayLike,
    method: InitialDensity = "smoothed",
    *,
    positions: ArrayLike | None = None,
    rng: np.random.Generator | None = None,
) -> Array:
    """Log-density m_0 = log p_0 of an image.

    ``sampled_kde``: 2000 pixel positions drawn with probability w ~ (channel mean + 0.1), jittered by N(0,
    0.01^2), clipped to the unit square, Gaussian kernel density estimate with Scott's bandwidth, read on the
    grid.
    ``smoothed``: its mean over draws, up to the clipping, which moves only the points of the outermost 0.02
    by less than a twentieth of the bandwidth:

        p_0(x) = sum_ij w_ij N(x; x_ij, S),    S = 2000^(-1/3) C + 0.01^2 I,    C = Cov_w[x] + 0.01^2 I.

    Both are floored at 1e-10 and normalised so that sum_ij p_ij h_row h_col = 1. A black or constant image is
    the uniform
    weight: a defined result, the same for every grey level.
    ``value_pairs``: per channel, the pairs (x[i, j], x[j, i]) are points in value space; their 64 x 64
    histogram is smoothed with Scott's bandwidth (at least one bin) and the log-density read back at each
    pixel (not normalised over the image plane). A constant image gives a constant log-density.

    >>> import numpy as np
    >>> image = np.zeros((9, 9))
    >>> image[4, 4] = 1.0
    >>> log_p0 = initial_log_density(image)
    >>> [int(i) for i in np.unravel_index(log_p0.argmax(), log_p0.shape)]
    [4, 4]

    Args:
        image: [H, W] or [H, W, C], values in [0, 1], both sides at least 3.
        method: see above.
        positions: [n, 2] (row, column) coordinates in the unit square, for ``sampled_kde`` only: points
            already drawn, jittered and clipped, which replay a given draw.
        rng: generator of the draw; required by ``sampled_kde`` without positions.

    Returns:
        [H, W]; for ``value_pairs`` of an [H, W, C] image [C, H, W].

    Raises:
        ValueError: values outside [0, 1] or not finite, a wrong shape, an unknown method, arguments that the
            method does not take or lacks, or positions that are all on one line.
    """
    image = _checked(image)
    if method != "sampled_kde":
        if positions is not None:
            raise ValueError(f"method {method!r} draws no positions: pass positions only to 'sampled_kde'")
        log_p = initial_log_densities(image.reshape(1, *image.shape[:2], -1), method)[0]
        return log_p.reshape(image.shape) if image.ndim == 2 else log_p
    grid = Grid.of(image.shape[:2])
    weights = (image if image.ndim == 2 else image.mean(axis=-1)) + BACKGROUND
    return _log_density(_sampled(weights / weights.sum(), grid, positions, rng)[None], grid)[0]


@checked
def initial_log_densities(images: ArrayLike, method: Literal["smoothed", "value_pairs"]) -> Array:
    """``initial_log_density`` of each of ``images[B, H, W, C]`` by the methods that draw nothing.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).random((2, 8, 8, 3))
    >>> log_p = initial_log_densities(images, "smoothed")
    >>> np.array_equal(log_p[1], initial_log_density(images[1]))
    True

    Returns:
        ``[B, H, W]``; for ``value_pairs`` ``[B, C, H, W]``.

    Raises:
        ValueError: as for ``initial_log_density``.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise ValueError(f"images have shape {images.shape}: give [B, H, W, C] with at least one image")
    grid = Grid.of(images.shape[1:3])
    at_once = max(1, _PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
    parts = []
    for first in range(0, len(images), at_once):
        planes = np.ascontiguousarray(np.moveaxis(_in_unit_range(images[first : first + at_once]), -1, 1))
        if method == "value_pairs":
            parts.append(_value_pairs(planes))
            continue
        weights = planes.mean(axis=1) + BACKGROUND
        weights /= weights.sum(axis=(1, 2), keepdims=True)
        parts.append(_log_density(_smoothed(weights, grid), grid))
    return np.concatenate(parts)


def sample_positions(image: ArrayLike, rng: np.random.Generator, *, samples: int = SAMPLES) -> Array:
    """Positions [samples, 2] as drawn by ``sampled_kde``: by brightness, jittered, clipped to [0, 1].

    >>> import numpy as np
    >>> sample_positions(np.ones((9, 9)), np.random.default_rng(0), samples=5).shape
    (5, 2)
    """
    image = _checked(image)
    weights = (image if image.ndim == 2 else image.mean(axis=-1)) + BACKGROUND
    return _draw(weights / weights.sum(), Grid.of(image.shape[:2]), rng, samples)


def _checked(image: ArrayLike) -> Array:
    image = np.asarray(image, dtype=np.float64)
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"image has shape {image.shape}: give [H, W] or [H, W, C]")
    Grid.of(image.shape[:2])
    return _in_unit_range(image)


def _in_unit_range(image: ArrayLike) -> Array:
    image = np.asarray(image, dtype=np.float64)
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("image has NaN or infinite values: give finite values in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(f"image values span [{low:.4g}, {high:.4g}]: rescale them to [0, 1]")
    return image


def _log_density(density: Array, grid: Grid) -> Array:
    """log p of densities [B, H, W], floored and normalised each."""
    density = np.maximum(density, FLOOR)
    density /= density.sum(axis=(1, 2), keepdims=True) * np.prod(grid.spacing)
    return np.log(density, out=density)


def _smoothed(weights: Array, grid: Grid) -> Array:
    """Weights [B, H, W], each convolved with the Gaussian kernel of its own covariance."""
    mean = (weights[:, None] * grid.points).sum(axis=(2, 3))
    centred = grid.points - mean[:, :, None, None]
    covariance = np.einsum("nij,naij,nbij->nab", weights, centred, centred) + JITTER**2 * np.eye(2)
    smoothing = SCOTT_SQUARED * covariance + JITTER**2 * np.eye(2)
    precision = -np.linalg.inv(smoothing)[..., None] / 2
    row, col = (np.arange(1 - n, n) * h for n, h in zip(grid.shape, grid.spacing))
    # -o^T S^-1 o / 2 of the offsets o = (row, col): [B, 2H - 1, 2W - 1]
    exponent = (row * precision[:, 0, 0] * row)[:, :, None] + (row * precision[:, 0, 1])[:, :, None] * col
    exponent += (col * precision[:, 1, 0])[:, None, :] * row[:, None]
    exponent += (col * precision[:, 1, 1] * col)[:, None, :]
    kernel = np.exp(exponent, out=exponent)
    kernel /= (2 * np.pi * np.sqrt(np.linalg.det(smoothing)))[:, None, None]
    return _convolved(weights, kernel)


def _convolved(weights: Array, kernels: Array) -> Array:
    """weights [B, H, W] * kernels [B, 2H - 1, 2W - 1] at the pixels, by Fourier transforms.

    A period of 2H - 1 is enough: what it wraps falls beside the pixels. One axis at a time, so that lines of zeros and
    lines that nobody asked for are not transformed.
    """
    height, width = weights.shape[1:]
    rows, columns = (fft.next_fast_len(2 * n - 1, real=True) for n in (height, width))
    product = fft.fft(fft.rfft(weights, columns), rows, axis=1, overwrite_x=True)
    product *= fft.fft(fft.rfft(kernels, columns), rows, axis=1, overwrite_x=True)
    lines = fft.ifft(product, axis=1, norm="forward", overwrite_x=True)[:, height - 1 : 2 * height - 1]
    result = fft.irfft(lines, columns, norm="forward")[:, :, width - 1 : 2 * width - 1]
    return np.asarray(result * (1 / (rows * columns)))


def _draw(weights: Array, grid: Grid, rng: np.random.Generator, samples: int) -> Array:
    pixel = rng.choice(weights.size, size=samples, p=weights.ravel())
    points = grid.points.reshape(2, -1).T[pixel]
    return np.clip(points + rng.normal(0.0, JITTER, points.shape), 0, 1)


def _sampled(
    weights: Array, grid: Grid, positions: ArrayLike | None, rng: np.random.Generator | None
) -> Array:
    if positions is None:
        if rng is None:
            raise ValueError(
                "method 'sampled_kde' draws positions: pass rng=numpy.random.default_rng(seed) or positions"
            )
        positions = _draw(weights, grid, rng, SAMPLES)
    points = np.asarray(positions, dtype=np.float64)
    if (
        points.ndim != 2
        or points.shape[1] != 2
        or not np.isfinite(points).all()
        or points.min() < 0
        or points.max() > 1
    ):
        raise ValueError(f"positions have shape {points.shape}: give finite [n, 2] coordinates in [0, 1]")
    if np.linalg.matrix_rank(points - points.mean(axis=0)) < 2:
        raise ValueError(
            f"{len(points)} positions lie on one line: a kernel estimate needs at least 3 in the plane"
        )
    return gaussian_kde(points.T)(grid.points.reshape(2, -1)).reshape(grid.shape)


def _value_pairs(planes: Array) -> Array:
    """log-densities [B, C, H, W] of the value pairs of planes [B, C, H, W]."""
    if planes.shape[2] != planes.shape[3]:
        raise ValueError(
            f"method 'value_pairs' pairs x[i, j] with x[j, i]: image {planes.shape[2:]} must be square"
        )
    size = planes[0, 0].size
    values = planes.reshape(-1, size)
    scaled = values * VALUE_BINS
    bins = np.minimum(scaled.astype(np.intp), VALUE_BINS - 1)
    pairs = bins * VALUE_BINS + _transposed(bins)
    pairs += np.arange(len(bins))[:, None] * VALUE_BINS**2
    counts = np.bincount(pairs.ravel(), minlength=len(bins) * VALUE_BINS**2)
    histograms = counts.reshape(-1, VALUE_BINS, VALUE_BINS) * float(VALUE_BINS**2) / size
    deviations = np.maximum(size ** (-1 / 6) * values.std(axis=1) * VALUE_BINS, 1.0)
    densities = np.zeros_like(histograms)
    for each, sd, first, last, out in zip(histograms, deviations, bins.min(1), bins.max(1), densities):
        _smoothed_bins(each, float(sd), slice(first, last + 1), slice(max(first - 1, 0), last + 2), out)
    log_p = np.log(np.maximum(_read_back(densities, scaled - 0.5), FLOOR))
    return log_p.reshape(planes.shape)


def _smoothed_bins(histogram: Array, sd: float, filled: slice, read: slice, out: Array) -> None:
    """The rows ``read`` of a Gaussian filter of a histogram that is empty but for the rows and columns ``filled``."""
    radius = int(4 * sd + 0.5)
    kernel = np.exp(-0.5 / (sd * sd) * np.arange(-radius, radius + 1) ** 2)
    kernel /= kernel.sum()
    columns = np.zeros_like(histogram)
    correlate1d(histogram[:, filled], kernel, axis=0, output=columns[:, filled])
    correlate1d(columns[read], kernel, axis=1, output=out[read])


def _transposed(flat: NDArray[Any]) -> NDArray[Any]:
    """Values at (j, i) of square images [B, H * H] that are given in the order of (i, j)."""
    side = math.isqrt(flat.shape[1])
    return flat.reshape(-1, side, side).swapaxes(1, 2).reshape(flat.shape)


def _read_back(densities: Array, points: Array) -> Array:
    """densities [B, n, n] at the value pairs of square images points [B, H * H] (units of bins), bilinear."""
    floor = np.floor(points)
    above = points - floor
    below = 1.0 - above
    low, high = (np.clip(floor.astype(np.intp) + k, 0, VALUE_BINS - 1) for k in (0, 1))
    first = np.arange(len(densities))[:, None] * VALUE_BINS**2
    flat, total = densities.reshape(-1), np.zeros(points.shape)
    for row, row_weight in ((first + low * VALUE_BINS, below), (first + high * VALUE_BINS, above)):
        for col, col_weight in ((low, below), (high, above)):
            total += flat[row + _transposed(col)] * row_weight * _transposed(col_weight)
    return total
