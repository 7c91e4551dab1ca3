"""Filters against exact solvers, and what wraps or drowns noise against laws that are known."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian, GaussianMixture
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    Identity,
    Observation,
    PoissonGaussianNoise,
    PoissonNoise,
    Radon,
)
from scoreexp.restorers import (
    TV,
    Averaged,
    Bilateral,
    Binned,
    BySampling,
    Declipped,
    NonLocalMeans,
    PnPColoured,
    PosteriorMean,
    Renoise,
    Restorer,
    Stabilised,
)
from scoreexp.restorers.declipped import clipped_mean
from scoreexp.samplers import DDIM, DDPM, UniformGrid
from scoreexp.schedules import VE, VP

STREAMS = ImageStreams([0])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filtered(restorer, y, sigma):
    return restorer(Observation(y, Identity(), GaussianNoise(sigma)), streams=ImageStreams(range(len(y)))).x


def box(width=10, length=40):
    x = torch.zeros(1, 1, 1, length, dtype=torch.float64)
    x[..., 15 : 15 + width] = 1
    return x


# Total variation


def test_total_variation_of_a_line_is_the_exact_solution():
    """The dual in one dimension is a least squares problem in a box: min |y - D^T p|, |p| <= lambda."""
    n, sigma, strength = 40, 0.3, 1.5
    y = box(length=n) + sigma * drawn(1, 1, 1, n)
    difference = np.diff(np.eye(n), axis=0)
    weight = strength * sigma
    exact = lsq_linear(difference.T, y.flatten().numpy(), (-weight, weight), tol=1e-14, method="bvls")
    expected = y.flatten().numpy() - difference.T @ exact.x
    found = filtered(TV(strength, steps=3000), y, sigma)
    np.testing.assert_allclose(found.flatten().numpy(), expected, atol=1e-6)
    column = filtered(TV(strength, steps=3000), y.transpose(-1, -2), sigma)
    torch.testing.assert_close(column, found.transpose(-1, -2))


def test_a_box_loses_the_known_contrast_and_the_iterated_form_gives_it_back():
    width, sigma, strength = 10, 0.1, 2.0
    plain = filtered(TV(strength, steps=2000), box(width), sigma)
    assert float(plain.max()) == pytest.approx(1 - 2 * strength * sigma / width, abs=1e-6)
    assert float(plain[..., :15].max()) == pytest.approx(strength * sigma / 15, abs=1e-6)
    twice = filtered(TV(strength, rounds=2, steps=2000), box(width), sigma)
    torch.testing.assert_close(twice, box(width), rtol=0, atol=1e-5)


def test_the_result_is_the_least_of_the_objective_in_two_dimensions_and_colour():
    y, sigma = drawn(2, 3, 9, 8), 0.4
    found = filtered(TV(1.0, steps=2000), y, sigma)

    def objective(u):
        down = torch.nn.functional.pad(u.diff(dim=-2), (0, 0, 0, 1))
        right = torch.nn.functional.pad(u.diff(dim=-1), (0, 1))
        variation = (down.square() + right.square()).sum(1).sqrt().flatten(1).sum(1)
        return (u - y).square().flatten(1).sum(1) / (2 * sigma * 3**0.5) + variation

    least = objective(found)
    for i in range(30):
        assert (objective(found + 1e-3 * drawn(2, 3, 9, 8, seed=i)) > least).all()
    for other in (y, y.mean((-1, -2), keepdim=True).expand_as(y)):
        assert (objective(other) > least).all()


# Bilateral filter and non-local means


def test_the_bilateral_filter_is_its_formula():
    y, sigma, r, strength = drawn(1, 3, 7, 9), 0.5, 0.9, 2.0
    expected = torch.empty_like(y)
    reach = math.ceil(3 * r)
    for i in range(7):
        for j in range(9):
            total, weights = 0, 0
            for k in range(max(i - reach, 0), min(i + reach, 6) + 1):
                for m in range(max(j - reach, 0), min(j + reach, 8) + 1):
                    values = (y[0, :, i, j] - y[0, :, k, m]).square().sum() / (6 * (strength * sigma) ** 2)
                    weight = math.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * r**2) - float(values))
                    total, weights = total + weight * y[0, :, k, m], weights + weight
            expected[0, :, i, j] = total / weights
    torch.testing.assert_close(filtered(Bilateral(r, strength), y, sigma), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("restorer", [TV(), TV(2.0, rounds=2), Bilateral(), NonLocalMeans()])
@pytest.mark.parametrize("channels", [1, 3])
def test_filters_remove_noise_and_keep_edges_where_they_are(restorer, channels):
    x = torch.full((1, channels, 40, 48), -0.5, dtype=torch.float64)
    x[..., 10:25, 8:40] = 0.5
    y = x + 0.1 * drawn(*x.shape)
    found = filtered(restorer, y, 0.1)
    assert (found - x).square().mean() < 0.2 * (y - x).square().mean()
    assert torch.equal(found > 0, x > 0)
    assert torch.equal(filtered(restorer, y, 0.0), y)


@pytest.mark.parametrize("restorer", [TV(), Bilateral(), NonLocalMeans()])
def test_filters_refuse_what_they_cannot_serve(restorer):
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"not PoissonNoise: wrap it as Stabilised\("):
        restorer(Observation(image, Identity(), PoissonNoise(3.0)), streams=STREAMS)
    with pytest.raises(ValueError, match=r"cannot undo Radon"):
        restorer(Observation(torch.zeros(1, 1, 5, 8), Radon(8, 5), GaussianNoise(0.1)), streams=STREAMS)
    with pytest.raises(ValueError, match="not finite"):
        restorer(Observation(image * float("nan"), Identity(), GaussianNoise(0.1)), streams=STREAMS)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TV(0.0), "strength=0"),
        (lambda: TV(rounds=0), "rounds=0"),
        (lambda: Bilateral(radius=-1.0), "radius=-1"),
        (lambda: NonLocalMeans(patch=0), "patch=0"),
        (lambda: Renoise(DDIM(UniformGrid(2)), 0.0), r"t_star=0\.0"),
        (lambda: Averaged(TV(), 0), "draws=0"),
    ],
)
def test_parameters_out_of_their_domain_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# Stabilised


class Naive(PoissonGaussianNoise):
    """With the algebraic inverse."""

    def unstabilise(self, z):
        s = self.peak * self.sigma / 2
        return 2 / self.peak * ((z / 2) ** 2 - 0.375 - s**2) - 1


@pytest.mark.parametrize(("peak", "sigma"), [(5.0, 0.0), (5.0, 0.3)])
def test_the_wrap_beats_the_naive_one_under_an_exact_gaussian_prior(peak, sigma):
    """Images of one rate below 5 counts: their stabilised pixels are Gaussian with one unknown mean, as the oracle says."""
    n, side = 40, 16
    rates = torch.linspace(1.0, 4.5, n, dtype=torch.float64)
    x = (2 * rates / peak - 1)[:, None, None, None].expand(n, 1, side, side)
    errors = []
    for noise in (PoissonGaussianNoise(peak, sigma), Naive(peak, sigma)):
        black, white = noise.stabilise(torch.tensor([2 / 255 - 1, 1.0], dtype=torch.float64))
        means = 2 * (noise.stabilise(x) - black) / (white - black) - 1
        covariance = float(means.var()) * torch.ones(side**2, side**2, dtype=torch.float64)
        model = OracleDenoiser(Gaussian(means.mean() * torch.ones(1, side, side), covariance), VP())
        observation = Observation.simulate(x, Identity(), noise, ImageStreams(range(n)))
        found = Stabilised(BySampling(DDIM(UniformGrid(1))))(
            observation, model, streams=ImageStreams(range(n))
        )
        assert found.nfe == 1
        errors.append(peak / 2 * (found.x - x).mean((1, 2, 3)))  # in counts
    unbiased, naive = (float(error.mean()) for error in errors)
    assert abs(unbiased) < 0.05
    assert naive == pytest.approx(-0.25, abs=0.08)
    assert errors[0].square().mean() < 0.5 * errors[1].square().mean()


def test_the_restorer_inside_sees_noise_of_the_level_it_is_told():
    seen = {}

    class Looking(TV):
        def apply(self, y, sigma):
            seen[len(seen)] = (float(y.std()), sigma)
            return super().apply(y, sigma)

    for noise in (PoissonNoise(40.0), GammaNoise(8.0), PoissonGaussianNoise(30.0, 0.1)):
        x = torch.full((1, 1, 64, 64), 0.1, dtype=torch.float64)
        observation = Observation.simulate(x, Identity(), noise, STREAMS)
        made = Stabilised(Looking(6.0, steps=400))(observation, streams=STREAMS, keep=2)
        std, sigma = seen[len(seen) - 1]
        assert std == pytest.approx(sigma, rel=0.05)
        assert float(made.x.mean()) == pytest.approx(0.1, abs=0.02)
        assert torch.equal(made.trajectory[-1], made.x)


def test_gaussian_noise_passes_through_and_what_has_no_transform_is_refused():
    y = drawn(1, 1, 8, 8)
    assert torch.equal(filtered(Stabilised(TV()), y, 0.3), filtered(TV(), y, 0.3))
    assert not Stabilised(TV()).needs_model
    assert Stabilised(Renoise(DDIM(UniformGrid(2)))).needs_model
    with pytest.raises(ValueError, match="CorrelatedNoise has no variance-stabilising"):
        Stabilised(TV())(Observation(y, Identity(), CorrelatedNoise(0.1)), streams=STREAMS)
    with pytest.raises(ValueError, match="Radon is no identity"):
        Stabilised(TV())(
            Observation(torch.zeros(1, 1, 5, 8), Radon(8, 5), PoissonNoise(3.0)), streams=STREAMS
        )


# Renoise


def test_from_the_last_time_the_law_is_the_prior_whatever_was_observed():
    means = torch.tensor([[-0.8, 0.0], [0.6, 0.4]])
    prior = GaussianMixture(torch.tensor([0.3, 0.7]), means, torch.tensor([0.04, 0.04]))
    model, n = OracleDenoiser(prior, VP()), 4000
    observation = Observation(torch.full((n, 2), 0.6), Identity(), GaussianNoise(0.2))
    occupied = {}
    for t_star in (0.1, 1.0):
        found = Renoise(DDIM(UniformGrid(60)), t_star)(observation, model, streams=ImageStreams(range(n))).x
        occupied[t_star] = float((found[:, 0] < -0.1).float().mean())
    assert occupied[0.1] < 0.01
    assert occupied[1.0] == pytest.approx(0.3, abs=0.03)
    first = found[found[:, 0] < -0.1]
    torch.testing.assert_close(first.mean(0), means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(first.std(0), torch.tensor([0.2, 0.2]), rtol=0, atol=0.03)


def test_a_gaussian_goes_to_the_known_mean_and_variance():
    variance, s, t, n = 0.25, 0.3, 0.4, 6000
    model = OracleDenoiser(Gaussian(torch.zeros(n), torch.full((n,), variance)), VP())
    observation = Observation(torch.ones(1, n, dtype=torch.float64), Identity(), GaussianNoise(s))
    found = Renoise(DDPM(UniformGrid(400)), t)(observation, model, streams=STREAMS).x
    alpha, sigma = model.schedule.at(t)
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    spread = gain**2 * (sigma**2 - alpha**2 * s**2) + variance * (1 - alpha * gain)
    assert float(found.mean()) == pytest.approx(gain * alpha, abs=0.03)
    assert float(found.var()) == pytest.approx(spread, rel=0.06)


def test_renoise_at_the_observed_level_is_denoising_and_below_it_is_refused():
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    t = 0.3
    alpha, sigma = model.schedule.at(t)
    observation = Observation(drawn(3, 2), Identity(), GaussianNoise(sigma / alpha))
    streams = ImageStreams(range(3))
    sampler = DDIM(UniformGrid(20))
    torch.testing.assert_close(
        Renoise(sampler, t)(observation, model, streams=streams).x,
        BySampling(sampler)(observation, model, streams=streams).x,
        rtol=1e-6,
        atol=1e-6,
    )
    with pytest.raises(ValueError, match=r"more than the .* at t_star=0\.1: choose a larger"):
        Renoise(sampler, 0.1)(observation, model, streams=streams)


# Averaged


def test_the_estimates_on_the_way_are_the_means_of_the_first_draws():
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    observation = Observation(torch.ones(3, 2, dtype=torch.float64), Identity(), GaussianNoise(0.5))
    restorer = Renoise(DDIM(UniformGrid(5)), 0.6)
    found = Averaged(restorer, 4)(observation, model, streams=ImageStreams(range(3)), keep=3)
    single = [
        restorer(
            observation, model, streams=ImageStreams([stream_seed(seed, "average", i) for seed in range(3)])
        ).x
        for i in range(4)
    ]
    assert not torch.equal(single[0], single[1])
    for mean, count in zip(found.trajectory, (2, 3, 4), strict=True):
        torch.testing.assert_close(mean, sum(single[:count]) / count)
    torch.testing.assert_close(found.x, found.trajectory[-1])


def test_the_mean_of_draws_of_the_posterior_nears_the_posterior_mean():
    variance, s, n = 0.5, 0.5, 500
    model = OracleDenoiser(Gaussian(torch.zeros(2), variance * torch.eye(2)), VP())
    observation = Observation(torch.ones(n, 2), Identity(), GaussianNoise(s))
    mean = variance / (variance + s**2)
    restorer = BySampling(DDPM(UniformGrid(60)))
    errors = []
    for draws in (1, 8):
        found = Averaged(restorer, draws)(observation, model, streams=ImageStreams(range(n)), keep=1)
        assert found.nfe == 60 * draws
        errors.append(float((found.x - mean).square().mean()))
    assert errors[0] == pytest.approx(variance * s**2 / (variance + s**2), rel=0.2)
    assert errors[1] == pytest.approx(errors[0] / 8, rel=0.25)


# Correlated noise


class Stationary(DenoiserBase):
    """The exact posterior mean of Gaussian images of the spectrum ``power [H, W]`` around 0."""

    schedule, event_shape = VE(0.002, 10.0), None

    def __init__(self, power):
        self.power = power

    def __call__(self, x_t, t, cond=None):
        _, sigma = self._scales(x_t, t)
        return torch.fft.ifft2(torch.fft.fft2(x_t) * self.power / (self.power + sigma**2)).real


def test_steps_for_correlated_noise_end_at_the_posterior_mean():
    side, noise = 16, CorrelatedNoise(0.4, 0.6)
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    power = 0.01 / (frequency[:, None] ** 2 + frequency**2 + 0.02)
    x = torch.fft.ifft2(torch.fft.fft2(drawn(2, 1, side, side)) * power.sqrt()).real
    y = noise.sample(x, ImageStreams([3, 4]))
    spectrum = noise.spectrum(y)

    def exact(noise_power):
        return torch.fft.ifft2(torch.fft.fft2(y) * power / (power + noise_power)).real

    def found(**settings):
        observation = Observation(y, Identity(), noise)
        return PnPColoured(**settings)(observation, Stationary(power), streams=ImageStreams([0, 1])).x

    level = 0.5 * noise.sigma
    torch.testing.assert_close(found(steps=200, end=0.5), exact(spectrum.clamp(min=level**2)))
    posterior = exact(spectrum)
    white = exact(torch.tensor(noise.sigma**2))
    few = found()
    assert (few - posterior).norm() < 0.7 * (white - posterior).norm()
    assert (few - x).norm() < (white - x).norm()


def test_white_noise_is_gone_after_one_step_for_correlated_noise():
    power = torch.ones(8, 8, dtype=torch.float64)
    y = drawn(1, 1, 8, 8)
    observation = Observation(y, Identity(), GaussianNoise(0.5))
    found = PnPColoured(steps=1, end=1.0)(observation, Stationary(power), streams=STREAMS).x
    torch.testing.assert_close(found, y / 1.25)


# The posterior mean


class Sloped(DenoiserBase):
    """Wrong by a ramp along the rows: what turns and reflections take away."""

    schedule, event_shape = VE(0.002, 10.0), None

    def __call__(self, x_t, t, cond=None):
        height, width = x_t.shape[-2:]
        return x_t / 2 + torch.linspace(-1, 1, width, dtype=x_t.dtype).expand(height, width)


def test_the_mean_over_turns_and_reflections():
    y = drawn(2, 1, 6, 9)
    observation = Observation(y, Identity(), GaussianNoise(0.5))

    def found(n):
        return PosteriorMean(n)(observation, Sloped(), streams=ImageStreams([0, 1]), keep=9)

    assert (found(1).x - y / 2).abs().max() == 1
    for n in (2, 4, 8):
        restored = found(n)
        torch.testing.assert_close(restored.x, y / 2)  # each turn comes with its reflection
        assert (restored.nfe, len(restored.trajectory)) == (n, n + 1)


class Striped(DenoiserBase):
    """Wrong in every fourth row and column, as a network that reduces by four."""

    schedule, event_shape, downsampling_factor = VE(0.002, 10.0), None, 4

    def __call__(self, x_t, t, cond=None):
        assert all(side % 4 == 0 for side in x_t.shape[-2:])
        error = torch.zeros_like(x_t)
        error[..., ::4, :] = error[..., ::4] = 1.0
        return x_t / 2 + error


def test_the_mean_over_shifts_spreads_the_error_of_a_grid():
    y = drawn(1, 1, 8, 12)
    observation = Observation(y, Identity(), GaussianNoise(0.5))
    error = PosteriorMean(8)(observation, Striped(), streams=STREAMS).x - y / 2
    assert error.max() < 1  # each row and column is the wrong one in some evaluations
    assert error.min() > 0
    assert error.std() < 0.15


def test_the_posterior_mean_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="evaluations=9"):
        PosteriorMean(9)
    points = Observation(torch.zeros(1, 4), Identity(), GaussianNoise(0.5))
    with pytest.raises(ValueError, match="evaluations=2 turn images"):
        PosteriorMean(2)(points, Sloped(), streams=STREAMS)
    counts = Observation(torch.zeros(1, 1, 4, 4), Identity(), PoissonNoise(5.0))
    with pytest.raises(ValueError, match="not PoissonNoise"):
        PosteriorMean()(counts, Sloped(), streams=STREAMS)


def test_stabilised_data_have_the_noise_that_the_model_knows_at_most():
    """At one count per pixel black and white are two standard deviations apart: more noise than this model knows."""
    seen = []

    class Watched(Sloped):
        schedule = VE(0.002, 1.0)

        def __call__(self, x_t, t, cond=None):
            seen.append(float(self._scales(x_t, t)[1].flatten()[0]))
            return x_t

    y = PoissonNoise(1.0).sample(torch.zeros(1, 1, 200, 200), STREAMS)
    restored = Stabilised(PosteriorMean())(
        Observation(y, Identity(), PoissonNoise(1.0)), Watched(), streams=STREAMS
    ).x
    assert seen == [pytest.approx(1.0)]
    plain = Stabilised(TV(1e-9))(Observation(y, Identity(), PoissonNoise(1.0)), streams=STREAMS).x
    torch.testing.assert_close(restored, plain, rtol=1e-4, atol=1e-4)  # nothing was changed, in another unit


# Few counts


class Seen(Restorer):
    """Gives back what it is given, and remembers it."""

    needs_model = False

    def restore(self, observation, model, streams, cond, keep, callback):
        self.observation = observation
        return observation.y, []


def test_binning_hands_on_means_with_their_law_and_gives_back_what_is_smooth():
    row, column = torch.meshgrid(torch.arange(21.0), torch.arange(30.0), indexing="ij")
    ramp = (0.02 * row - 0.01 * column)[None, None].double()
    inner = Seen()
    back = Binned(inner, 3)(Observation(ramp, Identity(), PoissonNoise(0.5)), streams=STREAMS).x
    torch.testing.assert_close(
        inner.observation.y[0, 0], ramp[0, 0, 1::3, 1::3]
    )  # the middles of its squares
    assert isinstance(inner.observation.noise, PoissonNoise)
    assert inner.observation.noise.peak == 4.5
    inside = (
        ...,
        slice(6, -6),
        slice(6, -6),
    )  # bicubic of torch is exact for constants only, on a slope of 0.02
    torch.testing.assert_close(back[inside], ramp[inside], rtol=0, atol=0.004)
    with pytest.raises(ValueError, match="CorrelatedNoise has no known law of the mean"):
        Binned(inner)(Observation(ramp, Identity(), CorrelatedNoise(0.5)), streams=STREAMS)


@pytest.mark.parametrize(
    "noise", [GaussianNoise(0.3), PoissonGaussianNoise(9.0, 0.2), PoissonNoise(0.7), GammaNoise(3.0)]
)
def test_the_law_of_a_mean_has_its_variance_and_its_stabilised_mean(noise):
    x = torch.full((1, 4, 50000), 0.2, dtype=torch.float64)
    mean = noise.sample(x, STREAMS).mean(1)
    law = noise.of_mean(4)
    assert float(mean.var()) == pytest.approx(float(law.variance(x[0, 0, 0])), rel=0.04)
    if not isinstance(noise, GaussianNoise):
        assert float(law.unstabilise(law.stabilise(mean).mean())) == pytest.approx(0.2, abs=0.03)


class Constant(Restorer):
    """An estimate that is known."""

    needs_model = False

    def __init__(self, x):
        self.x = x

    def restore(self, observation, *arguments):
        return self.x, []


@pytest.mark.parametrize("ends", ["black", "white", "both"])
@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonGaussianNoise(30.0, 0.2)])
def test_the_mean_of_clipped_noise_is_that_of_a_quadrature_and_its_inverse_exact(noise, ends):
    x = torch.linspace(-1, 1, 41, dtype=torch.float64)
    z = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    y = x[:, None] + noise.variance(x[None])[0].sqrt()[:, None] * z
    y = y.clamp(*{"black": (-1, None), "white": (None, 1), "both": (-1, 1)}[ends])
    mean = torch.trapezoid(y * torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5, z, dim=1)
    torch.testing.assert_close(clipped_mean(x, noise, ends), mean, rtol=0, atol=1e-6)
    observation = Observation(torch.zeros(1, 1, 1, 41), Identity(), noise)
    back = Declipped(Constant(mean.view(1, 1, 1, 41)), ends)(observation, streams=ImageStreams([0])).x
    torch.testing.assert_close(back.flatten(), x, rtol=0, atol=1e-5)
