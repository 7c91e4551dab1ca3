"""Noise of sensors: its laws in closed form, their recovery from flat and dark frames, stripes and dead pixels."""

import numpy as np
import pytest
import scipy.stats
import torch

from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.observations import (
    CorrelatedNoise,
    DeadPixels,
    ELDNoise,
    GaussianNoise,
    Identity,
    NoiseProxy,
    Observation,
    PoissonNoise,
    ProxyNoise,
    StripeNoise,
    at_gain,
    calibrate,
    estimate_stripes,
    fit_noise_proxy,
    load_proxy,
    photon_transfer,
    save_proxy,
)
from scoreexp.observations.noise.eld import tukey_deviation, tukey_quantile
from scoreexp.observations.noise.lines import log_density
from scoreexp.restorers import TV, Bilateral, Destriped, Stabilised
from scoreexp.restorers.usual import serving, usual_restorer


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "sensor"), dtype=torch.float64)


def frames(noise, level, count=24, side=96, purpose="frames"):
    x = torch.full((count, 1, side, side), level)
    return noise.sample(x, ImageStreams(range(count), f"{purpose} {level}"))


# the law of a raw sensor


@pytest.mark.parametrize("shape", [-0.3, 0.0, 1e-9, 0.14, 1.0])
def test_the_read_out_law_is_that_of_scipy(shape):
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)
    law = scipy.stats.tukeylambda(shape)
    np.testing.assert_allclose(
        tukey_quantile(z, shape), law.ppf(scipy.stats.norm.cdf(z)), rtol=1e-6, atol=1e-9
    )
    assert tukey_deviation(shape) == pytest.approx(law.std(), rel=1e-5)


def test_a_sensor_has_its_variance_its_rows_and_its_tails():
    noise = ELDNoise(gain=0.02, sigma=0.05, shape=-0.1, row=0.02, step=0.06, bias=0.01)
    for level in (-1.0, 0.5):
        error = frames(noise, level).double() - level - 0.01
        total = 0.02 * (level + 1) + 0.05**2 + 0.02**2 + 0.06**2 / 12
        assert float(noise.variance(torch.tensor(level))) == pytest.approx(total)
        assert float(error.mean()) == pytest.approx(0, abs=5 * (0.02**2 / (24 * 96)) ** 0.5)
        assert float(error.square().mean()) == pytest.approx(total, rel=0.02)
        of_rows = 0.02**2 + (total - 0.02**2) / 96
        assert float(error.mean(-1).var()) == pytest.approx(of_rows, rel=0.12)
    read = frames(ELDNoise(gain=1e-9, sigma=0.05, shape=-0.1), -1.0).double() + 1
    excess = float((read**4).mean() / (read**2).mean() ** 2) - 3
    assert excess == pytest.approx(float(scipy.stats.tukeylambda(-0.1).stats("k")), rel=0.3)
    assert excess > 1


def test_the_photon_transfer_line_and_the_parts_of_the_dark_frames_are_recovered():
    noise = ELDNoise(gain=0.02, sigma=0.05, shape=-0.15, row=0.02, step=0.02, bias=0.03)
    flats, darks = [frames(noise, level) for level in (-0.6, 0.0, 0.8)], frames(noise, -1.0)
    line = photon_transfer(flats, darks)
    assert line.gain == pytest.approx(0.02, rel=0.01)
    assert line.dark_variance == pytest.approx(0.05**2 + 0.02**2 + 0.02**2 / 12, rel=0.02)
    found = calibrate(flats, darks, step=0.02)
    assert found.gain == line.gain
    assert found.sigma == pytest.approx(0.05, rel=0.01)
    assert found.row == pytest.approx(0.02, rel=0.05)
    assert found.shape == pytest.approx(-0.15, abs=0.03)
    assert found.bias == pytest.approx(0.03, abs=0.002)
    plain = calibrate(flats, frames(ELDNoise(0.02, 0.05, 0.14), -1.0, count=12))
    assert plain.shape == pytest.approx(0.14, abs=0.03)
    assert plain.row < 0.0025, "the mean of a row's pixels is no row noise"


def test_a_scene_that_is_uneven_has_the_same_line():
    """Shading and fixed patterns do not vary over the frames of a stack."""
    noise, scene = ELDNoise(0.02, 0.05), torch.linspace(-0.5, 0.5, 96).expand(24, 1, 96, 96)
    flats = [noise.sample(scene - shift, ImageStreams(range(24), f"{shift}")) for shift in (0.3, 0.0)]
    pattern = 0.2 * normal(1, 1, 96, 96).float()
    made = photon_transfer([flat + pattern for flat in flats], frames(noise, -1.0) + pattern)
    assert made.gain == pytest.approx(0.02, rel=0.01)


def test_the_density_with_rows_and_a_plane_is_that_of_the_dense_covariance():
    e, v = normal(3, 2, 4, 5), normal(3, 2, 4, 5, seed=1).exp()
    a, b = torch.tensor([0.3, 0.7]).double().reshape(2, 1, 1), 0.2
    row = torch.arange(4).repeat_interleave(5)
    expected = torch.zeros(3, dtype=torch.float64)
    for c in range(2):
        shared = a[c, 0, 0] * (row[:, None] == row) + b
        covariance = torch.diag_embed(v[:, c].flatten(1)) + shared
        law = torch.distributions.MultivariateNormal(torch.zeros(20).double(), covariance)
        expected += law.log_prob(e[:, c].flatten(1))
    torch.testing.assert_close(log_density(e, v, a, b), expected, rtol=1e-10, atol=1e-10)


def test_the_inverse_for_few_electrons_is_unbiased_under_long_tails_where_a_normal_one_is_not():
    noise = ELDNoise(gain=0.5, sigma=1.0, shape=-0.3)
    x = torch.tensor([[0.2]]).double().expand(1, 400000)
    z = noise.stabilise(noise.sample(x, ImageStreams([0])))
    normal_reading = ELDNoise(gain=0.5, sigma=1.0, shape=0.1349)
    deviation = float(noise.variance(x)[0, 0]) ** 0.5 / 400000**0.5
    found, other = (float(law.unstabilise(z.mean(1))) - 0.2 for law in (noise, normal_reading))
    assert abs(found) < 5 * deviation < abs(other)


def test_the_posterior_mean_adds_the_covariance_times_the_score():
    score = normal(2, 1, 3, 4)
    noise = ELDNoise(gain=0.1, sigma=0.2, row=0.3, bias=0.5)
    y = normal(2, 1, 3, 4, seed=1).abs()
    x = y - 0.5
    expected = x + (0.1 * (x + 1) + 0.04) * score + 0.09 * score.sum(-1, keepdim=True)
    torch.testing.assert_close(noise.posterior_mean(y, score), expected)
    columns = StripeNoise(GaussianNoise(0.2), 0.3)
    expected = y + 0.04 * score + 0.09 * score.sum(-2, keepdim=True)
    torch.testing.assert_close(columns.posterior_mean(y, score), expected)


def test_a_colour_bias_belongs_to_channels():
    noise = ELDNoise(gain=1e-9, sigma=1e-6, bias=[0.1, -0.2])
    y = noise.sample(torch.zeros(1, 2, 4, 4), ImageStreams([0]))
    torch.testing.assert_close(y.mean((-1, -2)), torch.tensor([[0.1, -0.2]]), rtol=0, atol=1e-4)
    noise = ELDNoise(gain=0.02, sigma=0.02, bias=[0.1, -0.2])
    observation = Observation.simulate(torch.zeros(1, 2, 32, 32), Identity(), noise, ImageStreams([0]))
    made = Stabilised(TV(4.0))(observation, streams=ImageStreams([0])).x
    torch.testing.assert_close(made.mean((-1, -2)), torch.zeros(1, 2), rtol=0, atol=0.02)


# a proxy


def dark_frames(rng, count, side):
    """Long tails in pixels, one tail in rows."""
    pixels = 0.05 * scipy.stats.tukeylambda(-0.2).rvs((count, 1, side, side), random_state=rng)
    rows = 0.1 * (rng.exponential(size=(count, 1, side, 1)) - 1)
    return pixels, rows


def quantile_distance(made, real):
    """W_1 of two samples of one size."""
    return float(np.abs(np.sort(made.ravel()) - np.sort(real.ravel())).mean())


def test_a_proxy_is_nearer_to_the_truth_than_a_normal_fit_in_each_part():
    rng = np.random.default_rng(0)
    pixels, rows = dark_frames(rng, 48, 32)
    darks = torch.from_numpy(pixels + rows - 1)
    proxy = fit_noise_proxy(darks, steps=80, batch_size=512, lr=1e-2)
    noise = ProxyNoise(proxy)
    assert noise.of_pixel == pytest.approx(pixels.var(), rel=0.15)
    assert noise.of_row == pytest.approx(0.1**2, rel=0.2)
    truth = dark_frames(rng, 100, 32)
    z = rng.standard_normal((100, 1, 32, 32))
    made = [
        proxy.pixel * proxy.of_pixel(torch.from_numpy(z).float()).numpy(),
        proxy.row * proxy.of_row(torch.from_numpy(z[..., :1]).float()).numpy(),
    ]
    for part, real, gaussian in zip(made, truth, (z, z[..., :1]), strict=True):
        assert quantile_distance(part, real) < 0.3 * quantile_distance(real.std() * gaussian, real)


def test_a_proxy_comes_back_from_its_file_with_its_gain(tmp_path):
    noise = ELDNoise(gain=0.02, sigma=0.05, row=0.02)
    flats = [frames(noise, level, count=6) for level in (-0.3, 0.5)]
    proxy = fit_noise_proxy(frames(noise, -1.0, count=6), flats, steps=3)
    save_proxy(proxy, tmp_path / "a.pt")
    back, x = ProxyNoise(load_proxy(tmp_path / "a.pt")), torch.zeros(1, 1, 8, 8)
    assert torch.equal(back.sample(x, ImageStreams([0])), ProxyNoise(proxy).sample(x, ImageStreams([0])))
    assert back.gain == pytest.approx(0.02, rel=0.02)
    assert back.lines.sigma == pytest.approx(0.02, rel=0.15)
    assert back.lines.noise.of_row == 0
    (tmp_path / "b.pt").write_bytes(b"none")
    with pytest.raises(UserError, match="is no proxy of sensor noise"):
        load_proxy(tmp_path / "b.pt")


# stripes and dead pixels


def test_stripes_beside_gaussian_noise_have_the_density_of_the_dense_covariance():
    noise = StripeNoise(GaussianNoise(0.3), sigma=[0.2, 0.5])
    y = noise.sample(torch.zeros(3, 2, 4, 5).double(), ImageStreams([0, 1, 2]))
    column = torch.arange(5).repeat(4)
    expected = torch.zeros(3, dtype=torch.float64)
    for c, sigma in enumerate((0.2, 0.5)):
        covariance = 0.09 * torch.eye(20).double() + sigma**2 * (column[:, None] == column)
        law = torch.distributions.MultivariateNormal(torch.zeros(20).double(), covariance)
        expected += law.log_prob(y[:, c].flatten(1))
    torch.testing.assert_close(noise.log_likelihood(y, torch.zeros_like(y)), expected)


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_stripes_of_constant_bands_are_found_exactly_up_to_their_mean(axis):
    noise = StripeNoise(GaussianNoise(0.0), sigma=[0.1, 0.3], axis=axis)
    bands = torch.tensor([0.2, -0.4]).double().reshape(1, 2, 1, 1).expand(1, 2, 200, 200)
    y = noise.sample(bands, ImageStreams([0]))
    found = estimate_stripes(y[0], axis)
    assert found.sigma == pytest.approx((0.1, 0.3), rel=0.15)
    clean = y[0] - found.offsets
    torch.testing.assert_close(clean, y[0].mean((-1, -2), keepdim=True).expand_as(clean), rtol=0, atol=1e-12)


def test_stripes_on_a_smooth_image_are_removed_and_noise_alone_has_none():
    wave = 0.5 * torch.sin(torch.linspace(0, 7, 160)).double() * torch.linspace(1, 2, 160).double()[:, None]
    noise = StripeNoise(GaussianNoise(0.1), sigma=0.1)
    y = noise.sample(wave.expand(1, 1, 160, 160), ImageStreams([0]))
    found = estimate_stripes(y[0], variance=0.01)
    assert found.sigma[0] == pytest.approx(0.1, rel=0.2)
    left = (y[0] - found.offsets - wave).mean(-2)
    assert float(left.std()) < 0.35 * float((y[0] - wave).mean(-2).std())
    white = estimate_stripes(wave + 0.1 * normal(1, 160, 160), variance=0.01)
    assert white.sigma[0] < 0.01


def test_lines_are_taken_off_before_what_serves_the_other_noise():
    sensor = ELDNoise(gain=0.02, sigma=0.02, row=0.05)
    assert sensor.lines.noise.row == 0
    for chosen in (serving(TV(), sensor), usual_restorer(sensor, 4096)):
        assert type(chosen) is Destriped
        assert type(chosen.restorer) is Stabilised
    clean = torch.linspace(-0.5, 0.5, 64).reshape(64, 1).expand(1, 1, 64, 64)
    observation = Observation.simulate(clean, Identity(), sensor, ImageStreams([0]))
    left = estimate_stripes(observation.y[0], "rows", variance=0.02, sigma=0.05).offsets
    true = (observation.y[0] - clean[0]).mean(-1, keepdim=True)
    assert float((true - left).std()) < 0.35 * float(true.std())
    errors = [
        float((restorer(observation, streams=ImageStreams([0])).x - clean).square().mean())
        for restorer in (serving(Bilateral(), sensor), Stabilised(Bilateral()))
    ]
    assert errors[0] < 0.95 * errors[1]
    plain = Observation(observation.y, Identity(), GaussianNoise(0.1))
    made = [restorer(plain, streams=ImageStreams([0])).x for restorer in (Destriped(TV()), TV())]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ELDNoise(0.1, 0.1, shape=-0.5), "shape=-0.5 must be a number > -0.5"),
        (lambda: ELDNoise(0.1, 0.1, row=0.1).sample(torch.zeros(2, 3), ImageStreams([0, 1])), "is for images"),
        (lambda: ELDNoise(0.1, 0.1, bias=[0.1, 0.2]).sample(torch.zeros(1, 3, 4, 4), ImageStreams([0])),
         "bias has 2 values"),
        (lambda: ELDNoise(0.1, 0.1, row=0.1).of_mean(4), "no known law of the mean"),
        (lambda: calibrate([torch.zeros(4, 1, 8, 8)], torch.zeros(4, 1, 6, 6)),
         r"flats of shape \(1, 8, 8\) and darks of shape \(1, 6, 6\): give frames of one size"),
        (lambda: fit_noise_proxy(torch.randn(4, 1, 6, 6), [torch.zeros(4, 1, 8, 8)]), "give frames of one size"),
        (lambda: fit_noise_proxy(torch.zeros(4, 1, 6, 6)), "are all the same"),
        (lambda: calibrate([torch.zeros(1, 1, 8, 8)], torch.zeros(4, 1, 8, 8)), "two at least of each exposure"),
        (lambda: photon_transfer([torch.full((4, 1, 8, 8), 2.0)], torch.rand(4, 1, 8, 8)), "does not rise with their mean"),
        (lambda: photon_transfer([], torch.randn(4, 1, 8, 8)), "flats is empty"),
        (lambda: at_gain([ELDNoise(0.1, 0.1)], 0.2), "give two gains at least"),
        (lambda: StripeNoise(CorrelatedNoise(0.1), 0.1).log_likelihood(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)),
         "has no likelihood"),
        (lambda: StripeNoise(PoissonNoise(3.0), -0.1), "sigma=-0.1"),
        (lambda: estimate_stripes(torch.zeros(1, 9, 7)), "at least 8 columns"),
        (lambda: NoiseProxy(gain=-1.0, pixel=0.1), "gain=-1"),
        (lambda: DeadPixels(torch.ones(2, 3, 3)), "nothing is known"),
        (lambda: DeadPixels(torch.zeros(2, 3, 3))(torch.zeros(1, 1, 3, 3)), "give images of that size"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_a_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
