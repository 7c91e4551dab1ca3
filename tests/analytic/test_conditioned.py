"""Diffusion of the residual x - y of an observation: the papers' processes, and p(x | y) of jointly Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch
from test_stochastic_samplers import exact_moments, fitted_order, marginal

from scoreexp import samplers, schedules
from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import (
    DenoisingScoreMatching,
    ResidualScoreMatching,
    ResnoiseWeighting,
    X0Weighting,
)
from scoreexp.observations import GaussianNoise, Grayscale, LinearFunction, Mask, Observation
from scoreexp.restorers import Conditioned
from scoreexp.samplers import (
    DDIM,
    DDPM,
    EulerMaruyama,
    PredictorCorrector,
    ProbabilityFlow,
    QuadraticGrid,
    UniformGrid,
)
from scoreexp.schedules import OUVE, Resfusion

MEAN = torch.tensor([0.4, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.3], [0.0, 0.8]], dtype=torch.float64)  # of the observation
SIGMA = 0.3
OPERATOR = LinearFunction(lambda x: x @ MATRIX.T.to(x), (2,))
EYE = torch.eye(2, dtype=torch.float64)


class OneStream(ImageStreams):
    """One generator for a whole batch of draws."""

    def __init__(self, size):
        super().__init__([])
        self.size, self.generator = size, generator(0, "noise")

    def __len__(self):
        return self.size

    def normal(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


class JointlyGaussian(DenoiserBase):
    """``E[u_0 | u_t, y]`` where ``x_0`` is Gaussian and ``y = M x_0 + noise``."""

    def __init__(self, schedule):
        self.schedule, self.event_shape = schedule, (2,)
        self.gain = COVARIANCE @ MATRIX.T @ torch.linalg.inv(MATRIX @ COVARIANCE @ MATRIX.T + SIGMA**2 * EYE)
        self.covariance = COVARIANCE - self.gain @ MATRIX @ COVARIANCE  # of x_0 given y, and of u_0
        self.about_zero = OracleDenoiser(Gaussian(0 * MEAN, self.covariance), schedule)

    def mean(self, y):
        """``E[x_0 | y]``."""
        return MEAN + (y - MEAN @ MATRIX.T) @ self.gain.T

    def __call__(self, x_t, t, cond=None):
        mean = self.mean(cond) - cond
        alpha = self.schedule.alpha(t.double())[:, None]
        return mean + self.about_zero(x_t - alpha * mean, t)


def observed(n):
    y = torch.tensor([[0.9, -0.6]], dtype=torch.float64).expand(n, 2)
    return Observation(y, OPERATOR, GaussianNoise(SIGMA))


# the processes


def test_the_euler_maruyama_law_of_ouves_sde_tends_to_the_closed_form():
    # dx = theta (y - x) dt + g dW: mean and variance of the discrete chain by their recursion, no draws
    schedule, x0, y = OUVE(), -0.8, 0.5

    def discrete(n):
        mean, variance, dt = x0, 0.0, 1 / n
        for k in range(n):
            g = 0.05 * 10 ** (k * dt) * math.sqrt(2 * math.log(10))
            mean += schedule.theta * (y - mean) * dt
            variance = (1 - schedule.theta * dt) ** 2 * variance + g**2 * dt
        return torch.tensor([mean, variance], dtype=torch.float64)

    alpha, sigma = schedule.at(1.0)
    exact = torch.tensor([alpha * x0 + (1 - alpha) * y, sigma**2], dtype=torch.float64)
    coarse, fine = discrete(1000), discrete(2000)
    assert ((coarse - exact).abs() < 5e-3).all()
    torch.testing.assert_close(
        (coarse - exact) / (fine - exact), torch.full((2,), 2.0).double(), rtol=2e-3, atol=0
    )
    torch.testing.assert_close(2 * fine - coarse, exact, rtol=0, atol=1e-6)


def test_at_resfusions_last_time_the_coefficient_of_x0_vanishes():
    ddpm, schedule = schedules.DDPM(), Resfusion()
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    coefficient = 2 * ddpm.alpha(steps) - 1
    nearest = coefficient.abs().argmin()
    assert steps[nearest].item() == 0.368  # where the published program begins
    assert coefficient[nearest].abs().item() == pytest.approx(4.6e-4, abs=5e-6)
    assert abs(schedule.t_max - 0.368) < 0.0005
    assert schedule.at(schedule.t_max) == (0.0, pytest.approx(math.sqrt(0.75), rel=1e-12))
    assert schedule.prior_std == schedule.at(schedule.t_max)[1]


def test_resfusion_needs_betas_that_pass_one_half():
    with pytest.raises(
        ValueError, match=r"beta_end=0.001.* must pass 1/2 .*: choose more steps or larger betas"
    ):
        Resfusion(beta_end=0.001)
    with pytest.raises(ValueError, match=r"steps=2: .* must pass 1/2 after the first step"):
        Resfusion(beta_start=0.9, beta_end=0.95, steps=2)
    with pytest.raises(ValueError, match=r"sigma_min=1.0, sigma_max=0.5: choose"):
        OUVE(sigma_min=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_residual_the_states_are_ddpms_bit_for_bit(dtype):
    ddpm, schedule = schedules.DDPM(), Resfusion()
    y = x0 = torch.randn(64, 3, 4, 4, generator=generator(0, "x"), dtype=dtype)
    z = torch.randn(64, 3, 4, 4, generator=generator(0, "z"), dtype=dtype)
    t = torch.linspace(schedule.t_min, schedule.t_max, 64, dtype=torch.float64)
    alpha, sigma, root = (v.to(dtype)[:, None, None, None] for v in (*schedule(t), ddpm.alpha(t)))
    x_t = (alpha * (x0 - y) + sigma * z) + root * y
    assert torch.equal(x_t, root * x0 + ddpm.sigma(t).to(dtype)[:, None, None, None] * z)


def test_without_a_residual_its_steps_are_ddpms_bit_for_bit():
    schedule, streams = Resfusion(), ImageStreams(range(8))
    nothing = Gaussian(torch.zeros(3), torch.zeros(3))  # u_0 = 0
    start = schedule.prior_std * ImageStreams(range(8), "start").normal(torch.empty(8, 3))
    times = UniformGrid(6)(schedule).tolist()
    u = v = start
    a, b = samplers.Resfusion(UniformGrid(6)), DDPM(UniformGrid(6))
    others = ImageStreams(range(8))
    for t, s in pairwise(times):
        u, _ = a.step(OracleDenoiser(nothing, schedule), u, t, s, None, streams)
        v, _ = b.step(OracleDenoiser(nothing, schedules.DDPM()), v, t, s, None, others)
        assert torch.equal(u, v)


def test_a_step_is_the_published_one():
    # in x_t = u_t + sqrt(a_t) y on DDPM's own steps, by formulas (33) and (44)
    schedule, ddpm = Resfusion(), schedules.DDPM()
    x0_hat, y, x_t, z = (
        torch.randn(4, 2, generator=generator(k, "step"), dtype=torch.float64) for k in range(4)
    )

    class Fixed(DenoiserBase):
        def __init__(self):
            self.schedule, self.event_shape = schedule, (2,)

        def __call__(self, x_t, t, cond=None):
            return x0_hat - y

    class Given(OneStream):
        def normal(self, like):
            return z

    for n in (2, 50, 367):
        t, s = n / 1000, (n - 1) / 1000
        root_t, root_s = ddpm.at(t)[0], ddpm.at(s)[0]
        beta = ddpm.betas[n - 1].item()
        root, a_t, a_s = math.sqrt(1 - beta), root_t**2, root_s**2
        sigma = math.sqrt((1 - a_s) / (1 - a_t) * beta)
        residual = y - x0_hat
        drawn = (
            (root * (1 - a_s) * (x_t - residual) + root_s * beta * (x0_hat - residual)) / (1 - a_t)
            + residual
            + sigma * z
        )
        eps = (x_t - root_t * x0_hat - (1 - root_t) * residual) / math.sqrt(1 - a_t)
        resnoise = eps + (1 - root) * math.sqrt(1 - a_t) / beta * residual
        other = (x_t - beta / math.sqrt(1 - a_t) * resnoise) / root + sigma * z
        u, _ = samplers.Resfusion(UniformGrid(2)).step(Fixed(), x_t - root_t * y, t, s, None, Given(4))
        torch.testing.assert_close(u + root_s * y, drawn, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(u + root_s * y, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("schedule", [Resfusion(), OUVE(), schedules.VP(), schedules.FlowMatching()])
def test_its_steps_keep_the_marginal_of_one_point_at_any_number_of_steps(schedule):
    # of u_t = alpha u_0 + sigma z with u_0 known: the coefficient of the state and the fresh noise make sigma_s
    point = OracleDenoiser(Gaussian(torch.ones(1), torch.zeros(1)), schedule)
    times = UniformGrid(4)(schedule).tolist()
    for t, s in pairwise(times):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
        u = torch.tensor([[alpha_t], [alpha_t + sigma_t], [alpha_t]], dtype=torch.float64)

        class Given(OneStream):
            def normal(self, like):
                return torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)

        out, _ = samplers.Resfusion(UniformGrid(2)).step(point, u, t, s, None, Given(3))
        mean, of_state, of_noise = out[0].item(), (out[1] - out[0]).item(), (out[2] - out[0]).item()
        assert mean == pytest.approx(alpha_s, rel=1e-12)
        assert of_state**2 + of_noise**2 == pytest.approx(sigma_s**2, rel=1e-12)


@pytest.mark.parametrize("schedule", [Resfusion(), schedules.VP()], ids=lambda s: type(s).__name__)
def test_its_steps_have_weak_order_one_and_the_exact_mean(schedule):
    mean, covariance = marginal(schedule, schedule.t_min)
    steps, errors = [50, 100, 200, 400], []
    for n in steps:
        sampler = samplers.Resfusion(QuadraticGrid(n + 1), denoise_last=False)
        m, c = exact_moments(sampler, schedule, n)
        torch.testing.assert_close(m, mean, rtol=0, atol=1e-12)
        errors.append((c - covariance).norm().item())
    assert fitted_order(steps, errors) == pytest.approx(1, abs=0.1)
    assert errors[-1] < 0.01


def test_the_corrector_with_steps_from_sigma_is_sgmses():
    schedule, s = OUVE(), 0.4
    model = JointlyGaussian(schedule).about_zero
    x = torch.randn(3, 2, generator=generator(0, "x"), dtype=torch.float64)
    streams, others = ImageStreams(range(3)), ImageStreams(range(3))
    sampler = PredictorCorrector(UniformGrid(2), "euler", corrections=2, snr=0.5, step_size="sigma")
    found, _ = sampler.step(model, x, 0.5, s, None, streams)
    dt, g = 0.1, schedule.diffusion(torch.tensor(0.5, dtype=torch.float64)).item()
    at = [torch.full((3,), t, dtype=torch.float64) for t in (0.5, s)]
    x = x + (schedule.theta * x + g**2 * model.score(x, at[0])) * dt + g * math.sqrt(dt) * others.normal(x)
    epsilon = 2 * (0.5 * schedule.at(s)[1]) ** 2
    for _ in range(2):
        x = x + epsilon * model.score(x, at[1]) + math.sqrt(2 * epsilon) * others.normal(x)
    torch.testing.assert_close(found, x)


# drawing x given y


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (Resfusion(), samplers.Resfusion(UniformGrid(400))),
        (Resfusion(), DDPM(UniformGrid(400))),
        (Resfusion(), DDIM(UniformGrid(400))),
        (OUVE(theta=5.0, sigma_max=1.0), EulerMaruyama(UniformGrid(400))),
        (
            OUVE(theta=5.0, sigma_max=1.0),
            PredictorCorrector(UniformGrid(200), "euler", snr=0.1, step_size="sigma"),
        ),
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_residual_drawn_given_y_is_a_draw_of_x_given_y(schedule, sampler):
    n, model = 10000, JointlyGaussian(schedule)
    result = Conditioned(sampler)(observed(n), model, streams=OneStream(n), keep=3)
    error = result.x.mean(0) - model.mean(observed(1).y)[0]
    # 4 deviations are 0.011 of the mean and 6 % of a variance; steps and prior add up to 0.004 and 3 %
    assert error.abs().max() < 0.015
    covariance = (result.x - result.x.mean(0)).T @ (result.x - result.x.mean(0)) / n
    assert (covariance - model.covariance).abs().max() < 0.09 * model.covariance.diagonal().max()
    assert torch.equal(result.trajectory[-1], result.x)
    assert len(result.trajectory) == 3


def test_the_prior_of_ouve_leaves_out_what_is_left_of_the_residual():
    # the flow of a Gaussian is known, so the bias of starting at N(0, sigma^2) is too
    schedule, y = OUVE(), observed(1).y
    model = JointlyGaussian(schedule)
    variances, basis = torch.linalg.eigh(model.covariance)

    def scale(t):
        alpha, sigma = schedule.at(t)
        return (alpha**2 * variances + sigma**2).sqrt()

    z = ImageStreams([0]).normal(torch.empty(1, 2, dtype=torch.float64))
    (alpha, sigma), (alpha_s, _) = schedule.at(1.0), schedule.at(schedule.t_min)
    mean = model.mean(y) - y
    deviation = (sigma * z - alpha * mean) @ basis / scale(1.0)  # kept along the flow, in units of its scale
    u_s = alpha_s * mean + (deviation * scale(schedule.t_min)) @ basis.T
    gain = alpha_s * variances / scale(schedule.t_min) ** 2
    exact = y + mean + ((u_s - alpha_s * mean) @ basis * gain) @ basis.T
    sampler = ProbabilityFlow(UniformGrid(2), RK45(1e-9, 1e-9))
    found = Conditioned(sampler)(observed(1), model, streams=ImageStreams([0])).x
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    lost = (alpha * mean @ basis / scale(1.0) * variances.sqrt()) @ basis.T
    assert lost.norm() > 0.02, "the mismatch of the published prior is seen here"


def test_an_observation_of_another_shape_is_pulled_back():
    grey = Observation(torch.full((1, 1, 2, 2), 0.5), Grayscale(), GaussianNoise(0.1))
    torch.testing.assert_close(Grayscale()(grey.pulled_back((3, 2, 2))), grey.y)  # by the pseudo-inverse
    seen = torch.tensor([[True, False], [True, True]])
    holes = Observation(torch.ones(1, 1, 3), Mask(seen), GaussianNoise(0.1))
    assert torch.equal(holes.pulled_back((1, 2, 2)), seen[None, None].float())
    summed = LinearFunction(lambda x: x.sum(-1, keepdim=True), (2,))
    assert torch.equal(
        Observation(torch.ones(1, 1), summed, GaussianNoise(0.1)).pulled_back((2,)), torch.ones(1, 2)
    )
    with pytest.raises(
        ValueError, match=r"Grayscale leads y back to samples of shape \(3, 2, 2\), not \(3, 4, 4\)"
    ):
        grey.pulled_back((3, 4, 4))


# training


def test_the_loss_at_the_exact_denoiser_is_the_variance_that_u_t_and_y_leave():
    schedule, n, t = OUVE(), 4000, 0.5
    model = JointlyGaussian(schedule)
    objective = ResidualScoreMatching(OPERATOR, GaussianNoise(SIGMA), X0Weighting())
    x = Gaussian(MEAN, COVARIANCE).sample(n, generator(0, "x"))
    noise = torch.randn(n, 2, generator=generator(0, "z"), dtype=torch.float64)
    times = torch.full((n,), t, dtype=torch.float64)
    loss = objective(model, Batch(x=x), times, noise)
    alpha, sigma = schedule.at(t)
    left = torch.linalg.inv(torch.linalg.inv(model.covariance) + (alpha / sigma) ** 2 * EYE)
    assert loss.mean().item() == pytest.approx(left.trace().item() / 2, abs=4 * loss.std().item() / n**0.5)

    class Off(JointlyGaussian):
        def __call__(self, x_t, t, cond=None):
            return super().__call__(x_t, t, cond) + 0.1 * cond

    assert objective(Off(schedule), Batch(x=x), times, noise).mean() > loss.mean()


def test_the_observation_is_the_pair_of_the_data_or_named_by_the_noise_of_each_sample():
    schedule, x = Resfusion(), torch.randn(6, 2, generator=generator(0, "x"), dtype=torch.float64)
    noise, t = torch.randn(6, 2, generator=generator(0, "z")).double(), torch.full((6,), 0.2).double()
    model = JointlyGaussian(schedule)
    objective = ResidualScoreMatching(OPERATOR, GaussianNoise(SIGMA), X0Weighting())
    whole = objective(model, Batch(x=x), t, noise)
    parts = [objective(model, Batch(x=x[i]), t[i], noise[i]) for i in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(objective(model, Batch(x=x), t, noise.flip(0)), whole)
    y = torch.randn(6, 2, generator=generator(0, "y"), dtype=torch.float64)
    of_pairs = objective(model, Batch(x=x, y=y), t, noise)
    plain = DenoisingScoreMatching(X0Weighting())
    assert torch.equal(of_pairs, plain(model, Batch(x=x - y, cond=y), t, noise))
    with pytest.raises(ValueError, match="no clean data x"):
        objective(model, Batch(y=y), t, noise)


def test_the_weighting_of_resnoise_is_its_squared_error_in_small_steps():
    ddpm, schedule = (
        schedules.DDPM(steps=100000, beta_start=1e-6, beta_end=2e-4),
        Resfusion(1e-6, 2e-4, 100000),
    )
    for t in (0.01, 0.1, 0.3):
        n = round(t * 100000)
        root, beta = ddpm.at(t)[0], ddpm.betas[n - 1].item()
        sigma = math.sqrt(1 - root**2)
        # resnoise of x_0 at given x_t and y, whose slope in x_0 is the error's
        slope = -(2 * root - 1) / sigma - (1 - math.sqrt(1 - beta)) * sigma / beta
        weight = ResnoiseWeighting()(*schedule(torch.tensor([t], dtype=torch.float64))).item()
        assert weight == pytest.approx(slope**2, rel=1e-3)
