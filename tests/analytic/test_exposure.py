"""Photon counts as the forward process: thinning, and the exact law of a longer exposure under a Gamma prior."""

import math
from itertools import pairwise

import pytest
import torch

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import Denoiser, DenoiserBase, X0Prediction
from scoreexp.networks import AdaptiveResidual
from scoreexp.objectives import ExposureMatching, X0Weighting
from scoreexp.objectives.exposure import level_of_peak, peak_of_level
from scoreexp.observations import GaussianNoise, Identity, Observation, PoissonGaussianNoise, PoissonNoise
from scoreexp.restorers import Exposure
from scoreexp.schedules import VE, VP, FlowMatching

SHAPE_A, RATE_B = 3.0, 6.0  # of the intensity u ~ Gamma(a, rate b)
N = 40000


class GammaPrior(DenoiserBase):
    """``E[x_0 | n_p] = 2 (a + n) / (b + p) - 1``, from ``alpha_t x_p``."""

    def __init__(self, schedule=None, event_shape=(N,)):
        self.schedule, self.event_shape = schedule or VE(), event_shape

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = (v[:, None] for v in self.schedule(t.double()))
        peak = peak_of_level(sigma / alpha, 0.0)
        photons = peak * (x_t / alpha + 1) / 2
        return 2 * (SHAPE_A + photons) / (RATE_B + peak) - 1


def signals(rows=1):
    gamma = ImageStreams(range(rows), "signal").gamma(torch.empty(rows, N, dtype=torch.float64), SHAPE_A)
    return 2 * gamma / RATE_B - 1


def counts(x, peak):
    return peak * (x + 1) / 2


def test_a_thinned_exposure_is_a_shorter_one_and_independent_of_what_was_lost():
    rate, share = 12.0, 0.25
    drawn = ImageStreams([0]).poisson(torch.full((1, 200000), rate, dtype=torch.float64))[0]
    kept = torch.binomial(drawn, torch.full_like(drawn, share), generator=generator(0, "thinning"))
    lost = drawn - kept
    error = 4 / len(drawn) ** 0.5
    assert kept.mean().item() == pytest.approx(3, abs=3**0.5 * error)
    assert kept.var().item() == pytest.approx(3, abs=3 * 2**0.5 * error + 0.01)
    assert torch.corrcoef(torch.stack([kept, lost]))[0, 1].abs() < error
    zeros = (kept == 0).double().mean().item()
    assert zeros == pytest.approx(math.exp(-3), abs=0.25 * error)


@pytest.mark.parametrize("schedule", [VE(), VP()], ids=lambda schedule: type(schedule).__name__)
def test_the_adaptive_residual_layer_is_one_of_its_predictions_where_the_mask_is_shut(schedule):
    class Inner(torch.nn.Module):
        def __init__(self, *, event_shape, num_classes):
            super().__init__()
            assert event_shape == (7, 4, 4)

        def forward(self, x, c_noise, cond=None):
            assert not x[:, 3:].any()
            logits = torch.tensor([torch.inf, -torch.inf, 0.0, math.log(3)], dtype=x.dtype).expand(4, 4)
            image, residual = torch.full_like(x[:, :3], 0.25), torch.full_like(x[:, :3], 0.5)
            return torch.cat([image, residual, logits.expand(len(x), 1, 4, 4)], 1)

    model = Denoiser(AdaptiveResidual(network=Inner, event_shape=(3, 4, 4)), X0Prediction(), schedule)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    state = torch.randn(3, 3, 4, 4, generator=generator(0, "state"), dtype=torch.float64)
    found = model(schedule.alpha(t)[:, None, None, None] * state, t)
    kept = state + 0.5
    assert torch.equal(found[..., 0], torch.full_like(found[..., 0], 0.25))
    mixed = torch.stack([0.5 * 0.25 + 0.5 * kept[..., 2], 0.75 * 0.25 + 0.25 * kept[..., 3]], -1)
    torch.testing.assert_close(found[..., 1], kept[..., 1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[..., 2:], mixed, rtol=0, atol=1e-12)


def test_levels_and_exposures_are_inverse():
    peaks = torch.tensor([1e-3, 0.5, 30.0, 1e6], dtype=torch.float64)
    for reading in (0.0, 2.0, 50.0):
        level = level_of_peak(peaks, reading)
        torch.testing.assert_close(peak_of_level(level, reading), peaks, rtol=1e-9, atol=0)
    # the variance of x_p at mid grey
    noise = PoissonGaussianNoise(peak=30.0, sigma=2 * 4.0 / 30)
    level = level_of_peak(torch.tensor(30.0, dtype=torch.float64), 4.0).item()
    assert noise.variance(torch.zeros(1)).item() == pytest.approx(level**2, rel=1e-6)


@pytest.mark.parametrize("schedule", [VE(), VP()], ids=["ve", "vp"])
def test_the_loss_at_the_exact_posterior_mean_is_the_variance_that_the_counts_leave(schedule):
    rows, peak = 4, 8.0
    model, x = GammaPrior(schedule), signals(rows)
    noise = torch.randn(rows, N, generator=generator(0, "noise"), dtype=torch.float64)
    t = schedule.t_of_sigma(torch.full((rows,), math.sqrt(2 / peak), dtype=torch.float64))
    loss = ExposureMatching(X0Weighting())(model, Batch(x=x), t, noise)
    exact = 4 * SHAPE_A / (RATE_B * (RATE_B + peak))
    assert loss.mean().item() == pytest.approx(exact, rel=4 * 1.6 / (rows * N) ** 0.5)
    assert torch.equal(ExposureMatching(X0Weighting())(model, Batch(x=x), t, noise), loss)


def added(steps, anew=False, ratio=5.0):
    """Photons that a restorer adds to 4 of them at the exposure 2, and the parameters of their exact law."""
    first, peak = 4.0, 2.0
    observation = Observation(
        torch.full((1, N), 2 * first / peak - 1, dtype=torch.float64), Identity(), PoissonNoise(peak)
    )
    x = Exposure(ratio, steps, anew)(observation, GammaPrior(), streams=ImageStreams([0])).x
    last = ratio * peak
    photons = (x + 1) / 2 * (RATE_B + last) - SHAPE_A - first  # the estimate is linear in the count
    mean = (last - peak) * (SHAPE_A + first) / (RATE_B + peak)
    return photons[0], mean, (last - peak) / (RATE_B + last)


def test_the_longer_exposure_given_the_shorter_one_is_negative_binomial():
    photons, mean, r = added(steps=200)
    error = 4 / N**0.5
    assert photons.mean().item() == pytest.approx(mean, abs=error * (mean / (1 - r)) ** 0.5)
    assert photons.var().item() == pytest.approx(mean / (1 - r), rel=2 * error + 0.01)  # 0.005 of the steps
    a, whole = SHAPE_A + 4, photons.round()
    torch.testing.assert_close(whole, photons, rtol=0, atol=1e-9)
    for k in (0, 3, 7, 15):
        log_p = (
            math.lgamma(a + k) - math.lgamma(a) - math.lgamma(k + 1) + a * math.log(1 - r) + k * math.log(r)
        )
        share = (whole == k).double().mean().item()
        assert share == pytest.approx(math.exp(log_p), abs=4 * (math.exp(log_p) / N) ** 0.5 + 0.001)


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_keep_the_mean_and_lose_variance_as_their_recursion_says(steps):
    photons, mean, _ = added(steps)
    peaks = torch.linspace(2.0, 10.0, steps + 1, dtype=torch.float64).tolist()
    variance = 0.0
    for p, q in pairwise(peaks):
        variance = variance * ((RATE_B + q) / (RATE_B + p)) ** 2 + (q - p) * (SHAPE_A + 4) / (RATE_B + 2)
    error = 4 / N**0.5
    assert photons.mean().item() == pytest.approx(mean, abs=error * variance**0.5)
    assert photons.var().item() == pytest.approx(variance, rel=2 * error)


def test_drawing_all_photons_anew_ends_at_a_smaller_variance():
    photons, mean, r = added(steps=200, anew=True)
    error = 4 / N**0.5
    assert photons.mean().item() == pytest.approx(mean, abs=error * mean**0.5 * 1.3)
    assert photons.var().item() == pytest.approx(mean / (1 - r**2), rel=2 * error + 0.01)


def test_the_reading_noise_is_kept_and_told():
    seen = []

    class Told(GammaPrior):
        def __call__(self, x_t, t, cond=None):
            seen.append((x_t, self.schedule.sigma(t)[0].item()))
            return torch.zeros_like(x_t)

    noise = PoissonGaussianNoise(peak=2.0, sigma=1.0)  # 1 photon
    y = torch.tensor([[0.3, -1.5]], dtype=torch.float64)
    Exposure(2.0, 1)(Observation(y, Identity(), noise), Told(event_shape=(2,)), streams=ImageStreams([0]))
    levels = [level_of_peak(torch.tensor(p, dtype=torch.float64), 1.0).item() for p in (2.0, 4.0)]
    assert [level for _, level in seen] == pytest.approx(levels)
    torch.testing.assert_close(seen[0][0], y)
    added_photons = 4 * (seen[1][0] + 1) / 2 - 2 * (y + 1) / 2
    torch.testing.assert_close(added_photons, added_photons.round(), rtol=0, atol=1e-12)


def test_what_is_no_exposure_is_refused():
    y = torch.zeros(1, 2)
    model = GammaPrior(event_shape=(2,))
    with pytest.raises(ValueError, match=r"not GaussianNoise under Identity: give PoissonNoise\(peak\)"):
        Exposure(2.0)(Observation(y, Identity(), GaussianNoise(0.1)), model, streams=ImageStreams([0]))
    with pytest.raises(ValueError, match=r"noise level sigma/alpha = .* outside"):
        Exposure(1e9)(Observation(y, Identity(), PoissonNoise(10.0)), model, streams=ImageStreams([0]))
    with pytest.raises(ValueError, match=r"ratio=1.0: choose a finite ratio > 1"):
        Exposure(1.0)
    flow = GammaPrior(FlowMatching(), (2,))
    with pytest.raises(ValueError, match=r"an exposure without photons: choose schedule=ve"):
        ExposureMatching(X0Weighting())(flow, Batch(x=y), torch.ones(1, dtype=torch.float64), y)
