"""The sub-VP, cosine and EDM schedules against their papers and the moments of their forward SDE."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from scoreexp.samplers import DiscreteGrid
from scoreexp.schedules import EDM, VP, Cosine, FlowMatching, SubVP, VariancePreserving

SCHEDULES = [SubVP(), SubVP(0.5, 0.5, 0.01), Cosine(), Cosine(0.1, 0.01, 0.9), EDM(), EDM(0.01, 5.0)]
SCHEDULES += [FlowMatching(t_max=0.999), FlowMatching(0.05, 0.9)]
names = [f"{type(s).__name__}{i}" for i, s in enumerate(SCHEDULES)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=names)


def interior_times(schedule, n=200):
    """Evenly spaced in the logarithm of the noise level from one end to the other."""
    low, high = (math.log(r) for r in schedule.sigma_range)
    ratios = torch.linspace(low, high, n + 2, dtype=torch.float64)[1:-1].exp()
    return schedule.t_of_sigma(ratios), ratios


@every_schedule
def test_the_forward_sde_has_the_marginals(schedule):
    # mean and variance of dx = a x dt + g dW from x_0 = 1, integrated from t_min without use of alpha and sigma
    def rates(t, moments):
        time = torch.tensor(t, dtype=torch.float64)
        a, g = schedule.drift(time).item(), schedule.diffusion(time).item()
        return [a * moments[0], 2 * a * moments[1] + g**2]

    t = interior_times(schedule, 9)[0]
    alpha, sigma = schedule.at(schedule.t_min)
    times = [schedule.t_min, t[-1].item()]
    solution = solve_ivp(rates, times, [alpha, sigma**2], "DOP853", t_eval=t.numpy(), rtol=1e-10, atol=1e-14)
    alpha, sigma = schedule(t)
    # local errors of 1e-10 add up over some hundred steps
    np.testing.assert_allclose(solution.y[0], alpha, rtol=1e-7)
    np.testing.assert_allclose(solution.y[1], sigma**2, rtol=1e-7)


def test_sub_vp_is_the_published_sde():
    schedule = SubVP()
    for t in (0.01, 0.2, 0.7, 1.0):
        beta = 0.1 + 19.9 * t
        integral = quad(lambda s: 0.1 + 19.9 * s, 0, t)[0]
        time = torch.tensor(t, dtype=torch.float64)
        assert schedule.at(t) == pytest.approx((math.exp(-integral / 2), 1 - math.exp(-integral)), rel=1e-10)
        assert schedule.drift(time).item() == pytest.approx(-beta / 2, rel=1e-12)
        g = math.sqrt(beta * (1 - math.exp(-2 * integral)))
        assert schedule.diffusion(time).item() == pytest.approx(g, rel=1e-10)


def test_sub_vp_has_less_noise_than_vp_and_becomes_it():
    t = torch.linspace(0.001, 1, 100, dtype=torch.float64)
    vp, sub_vp = VP(), SubVP()
    assert not isinstance(sub_vp, VariancePreserving)
    assert torch.equal(vp.alpha(t), sub_vp.alpha(t))
    torch.testing.assert_close(sub_vp.sigma(t), vp.sigma(t) ** 2, rtol=1e-12, atol=0)
    assert (sub_vp.alpha(t) ** 2 + sub_vp.sigma(t) ** 2 < 1).all()
    # the ratio of the variances is 1 - exp(-int beta), and int_0^1 beta = 10.05
    assert sub_vp.prior_std**2 / vp.prior_std**2 == pytest.approx(1 - math.exp(-10.05), rel=1e-12)
    end = torch.tensor(1.0, dtype=torch.float64)
    assert sub_vp.diffusion(end).item() == pytest.approx(vp.diffusion(end).item(), rel=1e-8)


def test_cosine_is_the_published_schedule_up_to_its_clipped_step():
    n = np.arange(1001)
    f = np.cos((n / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar, beta = f / f[0], 1 - f[1:] / f[:-1]
    assert (beta[:-1] < 0.999).all()
    assert beta[-1] > 0.999, "the reference clips the last step and no other"
    alpha, sigma = Cosine()(torch.from_numpy(n[1:-1] / 1000))
    # the reference formula itself loses digits where it is small
    np.testing.assert_allclose(alpha**2, alpha_bar[1:-1], rtol=1e-9)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar[1:-1], rtol=1e-9)
    assert Cosine().t_max == 0.999
    steps = DiscreteGrid(1000)(Cosine())
    assert (len(steps), steps[-1].item()) == (1000, Cosine().t_min), "DDPM's thousand steps fit"


def test_edm_time_is_the_noise_level():
    schedule = EDM()
    assert schedule.sigma_range == (0.002, 80.0)
    assert schedule.prior_std == 80.0
    assert schedule.at(3.7) == (1.0, 3.7)
    time = torch.tensor(8.0, dtype=torch.float64)
    assert schedule.diffusion(time).item() == 4.0
    assert schedule.drift(time).item() == 0.0


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: SubVP(beta_min=2.0, beta_max=1.0), "beta_max=1"),
        (lambda: SubVP(t_min=1.0), "t_min=1"),
        (lambda: EDM(sigma_min=2.0, sigma_max=1.0), "sigma_max=1"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
