"""Every parameterisation is the same denoiser, and every conversion is invertible."""

import pytest
import torch
from torch import nn

from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import (
    Denoiser,
    OracleDenoiser,
    eps_from_x0,
    score_from_x0,
    v_from_x0,
    x0_from_eps,
    x0_from_score,
    x0_from_v,
)
from scoreexp.denoisers.preconditioning import (
    EDMPrediction,
    EpsPrediction,
    ScorePrediction,
    VPrediction,
    X0Prediction,
)
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.schedules import DDPM, VE, VP

PRECONDITIONINGS = [EpsPrediction(), ScorePrediction(), X0Prediction(), VPrediction(), EDMPrediction(0.5)]
SCHEDULES = [VP(), DDPM(), VE()]
every_preconditioning = pytest.mark.parametrize("precond", PRECONDITIONINGS, ids=lambda p: type(p).__name__)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def times(schedule, n=16):
    return torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)


def mixture(event_shape=(2,)):
    g = torch.Generator().manual_seed(1)
    means = torch.randn(3, *event_shape, generator=g, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.2, 0.3]), means, torch.tensor([0.1, 0.3, 0.02]))


def what_the_network_stands_for(precond, x0, x_t, alpha, sigma):
    """The targets as their papers define them."""
    eps = (x_t - alpha * x0) / sigma
    if isinstance(precond, EpsPrediction):
        return eps
    if isinstance(precond, ScorePrediction):
        return sigma * (alpha * x0 - x_t) / sigma**2
    if isinstance(precond, X0Prediction):
        return x0
    if isinstance(precond, VPrediction):
        return (alpha * eps - sigma * x0) / (alpha**2 + sigma**2).sqrt()
    # Karras et al. for data + noise of level r
    r, noisy, d = sigma / alpha, x_t / alpha, precond.sigma_data
    return (x0 - d**2 / (r**2 + d**2) * noisy) * (r**2 + d**2).sqrt() / (r * d)


class ExactNetwork(nn.Module):
    """Predicts exactly what a preconditioning asks for, for one x_t and t, and checks what it is given."""

    def __init__(self, precond, oracle, x_t, alpha, sigma):
        super().__init__()
        self.event_shape = oracle.event_shape
        x0 = oracle.posterior_mean(x_t, alpha, sigma)
        a, s = expand_to(alpha, x_t), expand_to(sigma, x_t)
        self.output = what_the_network_stands_for(precond, x0, x_t, a, s)
        scale = getattr(precond, "sigma_data", 1.0)
        self.input = x_t / (scale**2 * a**2 + s**2).sqrt()
        self.c_noise = (sigma / alpha).log() / 4

    def forward(self, x, c_noise, cond=None):
        torch.testing.assert_close(x, self.input)
        torch.testing.assert_close(c_noise, self.c_noise)
        return self.output


@every_preconditioning
@every_schedule
@pytest.mark.parametrize("event_shape", [(2,), (3, 4, 4)])
def test_the_denoising_identity(precond, schedule, event_shape):
    oracle, t = mixture(event_shape), times(schedule)
    alpha, sigma = schedule(t)
    z = torch.randn(16, *event_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t = expand_to((alpha**2 + sigma**2).sqrt(), z) * z
    model = Denoiser(ExactNetwork(precond, oracle, x_t, alpha, sigma), precond, schedule)
    exact = OracleDenoiser(oracle, schedule)
    # x0 = (x_t - sigma eps)/alpha loses up to sigma/alpha ~ 160 in relative accuracy; scores carry 1/sigma^2
    torch.testing.assert_close(model(x_t, t), exact(x_t, t), rtol=1e-11, atol=1e-11)
    for name in ("score", "eps", "v"):
        ours, theirs = getattr(model, name)(x_t, t), getattr(exact, name)(x_t, t)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.score(x_t, t), oracle.score(x_t, alpha, sigma), rtol=1e-9, atol=1e-9)
    assert model.event_shape == exact.event_shape == event_shape


@every_preconditioning
def test_input_and_edm_output_have_unit_variance(precond):
    scale = getattr(precond, "sigma_data", 1.0)
    for schedule in SCHEDULES:
        alpha, sigma = schedule(times(schedule))
        c = precond(alpha, sigma)
        variance = alpha**2 * scale**2 + sigma**2
        torch.testing.assert_close(c.c_in**2 * variance, torch.ones_like(alpha))
        if isinstance(precond, EDMPrediction):
            # variance of (x_0 - c_skip x_t) / c_out for data of variance scale^2
            residual = (1 - c.c_skip * alpha) ** 2 * scale**2 + (c.c_skip * sigma) ** 2
            torch.testing.assert_close(residual / c.c_out**2, torch.ones_like(alpha))


def test_ddpm_network_input_is_x_t_itself():
    c = EpsPrediction()(*DDPM()(times(DDPM())))
    torch.testing.assert_close(c.c_in, torch.ones_like(c.c_in), rtol=0, atol=1e-14)


@every_schedule
@pytest.mark.parametrize(
    ("there", "back"),
    [(eps_from_x0, x0_from_eps), (score_from_x0, x0_from_score), (v_from_x0, x0_from_v)],
)
def test_conversions_round_trip(schedule, there, back):
    g = torch.Generator().manual_seed(3)
    x0, eps = torch.randn(2, 16, 3, 4, 4, generator=g, dtype=torch.float64)
    alpha, sigma = (expand_to(c, x0) for c in schedule(times(schedule)))
    x_t = alpha * x0 + sigma * eps
    torch.testing.assert_close(back(there(x0, x_t, alpha, sigma), x_t, alpha, sigma), x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(eps_from_x0(x0, x_t, alpha, sigma), eps, rtol=0, atol=1e-9)
    torch.testing.assert_close(score_from_x0(x0, x_t, alpha, sigma), -eps / sigma, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        v_from_x0(x0, x_t, alpha, sigma), alpha * eps - sigma * x0, rtol=1e-9, atol=1e-9
    )


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.seen = None

    def forward(self, x, c_noise, cond=None):
        self.seen = (x, c_noise, cond)
        return self.layer(x)


def test_only_the_network_has_a_state():
    model = Denoiser(Recorder(), VPrediction(), DDPM())
    assert set(model.state_dict()) == {"network.layer.weight", "network.layer.bias"}


def test_classes_reach_the_network_and_dtypes_stay():
    model, cond = Denoiser(Recorder(), VPrediction(), DDPM()), torch.tensor([3, 1])
    out = model(torch.randn(2, 2), torch.tensor([0.1, 0.9], dtype=torch.float64), cond)
    x, c_noise, seen = model.network.seen
    assert seen is cond
    assert c_noise.shape == (2,)
    assert x.dtype == c_noise.dtype == out.dtype == torch.float32


def test_an_oracle_has_no_classes():
    model = OracleDenoiser(mixture(), VP())
    with pytest.raises(ValueError, match="cond=None"):
        model(torch.zeros(1, 2), torch.tensor([0.5]), torch.tensor([0]))
