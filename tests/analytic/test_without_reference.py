"""Errors without a reference: against exact traces, known errors and null distributions."""

import numpy as np
import pytest
import torch
from skimage import data

from scoreexp.core.streams import ImageStreams
from scoreexp.diagnostics.without_reference import (
    check_residual,
    debiased,
    posterior_variance,
    split,
    split_error,
    sure,
    sure_of_noise,
    whiteness,
)
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    Identity,
    Observation,
    PoissonNoise,
)
from scoreexp.restorers import TV


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# SURE


def test_of_a_linear_filter_it_is_steins_formula():
    """For f(y) = A y the divergence is tr A; signs give that of a diagonal A without error, others in the mean."""
    n, sigma = 60, 0.7
    y = drawn(3, n)
    gains = torch.linspace(-0.5, 1.5, n, dtype=torch.float64)
    found = sure(lambda y: gains * y, y, sigma, ImageStreams(range(3)))
    expected = ((gains * y - y) ** 2).mean(1) - sigma**2 + 2 * sigma**2 * gains.mean()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    matrix = drawn(n, n, seed=1) / n**0.5
    found = sure(lambda y: y @ matrix.T, y, sigma, ImageStreams(range(3)), probes=3000)
    expected = ((y @ matrix.T - y) ** 2).mean(1) - sigma**2 + 2 * sigma**2 * matrix.diagonal().mean()
    # a probe's variance is the sum of the squares of A + A^T off the diagonal, halved: about 2 n
    torch.testing.assert_close(found, expected, rtol=0, atol=5 * 2 * sigma**2 * (2 * n / 3000) ** 0.5 / n)


def test_its_mean_is_the_error_also_of_what_is_not_linear():
    x, sigma, many = torch.linspace(-2, 2, 50, dtype=torch.float64), 0.5, 4000

    def soft(y):
        return y.sign() * (y.abs() - 0.6).clamp(min=0)

    y = x + sigma * drawn(many, 50)
    found = sure(soft, y, sigma, ImageStreams(range(many)))
    true = ((soft(y) - x) ** 2).mean(1)
    assert float((found - true).mean()) == pytest.approx(0, abs=4 * float((found - true).std()) / many**0.5)
    assert float(true.mean()) > 0.05


def test_for_noise_of_any_law_it_is_the_error_of_a_linear_filter():
    """E = (1 - a)^2 |x|^2 + a^2 Var for f(y) = a y, of which the estimate knows y and the law alone."""
    x, a, many = torch.linspace(-0.6, 0.8, 64, dtype=torch.float64).reshape(1, 1, 8, 8), 0.7, 4000
    x = x.expand(many, 1, 8, 8)
    for noise in (GaussianNoise(0.3), CorrelatedNoise(0.3, 0.8)):
        y = noise.sample(x, ImageStreams(range(many)))
        found = sure_of_noise(lambda y: a * y, y, noise, ImageStreams(range(many), "probes"))
        expected = ((1 - a) ** 2 * x.square() + a**2 * noise.variance(x)).mean()
        assert float(found.mean()) == pytest.approx(float(expected), abs=4 * float(found.std()) / many**0.5)
        share = posterior_variance(lambda y: a * y, y, noise, ImageStreams(range(many), "probes"))
        assert float(share.mean()) == pytest.approx(a * 0.09, rel=0.02)
    noise = PoissonNoise(20.0)  # its variance is linear in x, so a constant filter of it is unbiased too
    y = noise.sample(x, ImageStreams(range(many)))
    found = sure_of_noise(
        lambda y: y.mean((-1, -2), keepdim=True).expand_as(y), y, noise, ImageStreams(range(many), "p")
    )
    expected = (x - x.mean()).square().mean() + noise.variance(x).mean() / 64
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * float(found.std()) / many**0.5)


@pytest.mark.parametrize(
    "noise", [GaussianNoise(0.3), CorrelatedNoise(0.3, 0.8), PoissonNoise(20.0), GammaNoise(9.0)]
)
def test_a_residual_that_is_the_noise_is_found_to_be_it(noise):
    x = torch.linspace(-0.6, 0.8, 96).expand(1, 2, 96, 96)
    observation = Observation.simulate(x, Identity(), noise, ImageStreams([1]))
    scale, correlation, shift = check_residual(observation, x)
    assert scale == pytest.approx(1, abs=0.03)
    assert correlation < 0.04
    assert max(map(abs, shift)) < 0.01
    left = x + 0.5 * (observation.y - x)
    assert check_residual(observation, left).scale == pytest.approx(0.5, abs=0.1)
    assert check_residual(observation, x + 0.1).shift == pytest.approx([-0.05] * 2, abs=0.01)
    blurred = (observation.y + observation.y.roll(1, -1)) / 2
    if isinstance(noise, GaussianNoise):
        assert check_residual(observation, blurred).correlation > 0.3


# Stopping


@pytest.fixture(scope="module")
def photograph():
    x = torch.from_numpy(2 * data.camera()[100:228, 100:228] / 255 - 1)[None, None]
    observation = Observation.simulate(x, Identity(), GaussianNoise(0.3), ImageStreams([0]))
    return x, observation


STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.1, 1.6, 2.5)


def test_the_strength_of_least_estimated_error_is_nearly_the_best(photograph):
    x, observation = photograph

    def restored(y, strength, noise=observation.noise):
        return TV(strength)(Observation(y, Identity(), noise), streams=ImageStreams([0])).x

    true = [float((restored(observation.y, s) - x).square().mean()) for s in STRENGTHS]
    estimated = [
        float(sure(lambda y, s=s: restored(y, s), observation.y, 0.3, ImageStreams([1]), probes=2))
        for s in STRENGTHS
    ]
    np.testing.assert_allclose(estimated, true, atol=0.1 * max(true))
    assert true[int(np.argmin(estimated))] < 1.05 * min(true)
    first, second = split(observation, ImageStreams([2]), share=0.8)
    halves = [restored(first.y, s, first.noise) for s in STRENGTHS]
    true = [float((half - x).square().mean()) for half in halves]
    estimated = [float(split_error(half, second)) for half in halves]
    assert true[int(np.argmin(estimated))] < 1.1 * min(true)


# Splits


@pytest.mark.parametrize("noise", [GaussianNoise(0.5), PoissonNoise(12.0)])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_parts_have_the_mean_the_variance_and_no_covariance(noise, share):
    n = 200000
    x = torch.full((1, n), 0.2, dtype=torch.float64)
    parts = split(Observation.simulate(x, Identity(), noise, ImageStreams([0])), ImageStreams([1]), share)
    for part, size in zip(parts, (share, 1 - share)):
        assert type(part.noise) is type(noise)
        variance = float(noise.variance(x)[0, 0]) / size
        assert float(part.noise.variance(x)[0, 0]) == pytest.approx(variance)
        assert float(part.y.mean()) == pytest.approx(0.2, abs=5 * (variance / n) ** 0.5)
        assert float(part.y.var()) == pytest.approx(variance, rel=0.03)
    correlation = torch.corrcoef(torch.cat([part.y for part in parts]))[0, 1]
    assert abs(float(correlation)) < 5 / n**0.5


@pytest.mark.parametrize("noise", [GaussianNoise(0.5), PoissonNoise(12.0)])
def test_the_error_of_a_split_is_the_true_one_in_the_mean(noise):
    x = torch.linspace(-0.8, 0.8, 5000, dtype=torch.float64).expand(20, 5000)
    streams = ImageStreams(range(20))
    first, second = split(
        Observation.simulate(x, Identity(), noise, streams), ImageStreams(range(20), "split")
    )
    estimate = 0.6 * first.y
    difference = split_error(estimate, second) - (estimate - x).square().mean(1)
    assert float(difference.mean()) == pytest.approx(0, abs=4 * float(difference.std()) / 20**0.5)
    assert float((estimate - x).square().mean()) > 0.05


# Whiteness


def test_the_p_value_of_white_noise_is_uniform():
    found = whiteness(drawn(1500, 1, 20, 24), reach=2)
    assert found.correlations.shape == (1500, 12)
    assert len({tuple(lag) for lag in (*found.lags.tolist(), *(-found.lags).tolist())}) == 24
    assert float(found.statistic.mean()) == pytest.approx(12, abs=4 * (24 / 1500) ** 0.5)
    for level in (0.05, 0.5):
        share = float((found.p_value < level).double().mean())
        assert share == pytest.approx(level, abs=4 * (level * (1 - level) / 1500) ** 0.5)


def test_what_is_left_of_an_image_and_noise_that_neighbours_share_are_found(photograph):
    x, observation = photograph
    assert float(whiteness(observation.y - x).p_value) > 0.001
    strong = TV(4.0)(observation, streams=ImageStreams([0])).x
    assert float(whiteness(observation.y - strong).p_value) < 1e-6
    correlated = CorrelatedNoise(1.0, 1.0).sample(torch.zeros_like(x), ImageStreams([3]))
    found = whiteness(correlated)
    assert float(found.p_value) < 1e-6
    right = found.lags.tolist().index([0, 1])
    assert float(found.correlations[0, right]) == pytest.approx(np.exp(-1 / 4), abs=0.05)


# Debiasing


def test_gaussian_estimates_get_back_their_slope_and_the_variance_of_the_data():
    n, prior, noise = 400000, 1.5, 0.8
    x = prior**0.5 * drawn(n)
    y = x + noise**0.5 * drawn(n, seed=1)
    gain = prior / (prior + noise)
    estimate = gain * y
    error = prior * noise / (prior + noise)
    score = -estimate / (gain * prior)
    found = debiased(estimate, score, error)
    torch.testing.assert_close(found, y)  # linear calibration: the estimate over its slope
    assert float((estimate * x).mean() / x.square().mean()) == pytest.approx(gain, abs=0.01)
    assert float((found * x).mean() / x.square().mean()) == pytest.approx(1, abs=0.01)
    assert float(found.var()) == pytest.approx(prior + noise, rel=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: sure(lambda y: y, torch.zeros(1, 2), 0.0, ImageStreams([0])), "sigma=0"),
        (lambda: split(Observation(torch.zeros(1, 2), Identity(), CorrelatedNoise(0.1)), ImageStreams([0])),
         "CorrelatedNoise is not split"),
        (lambda: split(Observation(torch.zeros(1, 2), Identity(), PoissonNoise(5.0)), ImageStreams([0])),
         "counts are not whole"),
        (lambda: split(Observation(torch.zeros(1, 2), Identity(), GaussianNoise(5.0)), ImageStreams([0]), 1.0),
         r"share=1\.0"),
        (lambda: whiteness(torch.zeros(1, 1, 8, 8)), "no variance"),
        (lambda: whiteness(torch.ones(1, 1, 4, 8)), "more than 2 reach pixels"),
        (lambda: debiased(torch.zeros(1, 1), torch.zeros(1, 1), 0.0), "error=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(call, said):
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
