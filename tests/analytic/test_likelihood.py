"""Log-likelihood by the probability flow against exact densities."""

import math

import pytest
import torch

from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers.denoiser import Denoiser, OracleDenoiser
from scoreexp.denoisers.preconditioning import EpsPrediction
from scoreexp.diagnostics.likelihood import Likelihood, LikelihoodResult, dequantise
from scoreexp.numerics.ode import RK45, RungeKutta
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.schedules import DDPM, VE, VP, ConstantNoise, FlowMatching, VEPower

SCHEDULES = [VP(), DDPM(), VE(), VEPower(sigma=25.0), FlowMatching()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
ORACLES = {
    "gaussian": Gaussian(
        torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    ),
    "mixture": GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
    ),
}
every_oracle = pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES.keys())


def smoothed_log_prob(oracle, x, schedule, t):
    """Exact log-density of data plus what noise is left at `t`, in the units of the data."""
    alpha, sigma = schedule.at(t)
    return oracle.log_prob(x, torch.ones(len(x)), torch.full((len(x),), sigma / alpha, dtype=torch.float64))


def prior_gap(oracle, latent, schedule):
    """Log-density of the prior less that of the exact marginal, at the latents."""
    alpha, sigma = (torch.full((len(latent),), v, dtype=torch.float64) for v in schedule.at(schedule.t_max))
    return oracle.log_prob(latent, 0 * alpha + 1e-30, sigma) - oracle.log_prob(latent, alpha, sigma)


@every_schedule
@every_oracle
def test_exact_trace_gives_the_exact_density(schedule, oracle):
    x = oracle.sample(8, generator(0, "x"))
    result = Likelihood(trace="exact")(OracleDenoiser(oracle, schedule), x)
    exact = smoothed_log_prob(oracle, x, schedule, schedule.t_min)
    assert result.log_prob.dtype == torch.float64
    assert result.log_prob.shape == (8,)
    # the flow itself, with the prior's difference from the marginal taken out: some steps of 1e-5 nats
    error = result.log_prob - exact - prior_gap(oracle, result.latent, schedule)
    assert error.abs().max() < 2e-4
    if not isinstance(schedule, VEPower):  # sigma(t_max) = 23 keeps 4 % of the data, the others at most 1 %
        assert (result.log_prob - exact).abs().max() < 0.01
        # and near the unsmoothed density: sigma(t_min) is at most 0.02
        assert (result.log_prob - oracle.log_prob(x, torch.ones(8), torch.zeros(8))).abs().max() < 0.05


def test_the_density_is_that_of_the_chosen_end():
    oracle, schedule = ORACLES["mixture"], VP()
    x = oracle.sample(8, generator(0, "x"))
    result = Likelihood(trace="exact", t_end=0.3)(OracleDenoiser(oracle, schedule), x)
    exact = smoothed_log_prob(oracle, x, schedule, 0.3)
    assert (result.log_prob - exact).abs().max() < 0.01
    assert (exact - smoothed_log_prob(oracle, x, schedule, 0.001)).abs().max() > 0.3


def test_a_density_integrates_to_one():
    # on a grid of points, for an arbitrary (untrained) network: the density of its own flow, whatever it learned
    class Bent(torch.nn.Module):
        def forward(self, x, c_noise, cond=None):
            return 0.9 * x + 0.3 * torch.sin(2 * x.flip(1))

    model = Denoiser(Bent(), EpsPrediction(), VP(t_min=0.05))
    side = torch.linspace(-6, 6, 49, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    log_prob = Likelihood(RK45(1e-4, 1e-4), trace="exact")(model, x).log_prob
    # the trapezoidal rule on a smooth density that has vanished at the border
    assert log_prob.exp().sum().item() * 0.25**2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("trace", ["rademacher", "gaussian"])
def test_hutchinsons_estimate_is_unbiased(trace):
    oracle, n = ORACLES["mixture"], 1500
    x = oracle.sample(1, generator(0, "x")).expand(n, 2)
    model, solver = OracleDenoiser(oracle, VP()), RK45(1e-4, 1e-4)
    exact = Likelihood(solver, trace="exact")(model, x[:1]).log_prob
    drawn = Likelihood(solver, trace=trace)(model, x, streams=ImageStreams(range(n))).log_prob
    assert drawn.std() > 0.1
    assert abs(drawn.mean() - exact) < 4.5 * drawn.std() / math.sqrt(n) + 1e-3


def test_rademacher_probes_are_exact_for_independent_coordinates_and_gaussian_ones_are_not():
    # a diagonal Jacobian has e_i^2 = 1 for Rademacher probes
    oracle = Gaussian(torch.zeros(3, 4, 4), torch.linspace(0.05, 0.5, 48).reshape(3, 4, 4))
    x, model = oracle.sample(4, generator(0, "x")), OracleDenoiser(oracle, VP())
    exact = smoothed_log_prob(oracle, x, VP(), VP().t_min)

    def errors(**kwargs):
        streams = ImageStreams(range(4))
        return (Likelihood(**kwargs)(model, x, streams=streams).log_prob - exact).abs()

    assert errors(trace="rademacher").max() < 0.01
    assert errors(trace="exact").max() < 0.01
    few, many = errors(trace="gaussian"), errors(trace="gaussian", probes=64)
    assert few.max() > 1
    assert many.square().mean() < 0.2 * few.square().mean()  # 1/64 in expectation


def test_a_sample_has_its_likelihood_whatever_the_batch():
    oracle = ORACLES["mixture"]
    model, x = OracleDenoiser(oracle, VP()), oracle.sample(5, generator(0, "x"))
    whole = Likelihood()(model, x, streams=ImageStreams(range(5)))
    alone = Likelihood()(model, x[3:4], streams=ImageStreams([3]))
    torch.testing.assert_close(alone.log_prob[0], whole.log_prob[3], rtol=0, atol=1e-9)
    torch.testing.assert_close(alone.latent[0], whole.latent[3], rtol=0, atol=1e-9)


def test_evaluations_are_counted_and_no_graph_is_kept():
    class Network(torch.nn.Module):
        calls, labels = 0, ()

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((), 0.5))

        def forward(self, x, c_noise, cond=None):
            self.calls += 1
            self.labels = (*self.labels, cond)
            return self.weight * x

    network, labels = Network(), torch.tensor([0, 2])
    model = Denoiser(network, EpsPrediction(), VP())
    result = Likelihood()(model, torch.ones(2, 3, 4, 4), streams=ImageStreams([0, 1]), cond=labels)
    assert result.nfe == network.calls
    assert all(seen is labels for seen in network.labels)
    assert result.latent.shape == (2, 3, 4, 4)
    assert result.latent.dtype == torch.float32
    assert not result.log_prob.requires_grad
    assert network.weight.grad is None
    assert Likelihood(RungeKutta("rk4"), trace="exact")(model, torch.ones(1, 2)).nfe == 4


def test_bits_per_dimension_of_uniform_levels():
    # uniform over the 256 levels, one level wide: 8 bits per dimension, by the formula
    density = -math.log(256 * 2 / 255)  # of one dimension, on an interval of 256 levels of width 2/255
    result = LikelihoodResult(torch.tensor([12 * density], dtype=torch.float64), torch.zeros(1, 3, 2, 2), 1)
    assert result.bits_per_dim().item() == pytest.approx(8, abs=1e-12)
    assert result.bits_per_dim(levels=2).item() == pytest.approx(math.log2(256 * 2 / 255 / 2), abs=1e-12)
    with pytest.raises(ValueError, match="levels=1 must be an int >= 2"):
        result.bits_per_dim(levels=1)


def test_dequantised_levels_fill_their_bins():
    x = torch.tensor([-1.0, 1 / 255, 1.0], dtype=torch.float64).repeat_interleave(5000)[:, None]
    shifted = dequantise(x, generator(0, "u")) - x
    assert shifted.abs().max() <= 1 / 255
    assert shifted.mean().abs() < 4.5 * (2 / 255) / math.sqrt(12 * len(x))
    assert shifted.std().item() == pytest.approx(2 / 255 / math.sqrt(12), rel=0.03)
    assert (dequantise(x, generator(0, "u"), levels=2) - x).abs().max() > 0.9


def test_a_model_without_a_finite_prior_is_refused():
    x = torch.zeros(1, 2)
    oracle = ORACLES["mixture"]
    for schedule, named in (
        (ConstantNoise(), r"ConstantNoise schedule has no finite prior: its noise level is 0\.2 at t_max"),
        (VE(0.02, 0.5), r"VE schedule has no finite prior: its noise level is 0\.5"),
        (VE(0.02, math.inf), "VE schedule has no finite prior"),
    ):
        with pytest.raises(ValueError, match=named):
            Likelihood(trace="exact")(OracleDenoiser(oracle, schedule), x)
    # at t_end = t_max nothing is left to integrate
    with pytest.raises(ValueError, match="no finite prior"):
        Likelihood(trace="exact", t_end=1.0)(OracleDenoiser(oracle, VP()), x)
    with pytest.raises(ValueError, match=r"time t = 1e-05 is outside \[0\.001, 1\]"):
        Likelihood(trace="exact", t_end=1e-5)(OracleDenoiser(oracle, VP()), x)


def test_what_cannot_be_computed_is_refused():
    model = OracleDenoiser(EmpiricalImages(torch.zeros(1, 2)), VP())
    with pytest.raises(ValueError, match="trace='rademacher' draws random probes: pass streams"):
        Likelihood()(model, torch.zeros(1, 2))
    with pytest.raises(FloatingPointError, match=r"not finite at t = 0\.001, in evaluation 1 of the flow"):
        Likelihood(trace="exact")(model, torch.full((1, 2), math.nan))
