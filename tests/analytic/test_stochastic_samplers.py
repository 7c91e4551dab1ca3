"""Euler-Maruyama, multistep solvers of the SDE, predictor-corrector and Langevin against exact moments of Gaussian data.

For Gaussian data a step of fixed size is affine in state and noise, so a chain's result is its mean plus a sum
of responses to single noise values: its mean and covariance follow exactly from one run of impulses. What has a
noise-dependent step (the corrector) is sampled, with confidence bounds.
"""

import math

import numpy as np
import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.samplers import (
    AnnealedLangevin,
    ConstantGrid,
    DiscreteGrid,
    EulerMaruyama,
    KarrasGrid,
    Langevin,
    LogSNRGrid,
    PredictorCorrector,
    QuadraticGrid,
    SASolver,
    SDEDPMSolverPP,
    UniformGrid,
    start_from_observation,
    start_from_prior,
)
from scoreexp.schedules import DDPM as DDPMSchedule
from scoreexp.schedules import VE, VP, ConstantNoise, FlowMatching, VEPower

PREDICTORS = {
    "euler_maruyama": lambda grid: EulerMaruyama(grid, denoise_last=False),
    "reverse_diffusion": lambda grid: PredictorCorrector(grid, corrections=0, denoise_last=False),
}
MULTISTEP = {
    "sde_dpm_solver_pp": lambda grid: SDEDPMSolverPP(grid, denoise_last=False),
    "sa_solver-0.5-1": lambda grid: SASolver(grid, 0.5, 1, denoise_last=False),
    "sa_solver-1-1": lambda grid: SASolver(grid, 1.0, 1, denoise_last=False),
    "sa_solver-1-2": lambda grid: SASolver(grid, 1.0, 2, denoise_last=False),
    "sa_solver-1.5-3": lambda grid: SASolver(grid, 1.5, 3, denoise_last=False),
}
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
EYE = torch.eye(2, dtype=torch.float64)


class Impulses(ImageStreams):
    """Noise of one: sample 2n + d receives 1 in coordinate d at draw n, every other sample 0."""

    def __init__(self, n):
        super().__init__(range(n))
        self.draw = 0

    def normal(self, like):
        noise = torch.zeros_like(like)
        noise[2 * self.draw : 2 * self.draw + 2] = EYE
        self.draw += 1
        return noise


class OneStream(ImageStreams):
    """One generator for a whole batch of draws: statistics need independence, not a seed per sample."""

    def __init__(self):
        super().__init__([])
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def marginal(schedule, t):
    """Mean and covariance of x_t."""
    alpha, sigma = schedule.at(t)
    return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * EYE


def exact_moments(sampler, schedule, draws, mean=None, covariance=None):
    """Mean and covariance of the sampler's result from N(mean, covariance), by default the marginal at t_max."""
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    exact = marginal(schedule, schedule.t_max)
    mean, covariance = exact[0] if mean is None else mean, exact[1] if covariance is None else covariance
    streams = Impulses(2 * draws + 3)  # after the noise: two impulses of the initial state, and the mean
    x = mean.repeat(len(streams), 1)
    x[-3:-1] += torch.linalg.cholesky(covariance).T
    result = sampler(model, x, streams=streams).x
    assert streams.draw == draws
    responses = result[:-1] - result[-1]
    return result[-1], responses.T @ responses


def fitted_order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def assert_moments(x, mean, covariance, bias=0.0):
    """Mean and covariance within 4.5 standard errors (7e-6 false alarms per figure) plus a known bias."""
    n = len(x)
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((x.mean(0) - mean).abs() < bias + 4.5 * x.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - covariance).abs() < bias + 4.5 * products.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize(
    "schedule",
    [VP(), VE(sigma_min=0.1, sigma_max=10.0), VEPower(sigma=25.0), FlowMatching()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("build", PREDICTORS.values(), ids=PREDICTORS.keys())
def test_reverse_equations_have_weak_order_one(schedule, build):
    mean, covariance = marginal(schedule, schedule.t_min)
    steps, mean_errors, covariance_errors = [50, 100, 200, 400], [], []
    for n in steps:
        # not evenly in time: on VE the leading errors of such Euler steps nearly cancel, which hides the order
        m, c = exact_moments(build(QuadraticGrid(n + 1)), schedule, n)
        mean_errors.append((m - mean).norm().item())
        covariance_errors.append((c - covariance).norm().item())
    assert fitted_order(steps, covariance_errors) == pytest.approx(1, abs=0.15)
    assert covariance_errors[-1] < 0.02
    euler_on_a_line = isinstance(schedule, FlowMatching) and build is PREDICTORS["euler_maruyama"]
    if schedule.at(schedule.t_max)[0] < 1 and not euler_on_a_line:
        assert fitted_order(steps, mean_errors) == pytest.approx(1, abs=0.15)
        assert mean_errors[-1] < 0.01
    else:  # without drift, or with alpha linear in t, the mean path starts on the marginal mean and every step is exact
        assert max(mean_errors) < 1e-12


@pytest.mark.parametrize(
    "schedule", [VP(), VE(sigma_min=0.1, sigma_max=10.0), VEPower(sigma=25.0)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_of_the_reverse_equation_have_weak_order_two(schedule, name):
    mean, covariance = marginal(schedule, schedule.t_min)
    steps, mean_errors, covariance_errors = [50, 100, 200, 400], [], []
    for n in steps:
        m, c = exact_moments(MULTISTEP[name](LogSNRGrid(n + 1)), schedule, n)
        mean_errors.append((m - mean).norm().item())
        covariance_errors.append((c - covariance).norm().item())
    # polynomials of two predictions begin with a faster decay, of order 3 without noise
    assert fitted_order(steps, covariance_errors) == pytest.approx(2, abs=0.5 if name.endswith("2") else 0.15)
    assert covariance_errors[-1] < 2e-3
    # the mean path starts on the marginal mean, where every step is exact
    assert max(mean_errors) < 1e-12


@pytest.mark.parametrize("name", ["sde_dpm_solver_pp", "sa_solver-1-2"])
def test_multistep_solvers_of_the_reverse_equation_reproduce_a_mixture(name):
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-0.8, 0.0], [0.6, 0.5]], dtype=torch.float64)
    oracle = GaussianMixture(weights, means, torch.tensor([0.02, 0.05]))
    mean = weights @ means
    covariance = (means - mean).T @ (weights[:, None] * (means - mean)) + (0.3 * 0.02 + 0.7 * 0.05) * EYE
    n, streams = 4000, OneStream()
    x = streams.normal(torch.empty(n, 2, dtype=torch.float64))
    x = MULTISTEP[name](LogSNRGrid(60))(OracleDenoiser(oracle, VP()), x, streams=streams).x
    # 60 steps leave a hundredth in the Gaussian cases above
    assert_moments(x, mean, covariance, bias=0.01)
    share = ((x - means[0]).norm(dim=1) < (x - means[1]).norm(dim=1)).double().mean()
    assert abs(share - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / n)


def test_euler_maruyama_from_an_observation_draws_from_the_posterior():
    y, sigma, n = torch.tensor([0.9, -1.0], dtype=torch.float64), 0.5, 4000
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * EYE)
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), VP())
    x, t_start = start_from_observation(VP(), y.expand(n, 2), sigma)
    x = EulerMaruyama(KarrasGrid(100))(model, x, streams=OneStream(), t_start=t_start).x
    # 100 steps from a noise level of 0.5
    assert_moments(x, MEAN + gain @ (y - MEAN), COVARIANCE - gain @ COVARIANCE, bias=0.01)


def test_the_euler_predictor_is_euler_maruyama():
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), VP())
    x = start_from_prior(model, (2,), ImageStreams([0, 1]), dtype=torch.float64)
    a = EulerMaruyama(UniformGrid(20))(model, x, streams=ImageStreams([0, 1])).x
    b = PredictorCorrector(UniformGrid(20), "euler", corrections=0)(model, x, streams=ImageStreams([0, 1])).x
    assert torch.equal(a, b)


def test_euler_maruyama_refuses_a_schedule_whose_noise_does_not_fall():
    model = OracleDenoiser(EmpiricalImages(torch.zeros(1, 2)), ConstantNoise(0.2))
    with pytest.raises(ValueError, match=r"same noise level 0\.2 at different times"):
        EulerMaruyama(UniformGrid(5))(model, torch.ones(1, 2), streams=ImageStreams([0]))


def test_predictor_corrector_is_song_et_als_algorithms_3_and_5():
    # written with the paper's betas, its reverse diffusion predictor and its corrector
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha_bar = (1 - betas).cumprod(0)
    oracle, r = Gaussian(MEAN, COVARIANCE), 0.2

    def score(x, n):
        return oracle.score(x, alpha_bar[n - 1].sqrt().expand(2), (1 - alpha_bar[n - 1]).sqrt().expand(2))

    start, streams = torch.tensor([[0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64), ImageStreams([3, 4])
    x = start
    for n in range(40, 1, -1):
        beta = betas[n - 1]
        x = (2 - (1 - beta).sqrt()) * x + beta * score(x, n) + beta.sqrt() * streams.normal(x)
        for _ in range(2):
            z, g = streams.normal(x), score(x, n - 1)
            epsilon = 2 * (r * z.norm(dim=1, keepdim=True) / g.norm(dim=1, keepdim=True)) ** 2
            x = x + epsilon * g + (2 * epsilon).sqrt() * z

    grid = DiscreteGrid(1000)
    states = {}
    PredictorCorrector(grid, corrections=2, snr=r)(
        OracleDenoiser(oracle, DDPMSchedule()),
        start,
        streams=ImageStreams([3, 4]),
        t_start=0.04,
        callback=lambda i, n, x, x0_hat: states.update({i: x}),
    )
    torch.testing.assert_close(states[39], x, rtol=0, atol=1e-9)


def test_the_corrector_is_stationary_at_its_known_variance():
    r, w = 0.3, torch.tensor([0.15, 0.6], dtype=torch.float64)
    # A step epsilon has the stationary variance v = w / (1 - epsilon / (2 w)) in each coordinate; in many dimensions
    # |z|^2 and |score|^2 are their means, so that epsilon = 2 r^2 / mean(v / w^2).
    epsilon = 0.0
    for _ in range(100):
        v = w / (1 - epsilon / (2 * w))
        epsilon = 2 * r**2 / (v / w**2).mean().item()
    dimensions, n = 1000, 60
    mean = torch.linspace(-1, 1, dimensions, dtype=torch.float64)
    schedule = ConstantNoise(0.2)
    model = OracleDenoiser(Gaussian(mean, (w - 0.04).repeat(dimensions // 2)), schedule)
    sampler = PredictorCorrector(
        UniformGrid(61), snr=r, denoise_last=False
    )  # constant noise: nothing to predict
    x = sampler(model, torch.zeros(n, dimensions, dtype=torch.float64), streams=OneStream()).x - mean
    draws = n * dimensions // 2
    for k in range(2):
        values = x[:, k::2]
        assert abs(values.mean().item()) < 4.5 * math.sqrt(v[k] / draws)
        # relative: fluctuations of the norms are of order 1 / dimensions, the standard error is sqrt(2 / draws)
        assert (values.var() / v[k]).item() == pytest.approx(
            1, abs=4 / dimensions + 4.5 * math.sqrt(2 / draws)
        )
    assert (v / w).max() > 1.1, "the bias of the corrector is what is being tested"


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "euler"])
def test_predictor_corrector_reproduces_a_gaussian(predictor):
    dimensions, n, variance = 400, 60, 0.3
    mean = torch.linspace(-1, 1, dimensions, dtype=torch.float64)
    model = OracleDenoiser(Gaussian(mean, torch.full((dimensions,), variance)), VP())
    sampler = PredictorCorrector(UniformGrid(100), predictor, snr=0.1)
    x = OneStream().normal(torch.empty(n, dimensions, dtype=torch.float64))
    x = sampler(model, x, streams=OneStream()).x - mean
    # biases: 1 % of r^2, at most 2 % of the predictor's 100 steps
    assert abs(x.mean().item()) < 0.01 + 4.5 * math.sqrt(variance / x.numel())
    assert abs(x.var().item() / variance - 1) < 0.03 + 4.5 * math.sqrt(2 / x.numel())


@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_langevin_is_stationary_at_its_known_covariance(noise):
    schedule, eta = ConstantNoise(0.5), 0.2
    w, basis = torch.linalg.eigh(marginal(schedule, 1.0)[1])
    stationary = basis @ torch.diag(noise**2 * w / (1 - eta / (2 * w))) @ basis.T
    # exactly, from elsewhere: the slowest direction keeps (1 - 0.2 / 0.88)^120 = 4e-14 of its start
    sampler = Langevin(ConstantGrid(120), eta, noise)
    mean, covariance = exact_moments(sampler, schedule, 120, torch.full((2,), 3.0).double(), 4 * EYE)
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=1e-12)
    torch.testing.assert_close(covariance, stationary, rtol=0, atol=1e-12)
    # and with drawn noise
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), schedule)
    x = Langevin(ConstantGrid(60), eta, noise)(
        model, torch.zeros(4000, 2, dtype=torch.float64), streams=OneStream()
    ).x
    assert_moments(x, MEAN, stationary)


def test_langevin_in_the_published_units():
    # the published iteration on [0, 1]: x <- clamp(x + eta s + sqrt(2 eta) kappa xi, 0, 1), sigma 0.1
    eta, kappa = 1e-3, 0.1
    oracle = Gaussian(torch.full((3, 4, 4), 0.6), torch.full((3, 4, 4), 0.03))
    y = torch.linspace(-0.2, 1.2, 48, dtype=torch.float64).reshape(1, 3, 4, 4)
    x, streams, one = y, ImageStreams([5]), torch.ones(1)
    for _ in range(30):
        x = x + eta * oracle.score(x, one, 0.1 * one) + math.sqrt(2 * eta) * kappa * streams.normal(x)
        x = x.clamp(0, 1)
    schedule = ConstantNoise(0.2)
    inside = OracleDenoiser(Gaussian(torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.12)), schedule)
    sampler = Langevin(ConstantGrid(30), 4 * eta, kappa, clamp=True)
    start, t = sampler.start(schedule, 2 * y - 1, 0.2)
    result = sampler(inside, start, streams=ImageStreams([5]), t_start=t)
    assert result.nfe == 30
    torch.testing.assert_close(
        (result.x + 1) / 2, x, rtol=0, atol=1e-6
    )  # the oracle's parameters are float32


def test_annealed_langevin_is_song_and_ermons_algorithm_1():
    # with the paper's alpha_i = epsilon sigma_i^2 / sigma_L^2, from its second level on
    sigmas, epsilon, updates = np.geomspace(1, 0.01, 10), 2e-5, 7
    oracle, streams = Gaussian(MEAN, COVARIANCE), ImageStreams([0, 1])
    x = start = torch.tensor([[0.5, 1.0], [-1.0, 0.2]], dtype=torch.float64)
    for sigma in sigmas[1:]:
        alpha = epsilon * sigma**2 / sigmas[-1] ** 2
        for _ in range(updates):
            score = oracle.score(x, torch.ones(2), torch.full((2,), sigma, dtype=torch.float64))
            x = x + alpha / 2 * score + math.sqrt(alpha) * streams.normal(x)
    schedule = VE(sigma_min=0.01, sigma_max=1.0)
    sampler = AnnealedLangevin(
        LogSNRGrid(10), ratio=epsilon / (2 * 0.01**2), updates=updates, denoise_last=False
    )
    result = sampler(OracleDenoiser(oracle, schedule), start, streams=ImageStreams([0, 1]))
    assert result.nfe == 9 * updates
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-9)


def test_annealed_langevin_follows_the_marginals():
    # small data: as at the last levels of pictures, most of the variance is noise and the chains equilibrate
    schedule, mean, variance, updates = VE(0.5, 10.0), 0.3, 0.04, 40
    model = OracleDenoiser(Gaussian(torch.full((2,), mean).double(), torch.full((2,), variance)), schedule)
    x = schedule.prior_std * OneStream().normal(torch.empty(4000, 2, dtype=torch.float64))
    sampler = AnnealedLangevin(LogSNRGrid(6), ratio=0.1, updates=updates, denoise_last=False)
    x = sampler(model, x, streams=OneStream()).x
    w, eta = variance + 0.5**2, 0.1 * 0.5**2
    covariance = w / (1 - eta / (2 * w)) * EYE
    # what 40 updates leave of the level before, whose variance is 3.3 times as large
    left = 2.3 * w * (1 - eta / w) ** (2 * updates)
    assert_moments(x, torch.full((2,), mean).double(), covariance, bias=left)


def test_a_step_that_would_diverge_is_refused_by_name():
    model = OracleDenoiser(EmpiricalImages(torch.zeros(1, 2)), ConstantNoise(0.2))
    x, streams = torch.ones(1, 2), ImageStreams([0])
    for step_size in (0.0801, 1.0):
        with pytest.raises(
            ValueError, match=r"step_size=.* diverges at noise level 0\.2 .*step_size < .* = 0\.08"
        ):
            Langevin(ConstantGrid(5), step_size)(model, x, streams=streams)
    # just below the limit it is stable even for data at a point
    x = Langevin(ConstantGrid(200), 0.078, noise=0.0)(model, x, streams=streams).x
    assert x.abs().max() < 0.01  # (1 - 0.078 / 0.04)^200 = 4e-5


def test_langevin_starts_at_the_only_noise_level_or_at_the_observations():
    y = torch.full((1, 2), 0.5)
    sampler = Langevin(ConstantGrid(3))
    x, t = sampler.start(ConstantNoise(0.2), y, 0.37)
    assert torch.equal(x, y)
    assert t == 1.0
    x, t = sampler.start(VP(), y, 0.37)
    alpha, sigma = VP().at(t)
    assert sigma / alpha == pytest.approx(0.37)
    torch.testing.assert_close(x, alpha * y)
    with pytest.raises(ValueError, match="outside"):
        sampler.start(VP(), y, 1e9)
    assert ConstantGrid(3)(VP(), t_start=t).tolist() == [t] * 4
    with pytest.raises(ValueError, match="time t = 2 is outside"):
        ConstantGrid(3)(VP(), t_start=2.0)


def test_without_noise_langevin_draws_none_and_the_clamp_is_the_range_of_the_data():
    model, streams = OracleDenoiser(EmpiricalImages(torch.full((1, 2), 5.0)), VP()), Impulses(1)
    alpha = VP().at(0.3)[0]
    result = Langevin(ConstantGrid(400), 0.01, noise=0.0, clamp=True)(
        model, torch.zeros(1, 2), streams=streams, t_start=0.3
    )
    assert streams.draw == 0
    torch.testing.assert_close(result.x, torch.full((1, 2), alpha))
