"""Diagnostics against distributions and models whose right answer is known in closed form."""

import math

import pytest
import torch

from scoreexp.core.streams import generator
from scoreexp.denoisers import Denoiser, OracleDenoiser, VPrediction, Wrapper
from scoreexp.diagnostics.agreement import split_half_disagreement, training_over_held_out
from scoreexp.diagnostics.calibration import calibration
from scoreexp.diagnostics.certified import certified_radius, clopper_pearson_lower
from scoreexp.diagnostics.diti import DiTi, diti_relative_loss, fit_diti
from scoreexp.diagnostics.estimates import ratio_of, usable_levels
from scoreexp.diagnostics.features import hidden_features, probe_by_level
from scoreexp.diagnostics.fields import denoised, noisy, products
from scoreexp.diagnostics.fokker_planck import fokker_planck_residual
from scoreexp.diagnostics.jacobian import jacobian_asymmetry, jacobian_spectrum
from scoreexp.diagnostics.likelihood_levels import likelihood_by_level
from scoreexp.diagnostics.linear_classifier import fit_linear_classifier
from scoreexp.diagnostics.score_errors import score_error_by_level
from scoreexp.diagnostics.stopping import compare_stopping
from scoreexp.diagnostics.task_metric import task_gain
from scoreexp.networks import MLP
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.schedules import VE, VP

VARIANCES = torch.tensor([2.0, 0.5, 0.1, 0.02], dtype=torch.float64)
BASIS = torch.linalg.qr(torch.randn(4, 4, generator=generator(0, "basis"), dtype=torch.float64))[0]
GAUSSIAN = Gaussian(torch.full((4,), 0.3), BASIS * VARIANCES @ BASIS.T)
MIXTURE = GaussianMixture(torch.ones(2), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), torch.tensor([0.05, 0.2]))


class Scaled(Wrapper):
    """A score that is ``factor`` times too long."""

    def __init__(self, model, factor):
        super().__init__(model)
        self.factor = factor

    def __call__(self, x_t, t, cond=None):
        alpha = self.schedule.alpha(t).reshape(-1, 1)
        x0 = self.model(x_t, t, cond)
        return (x_t + self.factor * (alpha * x0 - x_t)) / alpha


class Turned(Wrapper):
    """Adds a rotation ``by`` of the first two coordinates, which no gradient has."""

    def __init__(self, model, by):
        super().__init__(model)
        self.by = by

    def __call__(self, x_t, t, cond=None):
        alpha = self.schedule.alpha(t).reshape(-1, 1)
        turned = torch.stack([-x_t[:, 1], x_t[:, 0]], 1) * self.by / alpha
        return self.model(x_t, t, cond) + turned


def points(oracle, n=200):
    return oracle.sample(n, generator(1, "points"))


@pytest.mark.parametrize("schedule", [VP(), VE()], ids=["VP", "VE"])
@pytest.mark.parametrize("level", [0.1, 1.0])
def test_the_eigenvalues_of_gaussian_data_are_those_of_wieners_filter(schedule, level):
    model = OracleDenoiser(GAUSSIAN, schedule)
    found = jacobian_spectrum(model, noisy(points(GAUSSIAN, 2), level, 0), level)
    wanted = VARIANCES / (VARIANCES + level**2)
    torch.testing.assert_close(found.eigenvalues, wanted.expand(2, 4), rtol=1e-9, atol=1e-12)
    along = (found.eigenvectors[0] @ BASIS).abs()
    torch.testing.assert_close(along, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_iterated_directions_find_the_largest_eigenvalues_and_their_multiplicity():
    size = 400  # too large for the whole Jacobian
    variances = torch.full((size,), 0.01, dtype=torch.float64)
    variances[:5] = torch.tensor([4.0, 2.0, 2.0, 1.0, 0.5])
    model = OracleDenoiser(Gaussian(torch.zeros(size), variances), VP())
    found = jacobian_spectrum(model, torch.zeros(1, size, dtype=torch.float64), 0.5, k=5)
    wanted = variances[:5] / (variances[:5] + 0.25)
    torch.testing.assert_close(found.eigenvalues[0], wanted, rtol=1e-6, atol=0)


def test_products_are_those_of_the_jacobian_of_each_sample():
    u = points(MIXTURE, 3)
    model = OracleDenoiser(MIXTURE, VP())
    pair = products(lambda u: denoised(model, u, 0.5), u)
    whole = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda u: denoised(model, u[None], 0.5)[0], u[i])
            for i in range(3)
        ]
    )
    v = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(3, 2)
    torch.testing.assert_close(pair.forward(v), (whole @ v[:, :, None])[:, :, 0])
    torch.testing.assert_close(pair.transposed(v), (whole.mT @ v[:, :, None])[:, :, 0])


def test_the_asymmetry_is_0_for_a_score_and_known_for_a_rotation():
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    u = torch.zeros(5, 2, dtype=torch.float64)
    assert jacobian_asymmetry(OracleDenoiser(MIXTURE, VP()), points(MIXTURE), 0.3).value < 1e-20
    # J = I / 2 + by R: |A|^2 = 2 by^2 and |J|^2 = 2 (1/4 + by^2)
    for by in (0.25, 10.0):
        found = jacobian_asymmetry(Turned(model, by), u, 1.0, batch=2)
        assert found.value == pytest.approx(by**2 / (0.25 + by**2), rel=1e-9)


@pytest.mark.parametrize("level", [0.2, 1.0])
def test_the_fokker_planck_residual_is_0_for_a_score_and_known_for_one_too_long(level):
    exact = OracleDenoiser(MIXTURE, VP())
    assert abs(fokker_planck_residual(exact, noisy(points(MIXTURE), level, 0), level).value) < 1e-9
    # of N(0, c): s = -k u / (c + r^2) has the residual (k - k^2) u / (c + r^2)^2, and changes by k u / (c + r^2)^2
    gaussian = Gaussian(torch.zeros(3), torch.full((3,), 0.7))
    u = noisy(points(gaussian), level, 0)
    for factor in (0.5, 1.3):
        found = fokker_planck_residual(Scaled(OracleDenoiser(gaussian, VP()), factor), u, level, batch=64)
        assert found.value == pytest.approx((1 - factor) ** 2, rel=1e-4)


def test_the_residual_of_large_samples_is_estimated_without_bias():
    means = 0.5 * torch.randn(2, 20, generator=generator(2, "means"), dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(2), means, torch.full((2,), 0.3))
    u, level = noisy(points(mixture, 400), 0.3, 0), 0.3
    exact = fokker_planck_residual(OracleDenoiser(mixture, VP()), u, level)
    assert abs(exact.value) < 3 * exact.error < 0.3
    wrong = fokker_planck_residual(Scaled(OracleDenoiser(mixture, VP()), 2.0), u, level)
    assert wrong.value > 5 * wrong.error


def test_the_residual_needs_levels_inside_the_schedule():
    with pytest.raises(ValueError, match=r"level=50 for a schedule of 0\.01 to 50"):
        fokker_planck_residual(
            OracleDenoiser(MIXTURE, VE(sigma_min=0.01, sigma_max=50)), points(MIXTURE), 50.0
        )


def test_the_posterior_mean_is_calibrated_and_a_model_of_too_narrow_data_is_too_sure():
    c, wrong, level = 1.0, 0.25, 1.0
    gaussian = Gaussian(torch.zeros(3), torch.full((3,), c))
    x = points(gaussian, 4000)
    exact = calibration(OracleDenoiser(gaussian, VP()), x, level)
    assert abs(exact.error.value - 1) < 3 * exact.error.error < 0.1
    assert abs(exact.spread.value - 1) < 3 * exact.spread.error < 0.2
    assert abs(exact.dispersion.value - c / (c + level**2)) < 3 * exact.dispersion.error < 0.1
    assert abs(exact.total.value - 1) < 3 * exact.total.error < 0.1
    # D = g u with g = wrong / (wrong + r^2): the error is ((1 - g)^2 c + g^2 r^2), stated is r^2 g; D spreads by
    # g^2 (c + r^2), and c - r^2 g would be left
    g = wrong / (wrong + level**2)
    narrow = calibration(
        OracleDenoiser(Gaussian(torch.zeros(3), torch.full((3,), wrong)), VP()), x, level, batch=1000
    )
    error = ((1 - g) ** 2 * c + g**2 * level**2) / (level**2 * g)
    spread = g**2 * (c + level**2) / (c - level**2 * g)
    assert abs(narrow.error.value - error) < 3 * narrow.error.error
    assert abs(narrow.spread.value - spread) < 3 * narrow.spread.error
    kept = g**2 * (c + level**2) / c
    assert abs(narrow.dispersion.value - kept) < 3 * narrow.dispersion.error < 0.1
    assert abs(narrow.total.value - (kept + level**2 * g / c)) < 3 * narrow.total.error < 0.1
    assert error > 3
    assert spread < 0.2
    with pytest.raises(ValueError, match=r"1 sample.* at least 2"):
        calibration(OracleDenoiser(gaussian, VP()), x[:1], level)


def test_the_score_error_is_that_of_two_gaussians_and_0_for_the_memorising_oracle():
    images = points(MIXTURE, 7)
    memorised = OracleDenoiser(EmpiricalImages(images), VP())
    assert score_error_by_level(memorised, EmpiricalImages(images), [0.1, 1.0])[0.1].value < 1e-8
    c, k, r = 1.0, 3.0, 0.5
    exact, other = (Gaussian(torch.zeros(3), torch.full((3,), v)) for v in (c, k))
    found = score_error_by_level(OracleDenoiser(other, VP()), exact, [r], n=20, batch=8)
    assert found[r].value == pytest.approx(((c + r**2) / (k + r**2) - 1) ** 2, rel=1e-5)


def test_the_disagreement_of_two_gaussian_models_is_known():
    c, gains, r = 1.0, [0.5 / 1.5, 2.0 / 3.0], 1.0  # models of variance 0.5 and 2
    x = points(Gaussian(torch.zeros(3), torch.full((3,), c)), 4000)
    models = [
        OracleDenoiser(Gaussian(torch.zeros(3), torch.full((3,), v)), s)
        for v, s in ((0.5, VP()), (2.0, VE()))
    ]
    found = split_half_disagreement(*models, x, r)
    error = sum((1 - g) ** 2 * c + g**2 * r**2 for g in gains) / 2
    wanted = (gains[1] - gains[0]) ** 2 * (c + r**2) / error
    assert abs(found.value - wanted) < 3 * found.error < 0.1 * wanted
    assert split_half_disagreement(models[0], models[0], x[:2], r).value == 0


def test_the_training_error_over_the_held_out_error_is_that_of_two_gaussians_and_0_of_what_was_memorised():
    c, k, g, r = 0.5, 2.0, 0.5, 1.0  # samples of variance 0.5 and 2, a model of variance 1
    x, y = (points(Gaussian(torch.zeros(3), torch.full((3,), v)), 3000) for v in (c, k))
    model = OracleDenoiser(Gaussian(torch.zeros(3), torch.ones(3)), VP())
    found = training_over_held_out(model, x, y, r, batch=1000)
    error = [(1 - g) ** 2 * v + g**2 * r**2 for v in (c, k)]
    assert abs(found.value - error[0] / error[1]) < 3 * found.error < 0.1
    memorised = OracleDenoiser(EmpiricalImages(x[:20]), VP())
    assert training_over_held_out(memorised, x[:20], x[20:40], 0.02).value < 1e-6
    with pytest.raises(ValueError, match=r"1 sample.*the held-out error"):
        training_over_held_out(model, x, y[:1], r)


def test_the_standard_error_covers_the_ratio():
    hits, draws = 0, 200
    for draw in range(draws):
        g = generator(draw, "ratio")
        b = 1 + torch.rand(50, generator=g)
        a = 2 * b + torch.randn(50, generator=g)
        found = ratio_of(a, b)
        hits += abs(found.value - 2) < 1.96 * found.error
    assert hits / draws == pytest.approx(0.95, abs=0.05)
    assert math.isnan(ratio_of(torch.ones(1), torch.zeros(1)).value)
    assert ratio_of(torch.ones(1), torch.ones(1)).needed() is None


def test_levels_outside_a_schedule_are_left_out_and_one_is_always_left():
    assert usable_levels([0.1, 1.0], 0.05, 2.0) == [0.1, 1.0]
    assert usable_levels([0.1], 1.0, 4.0) == [2.0]
    assert usable_levels([0.1], 0.5, 0.5, margin=1.05) == []


def test_the_likelihood_by_level_is_that_of_gaussians():
    c, k, size, levels = 0.5, 1.5, 3000, [0.1, 1.0, 10.0]
    law, other = (Gaussian(torch.zeros(size), torch.full((size,), v)) for v in (c, k))
    x = points(law, 40)
    bits = math.log(2)
    for oracle, v in ((law, c), (other, k)):
        found = likelihood_by_level(
            OracleDenoiser(oracle, VE(sigma_min=0.01, sigma_max=500)), x, levels, batch=16
        )
        assert found.edges == pytest.approx([0.01, 0.1, 1.0, 10.0, 500.0])

        def primitive(r, v=v):  # of E |x - D|^2 / r^2 d log r for D = v u / (v + r^2), per dimension
            return math.log(r) - math.log(v + r**2) / 2 - (c - v) / (2 * (v + r**2))

        for a, b in zip(found.edges, found.edges[1:], strict=False):
            wanted = (primitive(b) - primitive(a)) / bits
            assert abs(found.bands[a].value - wanted) < 4 * found.bands[a].error + 1e-3 * wanted
        cross_entropy = (math.log(2 * math.pi * (v + 1e-4)) + (c + 1e-4) / (v + 1e-4)) / 2 / bits
        assert abs(found.total.value - cross_entropy) < 4 * found.total.error < 0.06
    parts = sum(e.value for e in found.bands.values()) + found.prior.value + found.constant
    assert parts == pytest.approx(found.total.value, rel=1e-9)
    with pytest.raises(ValueError, match=r"ends at the noise level 0\.5.*needs 1 or more"):
        likelihood_by_level(OracleDenoiser(law, VE(sigma_min=0.01, sigma_max=0.5)), x)


def test_the_certified_radius_of_a_linear_classifier_is_its_distance_from_the_boundary():
    w, level = torch.tensor([3.0, 4.0], dtype=torch.float64), 0.5
    x = torch.tensor(
        [[0.6, 0.8], [-0.2, 0.0], [0.0, 0.0]], dtype=torch.float64
    )  # 1, -0.12 and 0 from the boundary
    exact = (x @ w / w.norm()).abs()

    def classify(v):
        return (v @ w > 0).long()

    plain = certified_radius(classify, x, level, n=4000, chosen_by=200)
    # shrinking by the same factor along all axes moves no sample over the boundary
    round_law = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.3)), VP())
    purified = certified_radius(classify, x, level, model=round_law, n=4000, chosen_by=200)
    for found in (plain, purified):
        assert found.label[:2].tolist() == [1, 0]
        assert (found.radius <= exact + 1e-9).all()
        assert (found.radius[:2] > 0.7 * exact[:2]).all()
        assert found.radius[2] == 0
    # a prior that knows the data to lie on one side of it certifies more than the classifier alone
    bright = OracleDenoiser(Gaussian(torch.tensor([0.6, 0.8]), torch.full((2,), 0.05)), VP())
    assert certified_radius(classify, x[:1], level, model=bright, n=4000).radius > 1.1 * exact[0]


def test_the_confidence_bound_of_a_share_is_what_so_many_hits_refute():
    n, hits = 60, torch.arange(61)
    lower = clopper_pearson_lower(hits, n, 0.95)
    assert lower[0] == 0
    law = torch.distributions.Binomial(n, lower[1:, None])
    chance = law.log_prob(hits.double().expand(60, 61)).exp()  # of each number of hits, at each bound
    at_least = torch.stack([chance[k - 1, k:].sum() for k in range(1, 61)])
    torch.testing.assert_close(at_least, torch.full((60,), 0.05, dtype=torch.float64))


def test_decibels_and_a_task_can_disagree():
    # the class is the sign of the last coordinate, which is small: a denoiser that removes all gains decibels
    x = torch.zeros(2, 20, dtype=torch.float64)
    x[:, -1] = torch.tensor([0.2, -0.2])
    x = x.repeat(500, 1)
    labels = (x[:, -1] > 0).long()
    constant = OracleDenoiser(Gaussian(torch.zeros(20), torch.full((20,), 1e-12)), VP())
    found = task_gain(constant, lambda v: (v[:, -1] > 1e-6).long(), x, labels, 0.2)
    assert found.psnr_gain.value == pytest.approx(10 * math.log10(20), abs=0.5)
    assert found.noisy.value == pytest.approx(
        0.5 + math.erf(1 / math.sqrt(2)) / 2, abs=0.04
    )  # Phi(0.2 / 0.2)
    assert found.denoised.value == 0.5
    assert found.gain.value == pytest.approx(0.5 - found.noisy.value)


def test_the_linear_classifier_is_the_same_by_features_and_by_samples():
    stream = generator(0, "classes")
    x = torch.randn(30, 40, generator=stream, dtype=torch.float64)
    labels = torch.arange(30) % 3
    few = fit_linear_classifier(x, labels, 0.1)  # more features than samples
    many = fit_linear_classifier(
        x.repeat(2, 1), labels.repeat(2), 0.1
    )  # the same regression, solved by features
    torch.testing.assert_close(few.weight, many.weight)
    torch.testing.assert_close(few.bias, many.bias)
    rows = x - x.mean(0)
    ridge = 0.1 * rows.square().mean()
    y = torch.nn.functional.one_hot(labels).double()
    gradient = rows.T @ (few.scores(x) - y) + ridge * 30 * few.weight.T
    assert gradient.abs().max() < 1e-9
    with pytest.raises(ValueError, match="1 class"):
        fit_linear_classifier(x, torch.zeros(30, dtype=torch.long))


def test_blocks_of_diti_hold_what_their_noise_level_takes_away():
    # two signs along turned axes: the fine one, 0.15, is lost at small noise already, the coarse one, 1, at large alone
    signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).repeat(10, 1)
    axes = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    x = (signs * torch.tensor([1.0, 0.15])) @ axes
    x = x + 0.01 * torch.randn(x.shape, generator=generator(0, "jitter"))
    model = OracleDenoiser(EmpiricalImages(x), VP())
    torch.manual_seed(0)
    network = DiTi(event_shape=(2,), edges=(0.1, 0.4, 3.0), block=1, width=32)
    fit_diti(network, model, x, steps=300, lr=1e-2, batch=64)
    with torch.no_grad():
        z = network.encode(x)
    coarse, fine = (signs > 0).long().T
    accuracy = [
        [float(fit_linear_classifier(z[:, k], v).accuracy(z[:, k], v).mean()) for v in (fine, coarse)]
        for k in (0, 1)
    ]
    losses = [diti_relative_loss(network, model, x, level).value for level in (0.2, 1.1)]
    assert max(losses) < 0.8  # with the best decoder it is the variance given x over the square of the error
    assert accuracy[0][0] > 0.95
    assert accuracy[1][1] > 0.95
    assert accuracy[0][1] < 0.8 > accuracy[1][0]
    level = torch.tensor([0.2], dtype=torch.float64)
    alike = z[:1].clone()
    alike[:, 1] += 5.0  # a later block is not seen
    assert torch.equal(network.decode(z[:1], level), network.decode(alike, level))


def test_probes_of_hidden_features_find_classes_where_noise_leaves_them():
    torch.manual_seed(0)
    model = Denoiser(MLP(event_shape=(4,), width=32, blocks=1), VPrediction(), VP())
    x = points(Gaussian(torch.zeros(4), torch.ones(4)), 600).float()
    labels = (x[:, 0] > 0).long()
    found = probe_by_level(model, (x[:400], labels[:400]), (x[400:], labels[400:]), [0.05, 20.0])
    assert found[0.05].value > 0.9
    assert abs(found[20.0].value - 0.5) < 0.15
    assert hidden_features(model, x[:3], 1.0).shape == (3, 32)


def test_ssim_stops_where_its_patience_ends():
    steps, ssim, error = [1, 2, 3, 4, 5], [0.1, 0.5, 0.4, 0.4, 0.9], [5.0, 3.0, 1.0, 2.0, 4.0]
    assert compare_stopping(steps, ssim, error) == (5, 3, 4.0, 1.0)
    found = compare_stopping(steps, ssim, error, patience=2)
    assert (found.stopped, found.excess) == (2, 2.0)
    with pytest.raises(ValueError, match="5 steps, 4 values"):
        compare_stopping(steps, ssim[:4], error)
