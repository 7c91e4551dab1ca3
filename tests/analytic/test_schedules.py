"""Schedules against closed forms, and their four functions against each other by autograd."""

import math

import numpy as np
import pytest
import torch

from scoreexp.schedules import DDPM, VE, VP, VEPower


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
