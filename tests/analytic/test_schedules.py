"""Schedules against closed forms, and their four functions against each other by autograd."""

import math

import numpy as np
import pytest
import torch

from scoreexp.schedules import DDPM, VE, VP, VEPower

SCHEDULES = [VP(), VP(0.5, 0.5, t_min=0.01), DDPM(), DDPM(1e-3, 0.1, 50), VE(), VEPower(), VEPower(25.0, 1.0)]
names = [f"{type(s).__name__}{i}" for i, s in enumerate(SCHEDULES)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=names)


def interior_times(schedule, n=200):
    u = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


def derivative(function, t):
    t = t.clone().requires_grad_()
    return torch.autograd.grad(function(t).sum(), t)[0]


@every_schedule
def test_drift_is_the_derivative_of_log_alpha(schedule):
    t = interior_times(schedule)
    expected = derivative(lambda t: schedule.alpha(t).log(), t)
    torch.testing.assert_close(schedule.drift(t), expected, rtol=1e-9, atol=1e-12)


@every_schedule
def test_diffusion_keeps_the_variance(schedule):
    t = interior_times(schedule)
    variance_rate = derivative(lambda t: schedule.sigma(t) ** 2, t)
    g2 = variance_rate - 2 * schedule.drift(t) * schedule.sigma(t) ** 2
    torch.testing.assert_close(schedule.diffusion(t) ** 2, g2, rtol=1e-9, atol=1e-12)


@every_schedule
def test_the_noise_level_increases_and_t_of_sigma_inverts_it(schedule):
    t = interior_times(schedule).sort().values
    alpha, sigma = schedule(t)
    ratio = sigma / alpha
    assert (ratio.diff() > 0).all()
    torch.testing.assert_close(schedule.t_of_sigma(ratio), t, rtol=1e-9, atol=1e-12)
    low, high = schedule.sigma_range
    ends = schedule.t_of_sigma(torch.tensor([low, high], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))


@every_schedule
def test_results_have_the_shape_and_dtype_of_t_and_float64_accuracy(schedule):
    t = interior_times(schedule, 6).reshape(2, 3).float()
    for function in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion):
        value = function(t)
        assert value.shape == (2, 3)
        assert torch.equal(value, function(t.double()).float())
    assert schedule.at(t[0, 0].item()) == tuple(v[0, 0].item() for v in schedule(t.double()))


@every_schedule
def test_the_ends_of_the_range_survive_rounding_to_float32(schedule):
    ends = torch.tensor([schedule.t_min, schedule.t_max])
    assert schedule.sigma(ends).isfinite().all()
    just_outside = torch.tensor(schedule.sigma_range, dtype=torch.float64) * torch.tensor(
        [1 - 1e-7, 1 + 1e-7]
    )
    torch.testing.assert_close(schedule.t_of_sigma(just_outside), ends.double())


@every_schedule
@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf])
def test_times_outside_the_range_are_refused(schedule, bad):
    t = torch.tensor([0.5, bad])
    for function in (schedule.alpha, schedule.sigma, schedule.drift, schedule.diffusion, schedule):
        with pytest.raises(ValueError, match=rf"t = .* is outside \[.*{type(schedule).__name__}"):
            function(t)


@every_schedule
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_noise_levels_outside_the_range_are_refused(schedule, factor):
    low, high = schedule.sigma_range
    bad = low * factor if factor < 1 else high * factor
    with pytest.raises(ValueError, match="noise level sigma/alpha"):
        schedule.t_of_sigma(torch.tensor([bad], dtype=torch.float64))


def test_ddpm_is_ho_et_al_at_every_step():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = DDPM()(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    np.testing.assert_allclose(alpha.numpy() ** 2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - alpha_bar, rtol=1e-9)
    assert DDPM().t_min == 1 / 1000


def test_ddpm_drift_at_a_step_is_that_of_its_own_beta():
    n = torch.arange(1, 1001)
    expected = 500 * torch.log1p(-DDPM().betas)
    for t in (n.double() / 1000, (n.float() / 1000).double()):  # also when the time was rounded
        assert torch.equal(DDPM().drift(t), expected)


def test_vp_has_the_exact_integral_of_beta():
    # int_0^1 beta = 0.1 + 19.9 / 2
    assert VP().at(1.0)[0] == pytest.approx(math.exp(-0.5 * (0.1 + 19.9 / 2)), rel=1e-14)
    assert VP().prior_std == pytest.approx(1, abs=3e-5)


def test_ve_interpolates_its_noise_levels_geometrically():
    schedule = VE(sigma_min=0.02, sigma_max=100.0)
    assert schedule.sigma_range == pytest.approx((0.02, 100.0), rel=1e-14)
    assert schedule.at(0.5) == pytest.approx((1.0, math.sqrt(0.02 * 100)), rel=1e-14)
    assert schedule.prior_std == pytest.approx(100.0, rel=1e-14)


def test_ve_power_has_the_published_standard_deviation_in_doubled_units():
    t = 0.37
    published = math.sqrt((5 ** (2 * t) - 1) / (2 * math.log(5)))
    assert VEPower(sigma=5.0, scale=2.0).at(t)[1] == pytest.approx(2 * published, rel=1e-14)
    g = VEPower(sigma=5.0, scale=2.0).diffusion(torch.tensor(t, dtype=torch.float64))
    assert g.item() == pytest.approx(2 * 5**t, rel=1e-14)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: VP(beta_min=2.0, beta_max=1.0), "beta_max=1"),
        (lambda: VP(t_min=1.0), "t_min=1"),
        (lambda: VP(beta_max=math.nan), "beta_max=nan"),
        (lambda: VE(sigma_min=2.0, sigma_max=1.0), "sigma_max=1"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
