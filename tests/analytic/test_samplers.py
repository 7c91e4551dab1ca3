"""Samplers against exact flows, exact moments and their papers' algorithms, by measured order."""

import math

import numpy as np
import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import Denoiser, DenoiserBase, OracleDenoiser
from scoreexp.denoisers.preconditioning import EpsPrediction
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.samplers import (
    DDIM,
    DDPM,
    DiscreteGrid,
    KarrasGrid,
    LogSNRGrid,
    QuadraticGrid,
    Sampler,
    UniformGrid,
    start_from_observation,
    start_from_prior,
)
from scoreexp.schedules import DDPM as DDPMSchedule
from scoreexp.schedules import VE, VP, ConstantNoise, FlowMatching, VEPower

SCHEDULES = [VP(), DDPMSchedule(), VE(), VEPower(sigma=25.0), FlowMatching()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
SAMPLERS = {
    "ddpm": lambda grid: DDPM(grid),
    "ddpm-beta": lambda grid: DDPM(grid, variance="beta"),
    "ddim": lambda grid: DDIM(grid),
    "ddim-eta": lambda grid: DDIM(grid, eta=0.7),
}
every_sampler = pytest.mark.parametrize("build", SAMPLERS.values(), ids=SAMPLERS.keys())

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)


def fitted_order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


class OneStream(ImageStreams):
    """One generator for a whole batch of draws: statistics need independence, not a seed per sample."""

    def __init__(self):
        super().__init__([])
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class Impulses(ImageStreams):
    """Noise of one: sample k receives 1 at draw k (draw 0 is the initial state) and 0 otherwise."""

    def __init__(self, n):
        super().__init__(range(n))
        self.draw = 0

    def normal(self, like):
        self.draw += 1
        noise = torch.zeros_like(like)
        noise[self.draw] = 1
        return noise


def exact_moments(sampler, schedule, mean, variance):
    """Mean and variance of the sampler's result for N(mean, variance) data and the exact marginal at t_max.

    Every step is affine in state and noise, so the result is its mean plus a sum of impulse responses.
    """
    data = torch.tensor([[mean], [variance]], dtype=torch.float64)
    model = OracleDenoiser(Gaussian(*data), schedule)
    n = len(sampler.grid(schedule)) + 2  # impulses at 0 .. N, and none at all
    alpha, sigma = schedule.at(schedule.t_max)
    x = torch.full((n, 1), alpha * mean, dtype=torch.float64)
    x[0] += math.sqrt(alpha**2 * variance + sigma**2)
    result = sampler(model, x, streams=Impulses(n)).x.squeeze(1)
    return result[-1].item(), ((result[:-1] - result[-1]) ** 2).sum().item()


@every_schedule
def test_ddim_converges_at_first_order_to_the_probability_flow(schedule):
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    x = schedule.prior_std * torch.tensor([[1.0, 0.5], [-0.7, 2.0]], dtype=torch.float64)
    # the exact flow of a Gaussian scales each principal coordinate with its marginal standard deviation
    (alpha_T, sigma_T), (alpha_0, sigma_0) = schedule.at(schedule.t_max), schedule.at(schedule.t_min)
    variances, basis = torch.linalg.eigh(COVARIANCE)
    scale = ((alpha_0**2 * variances + sigma_0**2) / (alpha_T**2 * variances + sigma_T**2)).sqrt()
    exact = alpha_0 * MEAN + ((x - alpha_T * MEAN) @ basis * scale) @ basis.T

    steps = [50, 100, 200, 400, 800]
    errors = []
    for n in steps:
        result = DDIM(LogSNRGrid(n), denoise_last=False)(model, x, streams=ImageStreams([0, 1]))
        assert result.nfe == n - 1
        errors.append((result.x - exact).norm().item())
    assert fitted_order([n - 1 for n in steps], errors) == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.02


@every_schedule
@pytest.mark.parametrize("build", [SAMPLERS[k] for k in ("ddpm", "ddpm-beta", "ddim-eta")])
def test_ancestral_sampling_has_weak_order_one(schedule, build):
    mean, variance, steps = 0.4, 0.3, [100, 200, 400, 800]
    errors = []
    for n in steps:
        sampler = build(LogSNRGrid(n))
        sampler.denoise_last = False
        m, v = exact_moments(sampler, schedule, mean, variance)
        alpha, sigma = schedule.at(schedule.t_min)
        errors.append((abs(m - alpha * mean), abs(v - (alpha**2 * variance + sigma**2))))
    mean_errors, variance_errors = zip(*errors, strict=True)
    # from alpha = 0 the range of the grid grows with log N
    tolerance = 0.15 if isinstance(schedule, FlowMatching) else 0.1
    assert fitted_order(steps, variance_errors) == pytest.approx(1, abs=tolerance)
    assert variance_errors[-1] < 0.02 * variance
    # the mean path starts on the marginal mean, where every step is exact
    assert max(mean_errors) < 1e-12


@every_schedule
def test_beta_tilde_is_exact_for_a_point_at_any_number_of_steps(schedule):
    sampler = DDPM(UniformGrid(4), denoise_last=False)
    m, v = exact_moments(sampler, schedule, 0.4, 0.0)
    alpha, sigma = schedule.at(schedule.t_min)
    assert m == pytest.approx(0.4 * alpha, abs=1e-12)
    assert v == pytest.approx(sigma**2, rel=1e-9)


@pytest.mark.parametrize("schedule", [VP(), DDPMSchedule()], ids=lambda s: type(s).__name__)
def test_beta_is_exact_for_standard_normal_data_at_any_number_of_steps(schedule):
    m, v = exact_moments(DDPM(UniformGrid(4), variance="beta", denoise_last=False), schedule, 0.0, 1.0)
    assert m == pytest.approx(0, abs=1e-12)
    assert v == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("variance", ["beta_tilde", "beta"])
def test_ddpm_is_ho_et_als_algorithm_2(variance):
    # written with the paper's betas and noise prediction, independently of alpha(t) and sigma(t)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), DDPMSchedule())
    oracle = Gaussian(MEAN, COVARIANCE)
    x_T = ImageStreams(range(4), "prior").normal(torch.empty(4, 2, dtype=torch.float64))

    streams, x = ImageStreams(range(4)), x_T
    for n in range(1000, 0, -1):
        beta, bar = betas[n - 1], alpha_bar[n - 1]
        previous = alpha_bar[n - 2] if n > 1 else torch.tensor(1.0)
        eps = -(1 - bar).sqrt() * oracle.score(x, bar.sqrt().expand(4), (1 - bar).sqrt().expand(4))
        x = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
        if n > 1:
            v = beta if variance == "beta" else (1 - previous) / (1 - bar) * beta
            x = x + v.sqrt() * streams.normal(x)

    result = DDPM(DiscreteGrid(1000), variance=variance)(model, x_T, streams=ImageStreams(range(4)))
    assert result.nfe == 1000
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-10)


@every_schedule
def test_ddim_with_full_noise_is_ancestral_sampling(schedule):
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    x = start_from_prior(model, (2,), ImageStreams([0, 1]), dtype=torch.float64)
    a = DDPM(KarrasGrid(20))(model, x, streams=ImageStreams([0, 1])).x
    b = DDIM(KarrasGrid(20), eta=1.0)(model, x, streams=ImageStreams([0, 1])).x
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_ddim_step_has_the_papers_noise(eta):
    # equation (16) in the paper's alpha, which is alpha^2 here; the noise enters a step of t = 0.6 -> 0.5
    model = OracleDenoiser(EmpiricalImages(torch.zeros(1, 1)), DDPMSchedule())
    now, before = (model.schedule.at(t)[0] ** 2 for t in (0.6, 0.5))
    sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
    streams = Impulses(2)  # sample 1 gets the noise, sample 0 none
    x, _ = DDIM(UniformGrid(2), eta=eta).step(
        model, torch.ones(2, 1, dtype=torch.float64), 0.6, 0.5, None, streams
    )
    assert (x[1] - x[0]).item() == pytest.approx(sigma, rel=1e-12)
    # the rest of the variance 1 - alpha_before is carried by the old noise
    old = 1 / math.sqrt(1 - now)
    assert x[0].item() == pytest.approx(math.sqrt(1 - before - sigma**2) * old, rel=1e-12)


def assert_moments(x, mean, covariance, bias=0.0):
    """Mean and covariance within 4.5 standard errors (7e-6 false alarms per figure) plus a known bias."""
    n = len(x)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((x.mean(0) - mean).abs() < bias + 4.5 * x.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - covariance).abs() < bias + 4.5 * products.std(0) / math.sqrt(n)).all()


def mixture():
    means = torch.tensor([[-0.8, 0.0], [0.6, 0.5]], dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7]), means, torch.tensor([0.02, 0.05])), means


@every_schedule
@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_a_mixture_is_reproduced(schedule, name):
    oracle, means = mixture()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    mean = weights @ means
    deviation = means - mean
    covariance = deviation.T @ (weights[:, None] * deviation) + (0.3 * 0.02 + 0.7 * 0.05) * torch.eye(2)

    n, streams = 4000, OneStream()
    model = OracleDenoiser(oracle, schedule)
    x = schedule.prior_std * streams.normal(torch.empty(n, 2, dtype=torch.float64))
    x = SAMPLERS[name](LogSNRGrid(200))(model, x, streams=streams).x
    # 200 steps leave an error of at most 0.016 in the Gaussian cases above
    assert_moments(x, mean, covariance, bias=0.02)
    share = ((x - means[0]).norm(dim=1) < (x - means[1]).norm(dim=1)).double().mean()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / n)


@every_schedule
@pytest.mark.parametrize("name", ["ddpm", "ddim-eta"])
def test_a_chain_from_an_observation_draws_from_the_posterior(schedule, name):
    y, sigma, n = torch.tensor([0.9, -1.0], dtype=torch.float64), 0.5, 4000
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2))
    mean, covariance = MEAN + gain @ (y - MEAN), COVARIANCE - gain @ COVARIANCE

    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    x, t_start = start_from_observation(schedule, y.expand(n, 2), sigma)
    sampler = DDPM(KarrasGrid(100)) if name == "ddpm" else DDIM(KarrasGrid(100), eta=1.0)
    result = sampler(model, x, streams=OneStream(), t_start=t_start)
    assert_moments(result.x, mean, covariance, bias=0.01)  # of 100 steps from a noise level of 0.5


@every_schedule
def test_one_step_from_an_observation_is_the_posterior_mean(schedule):
    y, sigma = torch.tensor([[0.9, -1.0]], dtype=torch.float64), 0.5
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2))
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    x, t_start = start_from_observation(schedule, y, sigma)
    result = DDIM(UniformGrid(1))(model, x, streams=ImageStreams([0]), t_start=t_start)
    assert result.nfe == 1
    torch.testing.assert_close(result.x[0], MEAN + gain @ (y[0] - MEAN))


ONE_LEVEL = ConstantNoise(0.4)


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(UniformGrid(2)),
        DDPM(UniformGrid(2), variance="beta"),
        DDIM(UniformGrid(2), eta=0.7),
        DDIM(UniformGrid(2), denoise_last=False),
    ],
    ids=["ddpm", "ddpm-beta", "ddim-eta", "ddim-not-denoised"],
)
def test_steps_between_equal_noise_levels_are_refused(sampler):
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), ONE_LEVEL)
    with pytest.raises(ValueError, match=r"ConstantNoise schedule has the same noise level 0\.4 .* choose"):
        sampler(model, torch.ones(1, 2, dtype=torch.float64), streams=ImageStreams([0]))


@pytest.mark.parametrize(
    "sampler",
    [DDIM(UniformGrid(1)), DDIM(UniformGrid(3)), DDPM(UniformGrid(1))],
    ids=["ddim-1", "ddim-3", "ddpm-1"],
)
def test_the_result_at_one_noise_level_is_the_posterior_mean(sampler):
    oracle, y = Gaussian(MEAN, COVARIANCE), torch.tensor([[0.6, -0.9]], dtype=torch.float64)
    x = sampler(OracleDenoiser(oracle, ONE_LEVEL), y, streams=ImageStreams([0])).x
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(x, oracle.posterior_mean(y, one, 0.4 * one))


@every_schedule
def test_an_observation_starts_at_its_own_noise_level(schedule):
    y = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x, t = start_from_observation(schedule, y, 0.3)
    alpha, sigma = schedule.at(t)
    assert sigma / alpha == pytest.approx(0.3, rel=1e-9)
    torch.testing.assert_close(x, alpha * y)
    low, high = schedule.sigma_range
    for bad in (0.0, -0.1, low / 2, high * 2, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"sigma=.* from {low / 2:.3g} to {high / 2:.3g}"):
            start_from_observation(schedule, y, bad)


def test_the_prior_has_the_schedules_standard_deviation_and_a_seed_names_a_sample():
    model = OracleDenoiser(EmpiricalImages(torch.zeros(1, 3, 8, 8)), VE())
    x = start_from_prior(model, (3, 8, 8), ImageStreams(range(50)))
    assert x.dtype == torch.float32
    # standard error of a standard deviation: std / sqrt(2 n)
    assert x.std().item() == pytest.approx(100, abs=4.5 * 100 / math.sqrt(2 * x.numel()))
    assert torch.equal(start_from_prior(model, (3, 8, 8), ImageStreams([7]))[0], x[7])


@every_schedule
@pytest.mark.parametrize(
    ("grid", "coordinate"),
    [
        (UniformGrid(9), lambda t, r: t),
        (QuadraticGrid(9), lambda t, r: t**0.5),
        (KarrasGrid(9, rho=7.0), lambda t, r: r ** (1 / 7)),
        (KarrasGrid(9, rho=1.0), lambda t, r: r),
        (LogSNRGrid(9), lambda t, r: r.log()),
    ],
)
def test_grids_are_even_in_their_coordinate(schedule, grid, coordinate):
    times = grid(schedule)
    times = times[schedule.alpha(times) > 0]
    alpha, sigma = schedule(times)
    gaps = coordinate(times, sigma / alpha).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-7, atol=1e-12)


def test_discrete_grid_is_the_papers_sequence():
    schedule = DDPMSchedule()
    torch.testing.assert_close(1000 * DiscreteGrid(1000)(schedule), torch.arange(1000.0, 0, -1).double())
    torch.testing.assert_close(
        1000 * DiscreteGrid(4)(schedule), torch.tensor([1000.0, 750, 500, 250]).double()
    )
    torch.testing.assert_close(
        1000 * DiscreteGrid(4)(schedule, t_start=0.6), torch.tensor([600.0, 500, 250]).double()
    )
    # a start on a step, up to rounding, is not visited twice
    torch.testing.assert_close(
        1000 * DiscreteGrid(4)(schedule, t_start=0.5 + 1e-12), torch.tensor([500.0, 250]).double()
    )
    torch.testing.assert_close(UniformGrid(1000)(schedule), DiscreteGrid(1000)(schedule))


def test_a_start_at_the_end_leaves_one_denoising_step():
    assert UniformGrid(10, t_end=0.3)(VP(), t_start=0.3).tolist() == [0.3]


class TwoPoint(OracleDenoiser):
    def __init__(self):
        super().__init__(EmpiricalImages(torch.tensor([[-1.0, 0.0], [1.0, 0.0]])), DDPMSchedule())


def test_kept_states_and_callback():
    calls = []
    model, streams = TwoPoint(), ImageStreams([0, 1])
    x = start_from_prior(model, (2,), streams)
    result = DDIM(UniformGrid(10))(
        model, x, streams=streams, keep=3, callback=lambda *args: calls.append(args)
    )
    assert [(i, n) for i, n, _, _ in calls] == [(i, 10) for i in range(1, 11)]
    assert result.nfe == 10
    assert torch.equal(result.trajectory[0], x)
    assert torch.equal(result.trajectory[1], calls[4][2])
    assert torch.equal(result.trajectory[2], result.x)
    assert torch.equal(result.x, calls[-1][3])  # the end of the chain is the last posterior mean
    grid = UniformGrid(10)(model.schedule)
    torch.testing.assert_close(result.times, torch.tensor([grid[0], grid[5], 0.0], dtype=torch.float64))
    # the posterior mean handed over belongs to the state before the step
    torch.testing.assert_close(calls[0][3], model(x, torch.ones(2, dtype=torch.float64)))


def test_without_the_last_denoising_the_state_at_the_end_is_returned():
    model = TwoPoint()
    result = DDPM(UniformGrid(10), denoise_last=False)(
        model, torch.ones(1, 2), streams=ImageStreams([0]), keep=2
    )
    assert result.nfe == 9
    assert result.times[-1] == model.schedule.t_min


class Affine(torch.nn.Module):
    """A network with a parameter; turns to NaN at small noise levels if asked."""

    def __init__(self, nan_below):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.nan_below = nan_below

    def forward(self, x, c_noise, cond=None):
        return torch.where((c_noise < self.nan_below)[:, None], torch.nan, self.weight * x)


@every_sampler
def test_a_state_that_is_not_finite_is_reported_where_it_arises(build):
    model = Denoiser(Affine(nan_below=0.0), EpsPrediction(), VP())
    grid = UniformGrid(11)(VP())
    alpha, sigma = VP()(grid)
    first = int((sigma / alpha < 1).nonzero()[0])  # c_noise < 0
    with pytest.raises(FloatingPointError, match=rf"step {first + 1} of 11, from t = {grid[first]:.6g}"):
        build(UniformGrid(11))(model, torch.ones(1, 2), streams=ImageStreams([0]))


def test_a_sampler_with_memory_is_one_class():
    class Momentum(Sampler):
        def init_state(self, model, x, times):
            return [len(times)]

        def step(self, model, x_t, t, s, state, streams):
            return model(x_t, torch.full((len(x_t),), t)), [*state, s]

    seen = []

    class Spy(Momentum):
        def step(self, *args):
            out = super().step(*args)
            seen.append(out[1])
            return out

    model = TwoPoint()
    Spy(UniformGrid(4))(model, torch.ones(1, 2), streams=ImageStreams([0]))
    assert seen[-1] == [4, *UniformGrid(4)(model.schedule)[1:].tolist()]
    assert isinstance(model, DenoiserBase)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DiscreteGrid(300), "steps=300 does not divide total_steps=1000"),
        (lambda: DiscreteGrid(2000, 2000)(DDPMSchedule()), "outside"),
        (lambda: UniformGrid(10, t_end=0.5)(VP(), t_start=0.4), "t_start=0.4, t_end=0.5"),
        (lambda: UniformGrid(10, t_end=0.0)(VP()), "t_end=0"),
        (lambda: UniformGrid(10)(VP(), t_start=1.5), "t_start=1.5"),
        (
            lambda: DDIM(UniformGrid(2))(TwoPoint(), torch.ones(1, 2), streams=ImageStreams([0]), keep=-1),
            "keep=-1",
        ),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
