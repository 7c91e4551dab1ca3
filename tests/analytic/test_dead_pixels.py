"""Dead pixels: found at the stated rate of false alarms, and restored as if they had not been observed."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import (
    CorrelatedNoise,
    DeadPixels,
    ELDNoise,
    GammaNoise,
    GaussianNoise,
    NoiseModel,
    PoissonNoise,
    StripeNoise,
    find_dead_pixels,
)
from scoreexp.restorers.dead_pixels import fill, restore_around
from scoreexp.restorers.images import RestoredPixels


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_white_noise_is_taken_for_dead_pixels_at_the_rate_of_the_rule():
    z = np.linspace(-6, 6, 601)
    low, high = z[:, None], z  # extremes of eight neighbours, of the density 56 p(low) p(high) P(between)^6
    inside = (norm.cdf(high) - norm.cdf(low)).clip(0)
    beyond = norm.sf(high + np.maximum(2, high - low))
    rate = 2 * float((56 * norm.pdf(low) * norm.pdf(high) * inside**6 * beyond).sum()) * (z[1] - z[0]) ** 2
    found = int(find_dead_pixels(0.1 * normal(2, 1000, 1000), GaussianNoise(0.1), beyond=2.0).sum())
    assert found == pytest.approx(2e6 * rate, abs=4 * (2e6 * rate) ** 0.5)
    assert found > 30, "the rate can be told"
    usual = 2 * quad(lambda z: norm.pdf(z) * norm.cdf(z - 5) ** 8, -5, 12, epsabs=0)[0]
    assert usual == pytest.approx(1.5e-8, rel=0.05), "as the docstring says"


@pytest.mark.parametrize(
    "noise",
    [
        GaussianNoise(0.1),
        CorrelatedNoise(0.1, 0.8),
        PoissonNoise(100.0),
        ELDNoise(gain=0.005, sigma=0.05, shape=0.1, row=0.05),
        StripeNoise(GaussianNoise(0.1), 0.1),
    ],
    ids=lambda noise: type(noise).__name__,
)
def test_all_that_stand_out_are_found_and_nothing_else(noise: NoiseModel):
    row, column = torch.meshgrid(*2 * [torch.linspace(0, 1, 200)], indexing="ij")
    clean = torch.stack([-0.1 + 0.3 * row + 0.3 * (column > 0.5), 0.2 * torch.sin(9 * column)])
    clean[:, 70, 20:150] += 0.4  # a line of one pixel, as of ink
    noisy = noise.sample(clean[None], ImageStreams([0]))[0]
    assert not find_dead_pixels(noisy, noise).any()
    dead = torch.zeros(2, 200, 200, dtype=torch.bool)
    dead[0, 3::37, 5::41] = dead[1, 0::53, 0::47] = True
    found = find_dead_pixels(torch.where(dead, torch.where(row > 0.5, 1.8, -2.5), noisy), noise)
    assert torch.equal(found, dead)


def test_speckle_which_is_black_by_itself_has_bright_ones_alone():
    noise = GammaNoise(1.0)
    noisy = noise.sample(torch.zeros(1, 1, 300, 300), ImageStreams([0]))[0]
    assert not find_dead_pixels(noisy, noise).any()
    noisy[0, 100, 100] = 2e4
    assert find_dead_pixels(noisy, noise).nonzero().tolist() == [[0, 100, 100]]
    with pytest.raises(ValueError, match="sigma=0 is none: give a mask"):
        find_dead_pixels(noisy, GaussianNoise(0.0))


def test_the_operator_of_living_pixels_keeps_their_values():
    dead, x = normal(2, 5, 4) > 1, normal(1, 2, 5, 4)
    operator = DeadPixels(dead)
    for back in (operator.pinv, operator.adjoint):
        assert torch.equal(back(operator(x)), x.masked_fill(dead, 0.0))


def test_for_gaussian_data_the_result_is_the_posterior_mean_given_the_living_pixels():
    side, variance = 6, 0.01**2  # faint, so that repeating the restorer alone would take some 100 passes
    place = np.stack(np.meshgrid(range(side), range(side)), -1).reshape(-1, 2)
    away = np.square(place[:, None] - place).sum(-1)
    prior = 0.02 * np.exp(-away / 4.0) + 1e-6 * np.eye(side**2)
    rng = np.random.default_rng(0)
    y = 0.5 + rng.multivariate_normal(np.zeros(side**2), prior + variance * np.eye(side**2))
    gain = prior @ np.linalg.inv(prior + variance * np.eye(side**2))

    def restore(pixels):
        x = 0.5 + gain @ (pixels.ravel() - 0.5)
        return RestoredPixels([x.reshape(side, side, 1)], 2, 1.0)

    dead = np.zeros(side**2, bool)
    dead[[7, 8, 22]] = True
    living = np.flatnonzero(~dead)
    exact = 0.5 + prior[:, living] @ np.linalg.solve(
        prior[np.ix_(living, living)] + variance * np.eye(len(living)), y[living] - 0.5
    )
    image = (side, side, 1)
    errors = []
    for passes in (0, 3, 8):
        result = restore_around(
            dead.reshape(image), np.where(dead, 9.0, y).reshape(image), restore, passes=passes
        )
        errors.append(np.abs(result.states[-1].ravel() - exact).max())
    assert errors[2] < 1e-5
    assert errors[1] < 0.5 * errors[0]
    assert (result.nfe, result.seconds) == (18, 9.0)


def test_holes_are_filled_from_their_border_and_a_channel_without_any_living_pixel_is_refused():
    ramp = np.linspace(0, 1, 9)[:, None, None] * np.ones((9, 9, 2))
    dead = np.zeros(ramp.shape, bool)
    dead[3:6, 2:7, 1] = dead[:, 4, 0] = True  # a block, and a whole column
    np.testing.assert_allclose(fill(np.where(dead, 7.0, ramp), dead), ramp, atol=0.13)
    dead[..., 0] = True
    with pytest.raises(ValueError, match="all pixels of a channel are dead"):
        fill(ramp, dead)
