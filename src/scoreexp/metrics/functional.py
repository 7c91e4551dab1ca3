"""Measures of the distance between two images, one value per image.

Convention, the same in every table: values in [0, 1] (data range 1), predictions clamped to it, all colour
channels counted alike (RGB, not luminance). SSIM is computed per image and then averaged, so no value
depends on how images are put into batches.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from scoreexp.core.ranges import check_unit

WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5
C1 = 0.01**2
C2 = 0.03**2
UNIFORM_SIZE = 7  # of scikit-image's windows
SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the paper, finest scale first
SMALLEST_MS_SSIM = (WINDOW_SIZE - 1) * 2 ** (len(SCALE_EXPONENTS) - 1) + 1


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error ``mean((x - y)^2)`` of each image.

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.mse(torch.full((1, 3, 8, 8), 0.75), torch.full((1, 3, 8, 8), 0.5))
    tensor([0.0625], dtype=torch.float64)

    Args:
        prediction: ``[B, *]``, values clamped to [0, 1].
        target: ``[B, *]``, values in [0, 1].

    Returns:
        ``[B]``.

    Raises:
        ValueError: the shapes differ, or the target is not in [0, 1].
    """
    x, y = _prepare(prediction, target)
    return (x - y).square().flatten(1).mean(1)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio ``-10 log10(mse)`` of each image in dB, for the peak 1.

    It is infinite for equal images. Arguments, result and errors are those of ``mse``.

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.psnr(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5)).round(decimals=2)
    tensor([20.], dtype=torch.float64)
    """
    return -10 * mse(prediction, target).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image: the mean over all 11 x 11 Gaussian windows (sigma 1.5).

    ``(2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2))`` with the window's weighted
    means m, variances s^2 and covariance s_xy, ``c1 = 0.01^2``, ``c2 = 0.03^2``; only windows that lie
    wholly inside the image count, and channels are averaged. It equals scikit-image's
    ``structural_similarity`` with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1``.

    Reference: Image quality assessment: from error visibility to structural similarity, Z. Wang, A. C. Bovik,
    H. R. Sheikh, E. P. Simoncelli, 2004, https://doi.org/10.1109/TIP.2003.819861

    >>> import torch
    >>> import scoreexp as se
    >>> picture = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    >>> bool(se.metrics.ssim(picture + 0.01, picture) > se.metrics.ssim(1 - picture, picture))
    True

    Args:
        prediction: ``[B, C, H, W]``, values clamped to [0, 1], H and W at least 11 pixels.
        target: ``[B, C, H, W]``, values in [0, 1].

    Returns:
        ``[B]`` in [-1, 1]; 1 if the images are equal.

    Raises:
        ValueError: the shapes differ, are not ``[B, C, H, W]`` or smaller than the window, or the target is
            not in [0, 1].
    """
    x, y = _prepare(prediction, target)
    if x.ndim != 4 or min(x.shape[-2:]) < WINDOW_SIZE:
        raise ValueError(
            f"ssim got images of shape {tuple(x.shape)}; it needs [B, C, H, W] with H and W at least "
            f"{WINDOW_SIZE}, the size of its window: use ssim_global for smaller ones"
        )
    luminance, structure = _window_similarities(x, y)
    return (luminance * structure).flatten(1).mean(1)


def ssim_rescaled(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity after the prediction has been rescaled to [0, 1] by its own minimum and maximum.

    The formula of ``ssim`` over all uniform windows of 7 x 7 pixels that lie inside the image, with variances and covariance
    divided by 48, after ``(x - min x) / (max x - min x)`` with the extremes of each image over all its channels; the target
    is not rescaled. It equals scikit-image's ``structural_similarity`` of the rescaled image with ``data_range=1`` and its
    other defaults. It does not see a change of brightness and contrast of the whole image, so its values are not comparable
    with those of ``ssim``. A constant prediction counts as black.

    Reference: the metric of Efficient denoising using score embedding in score-based diffusion models, A. Na, W. Gao,
    J. Wan, 2024, https://arxiv.org/abs/2404.06661

    >>> import torch
    >>> import scoreexp as se
    >>> picture = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    >>> se.metrics.ssim_rescaled(7 * picture - 3, picture).round(decimals=4)
    tensor([1.], dtype=torch.float64)

    Args:
        prediction: ``[B, C, H, W]``, any values, not clamped, H and W at least 7 pixels.
        target: ``[B, C, H, W]``, values in [0, 1].

    Returns:
        ``[B]`` in [-1, 1].

    Raises:
        ValueError: the shapes differ, are not ``[B, C, H, W]`` or smaller than the window, or the target is not in [0, 1].
    """
    _, y = _prepare(prediction, target)
    if y.ndim != 4 or min(y.shape[-2:]) < UNIFORM_SIZE:
        raise ValueError(
            f"ssim_rescaled got images of shape {tuple(y.shape)}; it needs [B, C, H, W] with H and W at least "
            f"{UNIFORM_SIZE}, the size of its window: use ssim_global for smaller ones"
        )
    x = prediction.to(y.dtype)
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    x = (x - low) / torch.where(high > low, high - low, 1)
    mean_x, mean_y, xx, yy, xy = (F.avg_pool2d(v, UNIFORM_SIZE, 1) for v in (x, y, x * x, y * y, x * y))
    unbiased = UNIFORM_SIZE**2 / (UNIFORM_SIZE**2 - 1)
    luminance, structure = _similarities(
        mean_x,
        mean_y,
        unbiased * (xx - mean_x**2),
        unbiased * (yy - mean_y**2),
        unbiased * (xy - mean_x * mean_y),
    )
    return (luminance * structure).flatten(1).mean(1)


def ms_ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image: ``ssim``'s structure at five scales, luminance at the last.

    ``prod_j cs_j^(w_j)`` over the scales j = 1..5, with the exponents w of the paper and cs_j the mean over all
    windows of ``(2 s_xy + c2) / (s_x^2 + s_y^2 + c2)``, times the luminance term inside the mean of scale 5.
    From one scale to the next 2 x 2 pixels are averaged; an odd side is continued by its last row or column.
    A negative mean counts as 0, since it has no real power. It is computed for each channel, and channels are
    averaged.

    Reference: Multi-scale structural similarity for image quality assessment, Z. Wang, E. P. Simoncelli,
    A. C. Bovik, 2003, https://doi.org/10.1109/ACSSC.2003.1292216

    >>> import torch
    >>> import scoreexp as se
    >>> picture = torch.linspace(0, 1, 161 * 161).reshape(1, 1, 161, 161)
    >>> se.metrics.ms_ssim(picture, picture).round(decimals=4)
    tensor([1.], dtype=torch.float64)

    Args:
        prediction: ``[B, C, H, W]``, values clamped to [0, 1], H and W at least 161 pixels.
        target: ``[B, C, H, W]``, values in [0, 1].

    Returns:
        ``[B]`` in [0, 1]; 1 if the images are equal.

    Raises:
        ValueError: the shapes differ, are not ``[B, C, H, W]`` or smaller than the window at the last scale, or
            the target is not in [0, 1].
    """
    x, y = _prepare(prediction, target)
    if x.ndim != 4 or min(x.shape[-2:]) < SMALLEST_MS_SSIM:
        raise ValueError(
            f"ms_ssim got images of shape {tuple(x.shape)}; it needs [B, C, H, W] with H and W at least "
            f"{SMALLEST_MS_SSIM}, so that its window fits after four halvings: use ssim for smaller ones"
        )
    product = x.new_ones(x.shape[:2])
    for exponent in SCALE_EXPONENTS[:-1]:
        _, structure = _window_similarities(x, y)
        product = product * structure.mean((2, 3)).clamp(min=0) ** exponent
        x, y = _halved(x), _halved(y)
    luminance, structure = _window_similarities(x, y)
    product = product * (luminance * structure).mean((2, 3)).clamp(min=0) ** SCALE_EXPONENTS[-1]
    return product.mean(1)


def ssim_global(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image with one window: the whole image and all its channels at once.

    The formula of ``ssim`` with plain means, variances and covariance (divisor N) over all values of a
    image. It is blind to where in the image structure is lost, so its values are not comparable with
    those of ``ssim``.

    >>> import torch
    >>> import scoreexp as se
    >>> picture = torch.tensor([[0.0, 1.0]])
    >>> se.metrics.ssim_global(picture, picture), se.metrics.ssim_global(1 - picture, picture).round(decimals=2)
    (tensor([1.], dtype=torch.float64), tensor([-1.], dtype=torch.float64))

    Args:
        prediction: ``[B, *]``, values clamped to [0, 1].
        target: ``[B, *]``, values in [0, 1].

    Returns:
        ``[B]`` in [-1, 1]; 1 if the images are equal.

    Raises:
        ValueError: the shapes differ, or the target is not in [0, 1].
    """
    x, y = (v.flatten(1) for v in _prepare(prediction, target))
    mean_x, mean_y = x.mean(1), y.mean(1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    luminance, structure = _similarities(mean_x, mean_y, (x * x).mean(1), (y * y).mean(1), (x * y).mean(1))
    return luminance * structure


def spectral_angle(prediction: Tensor, target: Tensor) -> Tensor:
    """Spectral angle ``arccos(<x, y> / (|x| |y|))`` between the spectra of each pixel in degrees, mean over the pixels.

    It does not see how bright a pixel is. Of a spectrum that is zero and one that is not it is 90 degrees.

    Reference: The spectral image processing system (SIPS), F. A. Kruse et al., 1993,
    https://doi.org/10.1016/0034-4257(93)90013-N

    >>> import torch
    >>> import scoreexp as se
    >>> one, both = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)
    >>> se.metrics.spectral_angle(both, one)
    tensor([45.], dtype=torch.float64)

    Args:
        prediction: ``[B, C, *]`` with bands C, values clamped to [0, 1].
        target: ``[B, C, *]``, values in [0, 1].

    Returns:
        ``[B]`` in [0, 90].

    Raises:
        ValueError: the shapes differ, or the target is not in [0, 1].
    """
    x, y = (F.normalize(v.flatten(2), dim=1) for v in _prepare(prediction, target))
    # of unit vectors; the arccosine of their product would lose the digits of small angles
    angle = 2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1))
    return angle.rad2deg().mean(1)


def _similarities(
    mean_x: Tensor, mean_y: Tensor, variance_x: Tensor, variance_y: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """The luminance term, and that of contrast and structure."""
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variance_x + variance_y + C2)
    return luminance, structure


def _window_similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of every window inside the images."""
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    return _similarities(mean_x, mean_y, variance_x, variance_y, covariance)


def _halved(x: Tensor) -> Tensor:
    """Means over 2 x 2 pixels."""
    return F.avg_pool2d(F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2), mode="replicate"), 2)


def _window_mean(x: Tensor) -> Tensor:
    """Gaussian-weighted mean over each window inside the image: ``[B, C, H, W] -> [B, C, H-10, W-10]``."""
    offset = torch.arange(WINDOW_SIZE, dtype=torch.float64) - WINDOW_SIZE // 2
    weights = torch.exp(-0.5 * (offset / WINDOW_SIGMA) ** 2)
    first, *others = (weights / weights.sum()).tolist()
    for axis in (2, 3):
        inside = x.shape[axis] - WINDOW_SIZE + 1
        mean = first * x.narrow(axis, 0, inside)
        for i, weight in enumerate(others, start=1):
            mean.add_(x.narrow(axis, i, inside), alpha=weight)
        x = mean
    return x


def _prepare(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; they must be "
            "equal: compare images of one size"
        )
    if target.ndim < 2:
        raise ValueError(
            f"images have shape {tuple(target.shape)}; a batch [B, *] is needed: add the batch axis"
        )
    check_unit(target, "the target")
    # E[x^2] - E[x]^2 cancels in single precision; Apple's devices have no double precision.
    dtype = torch.float32 if target.device.type == "mps" else torch.float64
    return prediction.to(dtype).clamp(0, 1), target.to(dtype).clamp(0, 1)
