"""MS-SSIM: equal to its definition by scipy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from skimage import data
from skimage.metrics import structural_similarity

from scoreexp.metrics import MSSSIM, ms_ssim, ssim
from scoreexp.metrics.functional import _halved

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def pictures(height=176, width=192):
    """Crops of a photograph and noisy copies with a different noise level each."""
    photo = torch.from_numpy(data.chelsea() / 255.0).movedim(-1, 0)
    clean = torch.stack([photo[:, 40 * i : 40 * i + height, 50 * i : 50 * i + width] for i in range(3)])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (clean + torch.tensor([0.03, 0.1, 0.3]).reshape(-1, 1, 1, 1) * noise).clamp(0, 1), clean


def by_definition(x, y):
    """One channel: contrast and structure by scipy's two-dimensional correlation, the last scale by scikit-image.

    (torchmetrics 1.9 counts windows that reach beyond the picture at the last scale, and so differs by 1e-3.)
    """
    offset = np.arange(11) - 5
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    value = 1.0
    for exponent in EXPONENTS[:-1]:
        xx, yy, xy, mx, my = (correlate2d(v, window, "valid") for v in (x * x, y * y, x * y, x, y))
        structure = (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)
        value *= structure.mean() ** exponent
        x, y = (v.reshape(v.shape[0] // 2, 2, v.shape[1] // 2, 2).mean((1, 3)) for v in (x, y))
    last = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    return value * last ** EXPONENTS[-1]


def test_equal_to_the_definition_for_each_channel():
    noisy, clean = pictures()
    expected = torch.tensor(
        [[by_definition(x.numpy(), y.numpy()) for x, y in zip(*pair)] for pair in zip(noisy[1:], clean[1:])]
    ).mean(1)
    torch.testing.assert_close(ms_ssim(noisy, clean)[1:], expected, rtol=0, atol=1e-10, check_dtype=False)
    assert ms_ssim(noisy, clean).diff().max() < -0.01  # the noise levels are told apart


def test_smooth_pictures_are_as_similar_at_every_scale():
    """For x = 0.2 and y = 0.2 + d, constant, structure is 1 at all scales: only luminance^0.1333 is left."""
    x = torch.full((1, 1, 161, 170), 0.2, dtype=torch.float64)
    y = x + 0.3
    luminance = (2 * 0.2 * 0.5 + 1e-4) / (0.2**2 + 0.5**2 + 1e-4)
    assert ms_ssim(x, y).item() == pytest.approx(luminance**0.1333, abs=1e-9)


def test_odd_sides_are_continued_by_their_last_line():
    """A side of 161 becomes 81, 41, 21, 11; a picture extended by its own last lines has the same last scales."""
    noisy, clean = pictures(161, 177)
    assert ms_ssim(noisy, clean).isfinite().all()
    x, y = torch.rand(2, 1, 1, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert _halved(x).shape == (1, 1, 2, 3)
    assert _halved(x)[0, 0, 1, 2].item() == pytest.approx(x[0, 0, 2, 4].item())
    assert _halved(y)[0, 0, 0, 0].item() == pytest.approx(y[0, 0, :2, :2].mean().item())


def test_opposite_structure_is_zero_not_complex():
    noisy, _ = pictures()
    assert ms_ssim(1 - noisy, noisy).eq(0).all()
    assert (ssim(1 - noisy, noisy) < 0).any()


def test_too_small_pictures_are_refused():
    for shape in [(1, 3, 160, 200), (1, 3, 64, 64), (3, 170, 170)]:
        with pytest.raises(ValueError, match=r"at least 161.*use ssim for smaller"):
            ms_ssim(torch.zeros(shape), torch.zeros(shape))


def test_metric_is_the_mean_over_pictures():
    noisy, clean = pictures(161, 161)
    metric = MSSSIM()
    for x, y in zip(noisy.split([2, 1]), clean.split([2, 1])):
        metric.update(x, y)
    assert metric.compute().item() == pytest.approx(ms_ssim(noisy, clean).mean().item(), rel=1e-6)
    assert ms_ssim(clean, clean).sub(1).abs().max() < 1e-12
