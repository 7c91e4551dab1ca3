"""estimate_sigma: close to the truth where it says so, doubtful where it should be."""

import numpy as np
import pytest
from skimage import data

from scoreexp.observations.noise.level import estimate_sigma


def smooth_picture(height=256, width=200):
    row, column = np.mgrid[:height, :width] / 100
    return np.stack([0.5 + 0.2 * np.sin(row + c) * np.cos(column) for c in range(3)], axis=2)


def drawing():
    """Flat areas and their edges without noise: nearly all of its detail is 0, and what is not is large."""
    y = np.ones((128, 128, 1))
    y[20:90, 30:110] = 0.25
    y[::16, :60] = 0.5
    return y


def noise(shape, sigma, seed=0):
    return sigma * np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("sigma", [0.005, 0.05, 0.3])
def test_smooth_picture(sigma):
    # About 50000 detail values per channel, of which one in four is independent: the standard error of the
    # median rule, 1.17 / sqrt(2 n), is 0.7 % per channel, so 3 % is more than 4 of them.
    y = smooth_picture() + noise((256, 200, 3), sigma)
    estimate = estimate_sigma(y)
    assert estimate.sigma == pytest.approx(sigma, rel=0.03)
    assert estimate.per_channel == pytest.approx((sigma,) * 3, rel=0.04)
    assert estimate.trust == "good"


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "rocket", "camera"])
@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.3])
def test_photographs_trusted_within_a_quarter_and_strong_noise_within_a_twentieth(name, sigma):
    clean = getattr(data, name)() / 255.0
    clean = clean.reshape(*clean.shape[:2], -1)
    estimate = estimate_sigma(clean + noise(clean.shape, sigma))
    if sigma >= 0.1:
        assert estimate.trust == "good"
        assert estimate.sigma == pytest.approx(sigma, rel=0.05)
    elif estimate.trust == "good":
        assert estimate.sigma == pytest.approx(sigma, rel=0.25)


def test_brightness_and_a_ramp_do_not_count_as_noise():
    y, ramp = noise((40, 50, 1), 0.05), 0.3 + 0.01 * np.arange(50)[:, None]
    # a window that reached over the border would see a step there
    assert estimate_sigma(y + ramp).sigma == pytest.approx(estimate_sigma(y).sigma, rel=1e-12)


def test_unclipped_strong_noise_on_a_mid_gray_photograph_is_trusted():
    clean = 0.25 + 0.5 * data.chelsea() / 255.0
    estimate = estimate_sigma(clean + noise(clean.shape, 0.1))
    assert estimate.trust == "good"
    assert estimate.sigma == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (smooth_picture(40, 100) + noise((40, 100, 3), 0.1), "smaller than 64"),
        ((smooth_picture() + noise((256, 200, 3), 0.5)).clip(0, 1), "clipped"),
        (smooth_picture() + noise((256, 200, 3), 0.1) * [1, 1, 2], "channels disagree"),
        (data.chelsea() / 255.0, "weaker than its texture"),
        (np.full((100, 100, 1), 0.5), "no noise"),
        (drawing(), "no noise"),
        (smooth_picture() + np.repeat(np.repeat(noise((128, 100, 3), 0.1), 2, 0), 2, 1), "not white"),
    ],
)
def test_doubts_are_said(pixels, why):
    estimate = estimate_sigma(pixels)
    assert estimate.trust == "doubtful"
    assert why in estimate.why


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((12, 100, 3)), "16 pixels"),
        (np.zeros((100, 100)), r"\[H, W, C\]"),
        (np.zeros((100, 100, 3), np.uint8), "uint8"),
        (np.full((100, 100, 1), np.nan), "not finite"),
    ],
)
def test_refusals(pixels, message):
    with pytest.raises(ValueError, match=message):
        estimate_sigma(pixels)
