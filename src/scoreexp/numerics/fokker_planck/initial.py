"""An image read as a probability density: the starting point of the Fokker-Planck equation.

This density lives on the image plane (bright pixels are likely positions); it is a modelling choice and has
nothing to do with the distribution of images, whose score a diffusion model learns.

References: Lau, Na, Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
Projection", 2025, https://arxiv.org/abs/2511.17634 (``sampled_kde``); Na, Gao, Briazkalo, Wan, "Efficient
Denoising using Score Embedding in Score-based Diffusion Models", 2024, https://arxiv.org/abs/2404.06661
(``value_pairs``).
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve
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
    if method != "sampled_kde" and positions is not None:
        raise ValueError(f"method {method!r} draws no positions: pass positions only to 'sampled_kde'")
    if method == "value_pairs":
        return _value_pairs(image)
    grid = Grid.of(image.shape[:2])
    weights = (image if image.ndim == 2 else image.mean(axis=-1)) + BACKGROUND
    weights /= weights.sum()
    density = _smoothed(weights, grid) if method == "smoothed" else _sampled(weights, grid, positions, rng)
    density = np.maximum(density, FLOOR)
    return np.log(density / (density.sum() * np.prod(grid.spacing)))


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
    if not np.isfinite(image).all():
        raise ValueError("image has NaN or infinite values: give finite values in [0, 1]")
    if image.min() < 0 or image.max() > 1:
        raise ValueError(f"image values span [{image.min():.4g}, {image.max():.4g}]: rescale them to [0, 1]")
    return image


def _smoothed(weights: Array, grid: Grid) -> Array:
    mean = (weights * grid.points).sum(axis=(1, 2))
    centred = grid.points - mean[:, None, None]
    covariance = np.einsum("ij,aij,bij->ab", weights, centred, centred) + JITTER**2 * np.eye(2)
    smoothing = SCOTT_SQUARED * covariance + JITTER**2 * np.eye(2)
    offsets = np.stack(
        np.meshgrid(*(np.arange(1 - n, n) * h for n, h in zip(grid.shape, grid.spacing)), indexing="ij")
    )
    exponent = np.einsum("aij,ab,bij->ij", offsets, np.linalg.inv(smoothing), offsets)
    kernel = np.exp(-exponent / 2) / (2 * np.pi * np.sqrt(np.linalg.det(smoothing)))
    height, width = grid.shape
    return fftconvolve(weights, kernel)[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]


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


def _value_pairs(image: Array) -> Array:
    if image.shape[0] != image.shape[1]:
        raise ValueError(
            f"method 'value_pairs' pairs x[i, j] with x[j, i]: image {image.shape[:2]} must be square"
        )
    if image.ndim == 3:
        return np.stack([_value_pairs(image[..., c]) for c in range(image.shape[-1])])
    histogram, _, _ = np.histogram2d(
        image.ravel(), image.T.ravel(), bins=VALUE_BINS, range=[[0, 1], [0, 1]], density=True
    )
    bandwidth = image.size ** (-1 / 6) * image.std() * VALUE_BINS
    density = gaussian_filter(histogram, max(bandwidth, 1.0), mode="reflect")
    bins = np.stack([image.ravel(), image.T.ravel()]) * VALUE_BINS - 0.5
    at_pixels = map_coordinates(density, bins, order=1, mode="nearest")
    return np.log(np.maximum(at_pixels, FLOOR)).reshape(image.shape)
