"""Flow matching, whose alpha reaches 0: its papers' algebra, the limits at that end, and what is refused there."""

import math

import numpy as np
import pytest
import torch
from test_sampler_orders import MIXTURE, SAMPLERS, end_at, errors_of, fitted_order, solved

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import (
    Denoiser,
    EDMPrediction,
    EpsPrediction,
    OracleDenoiser,
    ScorePrediction,
    VPrediction,
    X0Prediction,
)
from scoreexp.denoisers.angular_flow import AngularFlow
from scoreexp.diagnostics.likelihood import Likelihood
from scoreexp.lit import ScoreModule
from scoreexp.networks import MLP
from scoreexp.networks.exact import ExactPosteriorMean
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.objectives import (
    DenoisingScoreMatching,
    EDMWeighting,
    EpsWeighting,
    ImplicitScoreMatching,
    LikelihoodScoreMatching,
    LogUniformNoise,
    MinSNR,
    ScoreWeighting,
    VWeighting,
    X0Weighting,
)
from scoreexp.samplers import (
    DDIM,
    DDPM,
    ConstantGrid,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    KarrasGrid,
    Langevin,
    LogSNRGrid,
    PredictorCorrector,
    ProbabilityFlow,
    UniformGrid,
    start_from_prior,
)
from scoreexp.schedules import VP, FlowMatching

SCHEDULE = FlowMatching()
END = torch.tensor([1.0], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
GAUSSIAN = Gaussian(MEAN, COVARIANCE)
ORACLES = [GAUSSIAN, MIXTURE, EmpiricalImages(torch.tensor([[0.1, 0.7], [-0.4, 0.2], [0.9, -0.9]]))]
every_oracle = pytest.mark.parametrize("oracle", ORACLES, ids=lambda o: type(o).__name__)


def points(n, scale=1.0):
    return scale * torch.randn(n, 2, generator=generator(0, "points"), dtype=torch.float64)


def test_the_path_is_straight_and_the_sde_has_it():
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    assert torch.equal(SCHEDULE.alpha(t), 1 - t)
    assert torch.equal(SCHEDULE.sigma(t), t)
    # the probability flow dx/dt = a x - g^2/2 score is the papers' velocity E[z - x_0 | x_t]
    t = t[:-1]
    model, x = OracleDenoiser(MIXTURE, SCHEDULE), points(49)
    a, g = SCHEDULE.drift(t)[:, None], SCHEDULE.diffusion(t)[:, None]
    velocity = model.eps(x, t) - model(x, t)
    torch.testing.assert_close(a * x - g**2 / 2 * model.score(x, t), velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((x - model(x, t)) / t[:, None], velocity, rtol=1e-9, atol=1e-9)


def test_the_end_is_noise_alone():
    assert SCHEDULE.at(1.0) == (0.0, 1.0)
    assert SCHEDULE.prior_std == 1
    assert SCHEDULE.sigma_range == (pytest.approx(0.001 / 0.999, rel=1e-15), math.inf)
    assert SCHEDULE.noise_level(END).item() == math.inf
    assert SCHEDULE.drift(END).item() == -math.inf
    assert SCHEDULE.diffusion(END).item() == math.inf
    assert SCHEDULE.t_of_sigma(torch.tensor([math.inf, 1.0])).tolist() == [1.0, 0.5]
    t = END.clone().requires_grad_()
    assert torch.autograd.grad(SCHEDULE.alpha(t), t)[0].item() == -1
    beyond = torch.tensor([1 + 1e-7], dtype=torch.float64)  # rounded to float32 it is 1
    assert SCHEDULE.alpha(beyond).item() == 0
    for bad in (math.nan, -1.0, 1e-4):
        with pytest.raises(ValueError, match=r"noise level sigma/alpha = .* outside \[0.001001, inf\]"):
            SCHEDULE.t_of_sigma(torch.tensor([bad]))


@pytest.mark.parametrize("times", [(0.0, 1.0), (0.5, 0.5), (0.1, 1.01), (0.1, math.nan)])
def test_bad_times_are_named(times):
    with pytest.raises(
        ValueError, match=r"t_min=.* > 0 and < 1|t_max=.* > 0 and <= 1|choose 0 <= t_min < t_max"
    ):
        FlowMatching(*times)


@every_oracle
def test_without_data_in_it_the_posterior_mean_is_the_mean_of_the_data(oracle):
    x, zero, sigma = points(5, 3.0), torch.zeros(5, dtype=torch.float64), torch.full((5,), 0.8)
    means = {
        Gaussian: MEAN,
        GaussianMixture: torch.tensor([0.3 * -0.8 + 0.7 * 0.6, 0.7 * 0.5]),
        EmpiricalImages: torch.tensor([0.2, 0.0]),
    }
    exact = means[type(oracle)].double().expand(5, 2)
    rounding = {"rtol": 0, "atol": 0 if oracle is GAUSSIAN else 1e-7}  # the others' parameters are float32
    torch.testing.assert_close(oracle.posterior_mean(x, zero, sigma), exact, **rounding)
    torch.testing.assert_close(oracle.score(x, zero, sigma), -x / 0.8**2, rtol=1e-6, atol=0)


class Constant(torch.nn.Module):
    """A network that says 0.25 and remembers what it saw."""

    def forward(self, x, c_noise, cond=None):
        self.seen = x, c_noise
        return torch.full_like(x, 0.25)


@pytest.mark.parametrize(
    ("precond", "x0"), [(X0Prediction(), 0.25), (VPrediction(), -0.25), (EDMPrediction(0.5), 0.125)]
)
def test_parameterisations_state_x0_by_themselves_at_the_end(precond, x0):
    # c_skip = 0, c_in = 1 / sigma, and c_out = 1, -1, sigma_data
    model, x = Denoiser(Constant(), precond, SCHEDULE), points(3)
    torch.testing.assert_close(model(x, END.expand(3)), torch.full_like(x, x0), rtol=0, atol=1e-15)
    seen, c_noise = model.network.seen
    assert torch.equal(seen, x)
    assert c_noise.tolist() == pytest.approx([math.log(1e4) / 4] * 3)
    # eps, score and v follow
    torch.testing.assert_close(model.eps(x, END.expand(3)), x)
    torch.testing.assert_close(model.score(x, END.expand(3)), -x)
    torch.testing.assert_close(model.v(x, END.expand(3)), torch.full_like(x, -x0))


def test_the_level_that_a_network_sees_is_bounded_and_otherwise_as_it_is():
    t = torch.tensor([0.1, 0.5, 0.999, 0.9999, 0.99999, 1.0], dtype=torch.float64)
    levels = (4 * VPrediction()(*SCHEDULE(t)).c_noise).exp()
    exact = torch.tensor([1 / 9, 1, 999, 9999, 1e4, 1e4], dtype=torch.float64)
    torch.testing.assert_close(levels, exact, rtol=1e-9, atol=0)


@pytest.mark.parametrize("precond", [EpsPrediction(), ScorePrediction()], ids=lambda p: type(p).__name__)
def test_predictions_of_the_noise_are_refused_when_the_denoiser_is_built(precond):
    with pytest.raises(ValueError, match=rf"{type(precond).__name__} .* choose v, x0 or edm prediction"):
        Denoiser(Constant(), precond, SCHEDULE)
    Denoiser(Constant(), precond, FlowMatching(t_max=0.999))


def test_the_exact_network_begins_at_the_mean_of_its_images():
    network = ExactPosteriorMean(event_shape=(2,))
    images = torch.tensor([[0.1, 0.7], [-0.4, 0.2], [0.9, -0.9]])
    network.store(images)
    x0_hat = Denoiser(network, X0Prediction(), SCHEDULE)(points(5), END.expand(5))
    torch.testing.assert_close(x0_hat, images.mean(0).double().expand(5, 2), rtol=0, atol=5e-4)


# samplers


@pytest.fixture(scope="module")
def exact():
    return solved(SCHEDULE, 1e-10).x


SETTLES_LATE = [160, 220, 300, 400]
STEPS = {"flow_rk4": [20, 30, 45, 68]} | dict.fromkeys(
    ["pndm_f", "dpm_solver_pp_3m", "unipc_2", "unipc_3", "unipc_velocity_2", "unipc_velocity_3"], SETTLES_LATE
)


@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence_from_alpha_0(name, exact):
    # even in time, where these paths are straight; the log N of the steps near alpha = 0 is in the tolerance
    build, order, _ = SAMPLERS[name]
    steps = STEPS.get(name, [40, 80, 120, 180])
    grids = [UniformGrid(n + 1, t_end=end_at(SCHEDULE)) for n in steps]
    assert fitted_order(steps, errors_of(build, grids, SCHEDULE, exact)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_grids_of_noise_levels_converge_from_an_infinite_one(name, exact):
    build, order, _ = SAMPLERS[name]
    steps = SETTLES_LATE if order > 2 and name in STEPS else [40, 80, 120, 180]
    grids = [LogSNRGrid(n + 1, t_end=end_at(SCHEDULE)) for n in steps]
    errors = errors_of(build, grids, SCHEDULE, exact)
    # the range of levels grows with log N, so h falls like log N / N: 0.88 of the order at these N
    slope = np.polyfit(np.log(steps), np.log(np.log([n / 0.1 for n in steps]) / steps), 1)[0]
    tolerance = (
        0.4 if name == "unipc_velocity_3" else 0.15
    )  # its range of levels grows faster than it settles
    assert fitted_order(steps, errors) == pytest.approx(-slope * order, abs=tolerance)


@pytest.mark.parametrize("grid", [KarrasGrid(9), LogSNRGrid(9)], ids=lambda g: type(g).__name__)
def test_grids_of_noise_levels_step_from_infinity_to_their_number_of_times(grid):
    levels = SCHEDULE.noise_level(grid(SCHEDULE))
    assert len(levels) == 9
    assert levels[0] == math.inf
    assert levels[1].item() == pytest.approx(9)
    assert type(grid)(2)(SCHEDULE).tolist() == [1.0, 0.001]
    assert type(grid)(1)(SCHEDULE).tolist() == [1.0]
    late = SCHEDULE.noise_level(type(grid)(3, t_end=0.99)(SCHEDULE))  # level 99
    assert late.tolist() == pytest.approx([math.inf, 3 * 99, 99])


@pytest.mark.parametrize(
    "sampler",
    [Heun(UniformGrid(2)), DPMSolverPP(UniformGrid(2)), DDIM(UniformGrid(2))],
    ids=lambda s: type(s).__name__,
)
def test_the_first_step_of_deterministic_samplers_is_ddims(sampler):
    model, x = OracleDenoiser(GAUSSIAN, SCHEDULE), points(4)
    sampler.denoise_last = False
    result = sampler(model, x, streams=ImageStreams(range(4)))
    torch.testing.assert_close(result.x, 0.999 * MEAN + 0.001 * x, rtol=0, atol=1e-15)
    assert result.nfe == 1


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(UniformGrid(2)),
        DDIM(UniformGrid(2), eta=1.0),
        EulerMaruyama(UniformGrid(2)),
        PredictorCorrector(UniformGrid(2), corrections=0),
        PredictorCorrector(UniformGrid(2), "euler", corrections=0),
    ],
    ids=["ddpm", "ddim-eta", "euler_maruyama", "reverse_diffusion", "euler"],
)
def test_the_first_step_of_the_reverse_sde_forgets_where_it_began(sampler):
    model = OracleDenoiser(GAUSSIAN, SCHEDULE)
    sampler.denoise_last = False
    result = sampler(model, points(4), streams=ImageStreams(range(4)))
    z = ImageStreams(range(4)).normal(points(4))
    torch.testing.assert_close(result.x, 0.999 * MEAN + 0.001 * z, rtol=0, atol=1e-15)


class Wider(FlowMatching):
    """Noise of another scale, whose squares round."""

    def _sigma(self, t):
        return 0.7 * t


def test_ancestral_ddim_keeps_nothing_of_the_start_whatever_the_rounding():
    x = points(1)
    for end in torch.linspace(0.05, 0.95, 50).tolist():
        sampler, model = DDIM(UniformGrid(2, t_end=end), 1.0, False), OracleDenoiser(GAUSSIAN, Wider())
        a, b = (sampler(model, start, streams=ImageStreams([0])).x for start in (x, -x))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)  # the root of a rounding


def test_the_flow_is_regular_at_the_end_and_a_rounding_beyond_it():
    flow = AngularFlow(OracleDenoiser(GAUSSIAN, SCHEDULE))
    assert flow.at(1.0) == (math.pi / 2, 1.0)
    for angle in (math.pi / 2, math.nextafter(math.pi / 2, 2)):
        velocity = flow.velocity(torch.full((3,), angle, dtype=torch.float64), points(3))
        torch.testing.assert_close(velocity, -MEAN.expand(3, 2))


def test_evaluations_from_alpha_0():
    model, x, streams = OracleDenoiser(MIXTURE, SCHEDULE), points(16), ImageStreams(range(16))
    fewer = {"heun": 1, "pndm_s": 1, "pndm_f": 3}
    for name, (build, _, evaluations) in SAMPLERS.items():
        result = build(UniformGrid(9), denoise_last=False)(model, x, streams=streams)
        assert result.nfe == evaluations(9) - fewer.get(name, 0), name


def test_churn_begins_after_the_first_step():
    model, x, streams = OracleDenoiser(MIXTURE, SCHEDULE), points(4), ImageStreams(range(4))
    states = [
        Heun(KarrasGrid(9), s_churn=c)(model, x, streams=streams, keep=10).trajectory for c in (0.0, 4.0)
    ]
    assert torch.equal(states[0][1], states[1][1])
    assert not torch.equal(states[0][2], states[1][2])


def test_samples_of_a_gaussian_are_its_flow():
    # the flow of a Gaussian from noise that is exactly the marginal: x = mean + C^(1/2) z, but for sigma(t_min)
    model, z = (
        OracleDenoiser(GAUSSIAN, SCHEDULE),
        start_from_prior(
            OracleDenoiser(GAUSSIAN, SCHEDULE), (2,), ImageStreams(range(4)), dtype=torch.float64
        ),
    )
    sampler = ProbabilityFlow(UniformGrid(2), RK45(1e-9, 1e-9))
    variances, basis = torch.linalg.eigh(COVARIANCE)
    exact = MEAN + (z @ basis * variances.sqrt()) @ basis.T
    torch.testing.assert_close(sampler(model, z, streams=ImageStreams(range(4))).x, exact, rtol=0, atol=1e-5)


def test_langevin_dynamics_of_noise_alone_is_refused():
    model = OracleDenoiser(GAUSSIAN, SCHEDULE)
    with pytest.raises(
        ValueError, match=r"Langevin dynamics at t=1 of the FlowMatching .* choose an observation"
    ):
        Langevin(ConstantGrid(5))(model, points(2), streams=ImageStreams([0, 1]))
    Langevin(ConstantGrid(5))(model, points(2), streams=ImageStreams([0, 1]), t_start=0.5)


# likelihood


@pytest.mark.parametrize("oracle", [GAUSSIAN, MIXTURE], ids=lambda o: type(o).__name__)
def test_the_log_density_is_exact_because_the_prior_is(oracle):
    x = oracle.sample(8, generator(0, "x"))
    result = Likelihood(RK45(1e-8, 1e-8), trace="exact")(OracleDenoiser(oracle, SCHEDULE), x)
    level = SCHEDULE.sigma_range[0]
    exact = oracle.log_prob(x, torch.ones(8), torch.full((8,), level, dtype=torch.float64))
    torch.testing.assert_close(result.log_prob, exact, rtol=0, atol=1e-6)
    # VP's prior differs from its marginal at t_max
    vp = Likelihood(RK45(1e-8, 1e-8), trace="exact")(OracleDenoiser(oracle, VP()), x)
    level = VP().sigma_range[0]
    other = oracle.log_prob(x, torch.ones(8), torch.full((8,), level, dtype=torch.float64))
    assert (vp.log_prob - other).abs().max() > 1e-4


def test_bits_per_dimension_of_a_gaussian():
    result = Likelihood(RK45(1e-8, 1e-8), trace="exact")(
        OracleDenoiser(GAUSSIAN, SCHEDULE), GAUSSIAN.sample(6, generator(0, "x"))
    )
    exact = -GAUSSIAN.log_prob(
        GAUSSIAN.sample(6, generator(0, "x")), torch.ones(6), torch.full((6,), SCHEDULE.sigma_range[0])
    ) / (2 * math.log(2)) - math.log2(2 / 255)
    torch.testing.assert_close(result.bits_per_dim(), exact, rtol=0, atol=1e-5)


# training


def trained_at(t, objective, seed=0):
    """Loss and norm of its gradient for a random network with data of the mixture."""
    torch.manual_seed(seed)
    network = MLP(event_shape=(2,), width=16, blocks=1).double()
    torch.nn.init.normal_(network.head.weight)
    model = Denoiser(network, VPrediction(), SCHEDULE)
    x = MIXTURE.sample(64, generator(0, "x"))
    loss = objective(model, Batch(x=x), torch.full((64,), t, dtype=torch.float64), points(64))
    loss.sum().backward()
    return loss.detach()


@pytest.mark.parametrize(
    "weighting", [EpsWeighting(), ScoreWeighting(2.0), MinSNR(5.0)], ids=lambda w: type(w).__name__
)
def test_losses_of_the_noise_vanish_at_the_end_and_keep_their_limit(weighting):
    objective = DenoisingScoreMatching(weighting)
    assert (trained_at(1.0, objective) == 0).all()
    assert 0 < trained_at(1 - 1e-4, objective).mean() < 1e-6
    # implicit score matching estimates the same without the noise: mean eps^2 - 1, of expectation 0
    implicit = ImplicitScoreMatching(weighting)
    at_the_end = trained_at(1.0, implicit)
    torch.testing.assert_close(at_the_end, points(64).square().mean(1) - 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(trained_at(1 - 1e-9, implicit), at_the_end, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "weighting", [X0Weighting(), VWeighting(), EDMWeighting(0.5)], ids=lambda w: type(w).__name__
)
def test_losses_of_x0_stay_and_have_no_implicit_form(weighting):
    limit = trained_at(1 - 1e-9, DenoisingScoreMatching(weighting))
    torch.testing.assert_close(trained_at(1.0, DenoisingScoreMatching(weighting)), limit, rtol=1e-6, atol=0)
    with pytest.raises(
        ValueError, match=rf"{type(weighting).__name__} has an infinite weight .* choose EpsWeighting"
    ):
        trained_at(1.0, ImplicitScoreMatching(weighting))


def test_the_likelihood_weight_is_the_papers_and_its_loss_ends_at_0():
    t = 0.7
    # g^2 / (2 sigma^2) |d eps|^2 = (1 - t) / t^3 |d x_0|^2
    expected = (1 - t) / t**3 * trained_at(t, DenoisingScoreMatching(X0Weighting()))
    torch.testing.assert_close(trained_at(t, LikelihoodScoreMatching()), expected, rtol=1e-9, atol=0)
    assert (trained_at(1.0, LikelihoodScoreMatching()) == 0).all()
    assert trained_at(1 - 1e-6, LikelihoodScoreMatching()).mean() < 1e-4


def test_no_law_is_uniform_over_endless_levels():
    with pytest.raises(ValueError, match=r"FlowMatching schedule have no end.* choose time_law=uniform"):
        LogUniformNoise().sample(4, SCHEDULE, torch.Generator())
    with pytest.raises(ValueError, match=r"FlowMatching schedule have no end"):  # before the first step
        ScoreModule(
            denoiser=Denoiser(Constant(), VPrediction(), SCHEDULE),
            objective=DenoisingScoreMatching(VWeighting()),
            time_law=LogUniformNoise(),
            optimizer=torch.optim.Adam,
        )
    t = LogUniformNoise().sample(1000, FlowMatching(t_max=0.999), torch.Generator().manual_seed(0))
    assert t.min() < 0.002
    assert t.max() > 0.99
