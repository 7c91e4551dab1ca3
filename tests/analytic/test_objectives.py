"""Objectives against the published losses and the exact minimiser; time laws and their distributions."""

import math

import pytest
import torch
from scipy import stats

from scoreexp.core.batch import Batch
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.denoisers.denoiser import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import (
    DenoisingScoreMatching,
    DiscreteTime,
    EDMWeighting,
    EpsWeighting,
    LogNormalNoise,
    LogUniformNoise,
    MinSNR,
    ScoreWeighting,
    UniformTime,
    VWeighting,
    X0Weighting,
)
from scoreexp.schedules import DDPM, VE, VP

WEIGHTINGS = [
    EpsWeighting(),
    X0Weighting(),
    VWeighting(),
    ScoreWeighting(),
    ScoreWeighting(power=0.0),
    EDMWeighting(0.5),
    MinSNR(5.0),
]
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: type(w).__name__)
every_schedule = pytest.mark.parametrize("schedule", [VP(), DDPM(), VE()], ids=lambda s: type(s).__name__)


class LinearDenoiser(DenoiserBase):
    """``x0_hat = features(x_t, t) . theta``: a family with the exact denoiser of a Gaussian inside."""

    event_shape = (2,)

    def __init__(self, theta, variances, schedule):
        self.theta, self.variances, self.schedule = theta, variances, schedule

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = self._scales(x_t, t)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        one = torch.ones_like(x_t)
        features = torch.stack([gain * x_t, gain * alpha * one, one, x_t, sigma * one], -1)
        return features @ self.theta


@every_weighting
def test_the_minimiser_on_a_gaussian_is_the_posterior_mean(weighting):
    # mu + gain (x_t - alpha mu), the same mu in both entries: theta = (1, -mu, mu, 0, 0)
    mu, variances = 0.4, torch.tensor([0.3, 0.05], dtype=torch.float64)
    schedule, n = VP(), 20_000
    g = torch.Generator().manual_seed(0)
    x = Gaussian(torch.full((2,), mu), variances).sample(n, g)
    t = LogNormalNoise(-0.5, 0.8).sample(n, schedule, g)
    noise = torch.randn(n, 2, generator=g, dtype=torch.float64)
    objective = DenoisingScoreMatching(weighting)

    def losses(theta):
        return objective(LinearDenoiser(theta, variances, schedule), Batch(x=x), t, noise)

    # the loss is quadratic in theta, so central differences are its exact gradients, per sample
    unit = torch.eye(5, dtype=torch.float64)

    def gradients(theta):
        return torch.stack([(losses(theta + e) - losses(theta - e)) / 2 for e in unit], 1)

    zero = gradients(0 * unit[0])
    hessian = torch.stack([(gradients(e) - zero).mean(0) for e in unit])
    theta = -torch.linalg.solve(hessian, zero.mean(0))
    # covariance of an M-estimator ("sandwich")
    half = torch.linalg.solve(hessian, gradients(theta).T)
    covariance = half @ half.T / n**2
    error = theta - torch.tensor([1.0, -mu, mu, 0.0, 0.0], dtype=torch.float64)
    wald = error @ torch.linalg.solve(covariance, error)
    assert wald < stats.chi2.ppf(0.9999, df=5)
    # the estimate is sharp enough for the test to mean something
    assert covariance[0, 0].sqrt() < 0.1


@every_schedule
def test_weightings_are_the_published_losses(schedule):
    n, shape = 12, (3, 4, 4)
    g = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, n, *shape, generator=g, dtype=torch.float64)
    t = torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)
    model = OracleDenoiser(Gaussian(torch.zeros(shape), torch.full(shape, 0.3)), schedule)
    alpha, sigma = (expand_to(c, x) for c in schedule(t))
    x_t = alpha * x + sigma * noise

    def loss(weighting):
        return DenoisingScoreMatching(weighting)(model, Batch(x=x), t, noise)

    def check(weighting, error):
        torch.testing.assert_close(loss(weighting), mean_per_sample(error**2), rtol=1e-7, atol=1e-9)

    check(EpsWeighting(), model.eps(x_t, t) - noise)
    check(X0Weighting(), model(x_t, t) - x)
    norm = (alpha**2 + sigma**2).sqrt()
    check(VWeighting(), (model.v(x_t, t) - (alpha * noise - sigma * x)) / norm)
    score_error = model.score(x_t, t) + noise / sigma
    check(ScoreWeighting(), sigma * score_error)
    check(ScoreWeighting(power=0.0), score_error)
    check(ScoreWeighting(power=3.0), sigma**1.5 * score_error)
    r, d = sigma / alpha, 0.5
    check(EDMWeighting(d), (model(x_t, t) - x) * (r**2 + d**2).sqrt() / (r * d))
    clipped = torch.minimum(loss(EpsWeighting()), 5 * loss(X0Weighting()))
    torch.testing.assert_close(loss(MinSNR(5.0)), clipped)


def test_the_simple_loss_of_a_model_that_predicts_zero_noise_is_one():
    # eps_hat = 0 means x0_hat = x_t / alpha; the loss is mean(noise^2) whatever the data and the time
    class NoNoise(DenoiserBase):
        schedule, event_shape = DDPM(), None

        def __call__(self, x_t, t, cond=None):
            return x_t / self._scales(x_t, t)[0]

    g = torch.Generator().manual_seed(2)
    x, noise = torch.randn(2, 8, 3, 4, 4, generator=g)
    t = DiscreteTime(1000).sample(8, DDPM(), g)
    loss = DenoisingScoreMatching(EpsWeighting())(NoNoise(), Batch(x=x), t, noise)
    assert loss.dtype == torch.float32
    # float32: cancellation x_t/alpha - x at sigma/alpha >= 0.01 loses two of seven digits
    torch.testing.assert_close(loss, mean_per_sample(noise**2), rtol=1e-4, atol=0)


def test_labels_reach_the_model():
    class Labelled(DenoiserBase):
        schedule, event_shape = VP(), (2,)

        def __call__(self, x_t, t, cond=None):
            return cond[:, None].to(x_t)

    batch = Batch(x=torch.zeros(3, 2), cond=torch.tensor([0, 1, 2]))
    loss = DenoisingScoreMatching(X0Weighting())(Labelled(), batch, torch.full((3,), 0.5), torch.zeros(3, 2))
    assert loss.tolist() == [0, 1, 4]


def test_missing_clean_data_and_mismatched_noise_are_refused():
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    objective, t = DenoisingScoreMatching(EpsWeighting()), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match="no clean data"):
        objective(model, Batch(y=torch.zeros(3, 2)), t, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"noise of shape \(3, 1\)"):
        objective(model, Batch(x=torch.zeros(3, 2)), t, torch.zeros(3, 1))


N = 5000


@pytest.mark.parametrize("schedule", [VP(t_min=0.1), DDPM(steps=10), VE()], ids=lambda s: type(s).__name__)
def test_uniform_time(schedule):
    t = UniformTime().sample(N, schedule, torch.Generator().manual_seed(0))
    width = schedule.t_max - schedule.t_min
    assert stats.kstest(t.numpy(), stats.uniform(schedule.t_min, width).cdf).pvalue > 1e-3


def test_log_normal_noise():
    t = LogNormalNoise(-0.3, 0.7).sample(N, VE(), torch.Generator().manual_seed(0))
    alpha, sigma = VE()(t)
    assert stats.kstest((sigma / alpha).log().numpy(), stats.norm(-0.3, 0.7).cdf).pvalue > 1e-3


@every_schedule
@pytest.mark.parametrize(("mean", "end"), [(-30.0, "t_min"), (30.0, "t_max")])
def test_log_normal_noise_is_clipped_into_the_range(schedule, mean, end):
    t = LogNormalNoise(mean, 0.1).sample(4, schedule, torch.Generator().manual_seed(0))
    torch.testing.assert_close(t, torch.full_like(t, getattr(schedule, end)))
    schedule(t)


def test_log_uniform_noise():
    schedule = VP()
    t = LogUniformNoise().sample(N, schedule, torch.Generator().manual_seed(0))
    alpha, sigma = schedule(t)
    low, high = (math.log(ratio) for ratio in schedule.sigma_range)
    assert stats.kstest((sigma / alpha).log().numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_discrete_time_draws_every_step_equally_often():
    t = DiscreteTime(10).sample(N, VP(), torch.Generator().manual_seed(0))
    steps, counts = (10 * t).round().unique(return_counts=True)
    assert steps.tolist() == list(range(1, 11))
    assert torch.equal(t, (10 * t).round() / 10)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_discrete_time_of_ddpm_hits_its_steps():
    t = DiscreteTime(1000).sample(N, DDPM(), torch.Generator().manual_seed(0))
    assert t.min() >= DDPM().t_min
    assert DDPM().alpha(t).isfinite().all()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DiscreteTime(2000).sample(1, DDPM(), torch.Generator()), "at most 1000"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
