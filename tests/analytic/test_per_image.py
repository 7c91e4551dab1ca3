"""Restorers that are fitted to one image: their exact answers, their stopping rule, and what they refuse."""

import math

import numpy as np
import pytest
import torch

from scoreexp import prior
from scoreexp.core.errors import UserError
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import GammaNoise, GaussianNoise, Identity, Observation, PoissonNoise, Radon
from scoreexp.restorers import MID, ZSN2N, Bilateral, Filter2Noise, Noise2Score, NoiSER, ScoreDVI
from scoreexp.restorers.filter2noise import bilateral, shuffled
from scoreexp.restorers.mid import noise_bank
from scoreexp.restorers.scoredvi import NoiseMixture
from scoreexp.restorers.zs_n2n import diagonal_means
from scoreexp.schedules import VE, ConstantNoise

STREAMS = ImageStreams([0])


def observed(y, sigma=0.2):
    return Observation(y, Identity(), GaussianNoise(sigma))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Filter2Noise


def test_the_filter_is_a_loop_over_pixels_with_the_widths_of_each():
    y = draw(1, 2, 5, 6)
    widths = 0.5 + draw(1, 3, 5, 6, seed=1).abs()
    filtered = bilateral(y, widths, reach=2)
    for i in range(5):
        for j in range(6):
            sx, sy, sr = widths[0, :, i, j].tolist()
            total, weights = torch.zeros(2, dtype=torch.float64), 0.0
            for k in range(max(i - 2, 0), min(i + 3, 5)):
                for m in range(max(j - 2, 0), min(j + 3, 6)):
                    apart = float((y[0, :, i, j] - y[0, :, k, m]).square().sum())
                    w = math.exp(
                        -((m - j) ** 2) / (2 * sx**2) - (k - i) ** 2 / (2 * sy**2) - apart / (2 * sr**2)
                    )
                    total, weights = total + w * y[0, :, k, m], weights + w
            torch.testing.assert_close(filtered[0, :, i, j], total / weights)


def test_with_constant_widths_it_is_the_classical_filter():
    y, radius, sigma = draw(2, 3, 12, 13), 1.0, 0.3
    classical = Bilateral(radius=radius, strength=1.95).apply(y, sigma)
    widths = torch.tensor([radius, radius, 1.95 * sigma * 3**0.5], dtype=torch.float64).reshape(1, 3, 1, 1)
    filtered = bilateral(y, widths.expand(2, 3, 12, 13), reach=3)
    torch.testing.assert_close(filtered, classical, rtol=0, atol=1e-6)


def test_the_shuffle_exchanges_the_most_similar_pair_of_each_block():
    x = draw(1, 2, 6, 8)
    made = shuffled(x)
    for i in range(0, 6, 2):
        for j in range(0, 8, 2):
            old, new = x[0, :, i : i + 2, j : j + 2].flatten(1), made[0, :, i : i + 2, j : j + 2].flatten(1)
            pairs = [(a, b) for a in range(4) for b in range(a)]
            a, b = min(pairs, key=lambda pair: float((old[:, pair[0]] - old[:, pair[1]]).square().sum()))
            expected = old.clone()
            expected[:, [a, b]] = old[:, [b, a]]
            assert torch.equal(new, expected)


def test_where_the_halves_agree_and_where_not():
    """The pair assumption: exact on ramps, wrong on a diagonal edge and on texture, whose noise-free halves differ."""
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def gap(image):
        first, second = diagonal_means(image[None, None])
        return float((first - second).square().mean().sqrt())

    assert gap(0.01 * row - 0.02 * column) < 1e-6
    edge = gap((row + column > 64).float())
    texture = gap(0.5 * (torch.rand(64, 64, generator=generator(0)) > 0.5).float() / 0.5)
    assert 0.02 < edge < texture


def test_filter2noise_removes_noise():
    x = torch.linspace(-0.5, 0.5, 16)[:, None].expand(1, 1, 16, 16)
    observation = Observation.simulate(x, Identity(), GaussianNoise(0.2), ImageStreams([0], "noise"))
    made = Filter2Noise(steps=25)(observation, streams=STREAMS)
    assert (made.x - x).square().mean() < 0.5 * (observation.y - x).square().mean()


def test_its_widths_are_written_as_numbers_and_pictures_beside_earlier_ones(tmp_path):
    observation = observed(draw(1, 1, 14, 15).float())
    restorer = Filter2Noise(steps=2, maps=str(tmp_path / "maps"))
    restorer(observation, streams=STREAMS)
    widths = restorer.fitted(observation).widths
    assert widths.shape == (2, 3, 14, 15)
    assert (widths > 0).all()
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert len(names) == 7
    np.testing.assert_allclose(np.load(tmp_path / "maps" / names[-1]), widths, rtol=1e-5)
    restorer(observation, streams=STREAMS)
    assert len(list((tmp_path / "maps").glob("000_*"))) == len(list((tmp_path / "maps").glob("001_*"))) == 7
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: give a folder"):
        Filter2Noise(steps=2, maps=str(tmp_path / "file"))(observation, streams=STREAMS)


# ScoreDVI


def correlated(side, length=1.5, variance=0.3):
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
    return variance * torch.exp(-torch.cdist(places, places) / length)


def test_the_mean_field_optimum_is_the_posterior_mean_and_the_diagonal_of_the_precision():
    side, sigma, level, mean = 4, 0.4, 0.02, 0.2
    covariance = correlated(side)
    shape = (1, side, side)
    prior = Gaussian(torch.full(shape, mean).double(), covariance)
    model = OracleDenoiser(prior, VE())
    y = mean + draw(1, *shape)
    restorer = ScoreDVI(steps=500, components=0, level=level, pairs=8, tolerance=0.0, rate=0.2)
    found, variance = restorer.posterior(observed(y, sigma), model)
    smoothed = torch.linalg.inv(covariance + level**2 * torch.eye(side**2))
    precision = smoothed + torch.eye(side**2) / sigma**2
    residual = (y.flatten() - mean) / sigma**2
    exact = mean + torch.linalg.solve(precision, residual)
    torch.testing.assert_close(found.flatten(), exact, rtol=0, atol=0.01)
    torch.testing.assert_close(variance.flatten(), 1 / precision.diagonal(), rtol=0.1, atol=0)
    posterior = torch.linalg.inv(precision).diagonal()
    assert (variance.flatten() < posterior).all(), "mean field is too narrow"


def test_without_its_prior_it_returns_the_noisy_image():
    y = draw(2, 1, 4, 4)
    model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4).double(), torch.ones(1, 4, 4).double()), VE())
    made = ScoreDVI(weight=0.0)(observed(y), model, streams=ImageStreams([0, 1]))
    assert torch.equal(made.x, y)
    assert made.nfe == 0


def test_a_mixture_of_noises_finds_the_two_levels_and_the_outliers():
    z = draw(1, 1, 100, 100)
    rare = torch.rand(1, 1, 100, 100, generator=generator(1), dtype=torch.float64) < 0.1
    noise = torch.where(rare, 1.0, 0.1) * z
    mixture = NoiseMixture(noise, components=2)
    mixture.first_rate, mixture.first_shape = (
        1e-3 * mixture.first_rate,
        1e-3 * mixture.first_shape,
    )  # data alone
    for _ in range(100):
        mixture.update(noise.square() / 0.04)
    levels = (mixture.rate / mixture.shape * 0.04).sqrt().flatten().sort().values
    torch.testing.assert_close(levels, torch.tensor([0.1, 1.0]).double(), rtol=0.08, atol=0)
    assert mixture.precision()[rare & (z.abs() > 1)].max() < 0.1 * mixture.precision().median()


@pytest.mark.parametrize("noise", [PoissonNoise(10.0), GammaNoise(20.0)])
def test_noise_that_depends_on_the_image_has_the_variance_of_the_estimate_not_of_the_noisy_value(noise):
    mean, variance, level, shape = 0.2, 1e-3, 0.02, (1, 2, 3)
    known = Gaussian(torch.full(shape, mean).double(), variance * torch.eye(6).double())
    y = torch.tensor([-1.0, -0.999, -0.5, 0.2, 1.0, 2.0]).double().reshape(1, *shape)
    restorer = ScoreDVI(steps=100, components=0, level=level, tolerance=0.0)
    found, _ = restorer.posterior(Observation(y, Identity(), noise), OracleDenoiser(known, VE()))
    smoothed = variance + level**2
    given = noise.variance(mean + (found - mean) * variance / smoothed)
    torch.testing.assert_close(found, mean + (y - mean) * smoothed / (smoothed + given), rtol=0, atol=1e-4)


# MID


def test_the_noise_bank_has_the_true_covariance_outside_of_the_signals_space_and_loses_it_within():
    n, many = 32, 20000
    basis = torch.linalg.qr(draw(n, n)).Q
    signal = 25 * basis[:, :1] @ basis[:, :1].T
    place = torch.arange(n)
    truth = 0.5 ** (place[:, None] - place).abs().double()  # correlated along the row
    y = draw(many, n, seed=1) @ torch.linalg.cholesky(signal + truth).T

    def fit(bank):
        covariance = bank.T @ bank / len(bank)
        return lambda y: y @ torch.linalg.solve(signal + covariance, signal)

    start = draw(many, n, seed=2)
    _, bank = noise_bank(y, fit, start, rounds=3)
    before, after = (torch.linalg.norm(noise.T @ noise / many - truth) for noise in (start, bank))
    assert after < 0.6 * before
    outside = basis[:, 1:]
    found = outside.T @ (bank.T @ bank / many) @ outside
    torch.testing.assert_close(found, outside.T @ truth @ outside, rtol=0.05, atol=0.05)
    inside = basis[:, :1]
    assert (inside.T @ bank.T @ bank @ inside / many).trace() < 0.8 * (inside.T @ truth @ inside).trace()


def test_without_a_mask_it_is_supervised_training_on_the_noise_of_the_bank():
    photo, bank = draw(1, 1, 9, 9).float(), draw(1, 1, 9, 9, seed=1).float()
    seen = []

    def network(x):
        seen.append(x)
        return x[:, :1]

    loss = MID(mask=0.0, side=9).loss(network, [photo], bank, generator(0))
    torch.testing.assert_close(loss, bank.abs().mean())
    assert torch.equal(seen[0][:1], torch.cat([photo + bank, torch.ones(1, 1, 9, 9)], 1))
    MID(mask=0.75, side=9).loss(network, [photo], bank, generator(0))
    values, mask = seen[1][:, :1], seen[1][:, 1:]
    assert 0.6 < float((mask == 0).float().mean()) < 0.9
    assert (values[mask == 0] == 0).all()


def test_mid_removes_noise():
    x = torch.linspace(-0.5, 0.5, 24)[:, None].expand(1, 3, 24, 24)
    observation = Observation.simulate(x, Identity(), GaussianNoise(0.2), ImageStreams([0], "noise"))
    made = MID(steps=30, rounds=2, side=24, width=8, depth=2)(observation, streams=STREAMS)
    assert (made.x - x).square().mean() < 0.4 * (observation.y - x).square().mean()


# NoiSER


def test_noiser_makes_a_grey_world_and_keeps_the_order_of_a_darkened_gradient():
    ramp = torch.linspace(0, 1, 40)
    dark = -1 + torch.stack([0.2 * ramp, 0.1 * ramp, 0.05 * ramp])[None, :, None].expand(1, 3, 40, 40)
    made = NoiSER(steps=150)(observed(dark, 0.0), streams=STREAMS).x
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    spread = made.std((2, 3))
    torch.testing.assert_close(spread, spread.mean().expand(1, 3), rtol=1e-3, atol=0)
    assert 0.4 < spread.mean() < 0.6
    assert (made[..., 20, 2:-2].diff(dim=-1) > 0).all()


# Noise2Score


def test_gamma_noise_gives_the_harmonic_mean_and_not_the_posterior_mean():
    """u ~ inverse Gamma(a, b) is conjugate: v | u ~ Gamma(L, u / L) has a known marginal, E[u | v] and 1 / E[1 / u | v]."""
    looks, a, b = 3.0, 4.0, 2.0
    v = torch.tensor([[0.3, 0.6, 1.2]], dtype=torch.float64)

    class Marginal(OracleDenoiser):
        def score(self, x_t, t, cond=None):
            v = (x_t + 1) / 2
            slope = (looks - 1) / v - (looks + a) * looks / (b + looks * v)
            return slope / 2

    model = Marginal(Gaussian(torch.zeros(3).double(), torch.ones(3).double()), ConstantNoise(0.1))
    made = Noise2Score()(Observation(2 * v - 1, Identity(), GammaNoise(looks)), model, streams=STREAMS)
    u = (made.x + 1) / 2
    torch.testing.assert_close(u, (b + looks * v) / (a + looks))  # 1 / E[1 / u | v]
    assert ((b + looks * v) / (a + looks - 1) - u > 0.05 * u).all()  # E[u | v]


def test_noise2score_refuses_a_model_of_clean_images_and_another_operator():
    model = OracleDenoiser(Gaussian(torch.zeros(1, 5, 8), torch.ones(1, 5, 8)), ConstantNoise(0.1))
    with pytest.raises(ValueError, match="Noise2Score denoises, and Radon is no identity"):
        Noise2Score()(
            Observation(torch.zeros(1, 1, 5, 8), Radon(8, 5), GaussianNoise(0.1)), model, streams=STREAMS
        )
    model.record = {"config": {"objective": {"_target_": "scoreexp.objectives.DenoisingScoreMatching"}}}
    with pytest.raises(
        ValueError, match="objective is DenoisingScoreMatching: give one of experiment=folder_noise2score"
    ):
        Noise2Score()(observed(torch.zeros(1, 1, 5, 8)), model, streams=STREAMS)
    with pytest.raises(
        ValueError, match="this model knows clean ones: give one of experiment=folder_noise2score"
    ):
        Noise2Score()(observed(torch.zeros(1, 1, 8, 8)), prior.load(), streams=STREAMS)


# what they share


def test_a_fit_is_over_when_the_estimate_has_settled():
    y, seen = torch.zeros(1, 1, 8, 8), []
    ZSN2N(steps=400, width=4, tolerance=0.5)(
        observed(y), streams=STREAMS, callback=lambda i, n, *rest: seen.append((i, n))
    )
    assert len(seen) == 50, "two looks, 25 steps apart, at an estimate that hardly moves"
    assert seen[-1] == (400, 400), "the bar ends full"
    unsettled = []
    ZSN2N(steps=60, width=4)(observed(y), streams=STREAMS, callback=lambda i, n, *rest: unsettled.append(i))
    assert unsettled == list(range(1, 61))


@pytest.mark.parametrize(
    "restorer", [Filter2Noise(steps=1), MID(steps=1), NoiSER(steps=1)], ids=lambda r: r.method
)
def test_what_a_fit_cannot_serve_is_refused(restorer):
    with pytest.raises(ValueError, match=rf"{restorer.method} removes noise and cannot undo Radon"):
        restorer(Observation(torch.zeros(1, 1, 5, 8), Radon(8, 5), GaussianNoise(0.1)), streams=STREAMS)
    with pytest.raises(ValueError, match=r"2 x 2 pixels at least, not \(1, 9\)"):
        restorer(observed(torch.zeros(1, 1, 1, 9)), streams=STREAMS)
    with pytest.raises((ValueError, FloatingPointError), match="not finite"):
        restorer(observed(torch.full((1, 1, 8, 8), math.nan)), streams=STREAMS)


def test_photographs_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"clean=\[\] leaves nothing to learn from"):
        MID(clean=[])
    with pytest.raises(
        ValueError, match="clean=nowhere is no file and no bundled photograph: there are astronaut"
    ):
        MID(clean=["nowhere"])(observed(torch.zeros(1, 1, 8, 8)), streams=STREAMS)
