"""Optimal transport within a batch, and flow matching against EDM: the same model up to the change of schedule."""

import itertools

import pytest
import torch
from scipy import stats
from test_conditioned import OPERATOR, SIGMA, JointlyGaussian, observed

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.objectives import (
    DenoisingScoreMatching,
    FlowWeighting,
    LogNormalNoise,
    OptimalTransportCoupling,
    ResidualScoreMatching,
)
from scoreexp.objectives.optimal_transport import coupled_noise
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import Conditioned
from scoreexp.samplers import ProbabilityFlow, UniformGrid
from scoreexp.schedules import EDM, FlowMatching

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
)


def drawn(n, seed=0, shape=(2,)):
    return torch.randn(n, *shape, generator=generator(seed, "points"), dtype=torch.float64)


def cost(x, z):
    return (x - z).square().sum().item()


@pytest.mark.parametrize("seed", range(3))
def test_the_coupling_has_the_least_cost_of_all_permutations_and_uses_every_noise_once(seed):
    x, z = drawn(5, seed), drawn(5, seed + 100)
    coupled = coupled_noise(Batch(x=x), z)
    costs = [cost(x, z[list(order)]) for order in itertools.permutations(range(5))]
    assert cost(x, coupled) == pytest.approx(min(costs), rel=1e-12)
    assert cost(x, coupled) < cost(x, z)
    assert sorted(coupled.tolist()) == sorted(z.tolist())


def test_noise_stays_within_its_class():
    x, z, labels = drawn(9), drawn(9, 1), torch.tensor([2, 0, 1, 0, 2, 2, 0, 5, 1])
    coupled = coupled_noise(Batch(x=x, cond=labels), z)
    for label in labels.unique():
        own = labels == label
        alone = coupled_noise(Batch(x=x[own]), z[own]) if own.sum() > 1 else z[own]
        assert torch.equal(coupled[own], alone)


def test_the_loss_is_that_of_the_objective_inside_on_the_coupled_noise():
    inside, x, z = DenoisingScoreMatching(FlowWeighting()), drawn(6, 0, (1, 4, 4)), drawn(6, 1, (1, 4, 4))
    model = OracleDenoiser(
        GaussianMixture(torch.ones(1), torch.zeros(1, 1, 4, 4), torch.ones(1)), FlowMatching()
    )
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    loss = OptimalTransportCoupling(inside)(model, Batch(x=x), t, z)
    assert torch.equal(loss, inside(model, Batch(x=x), t, coupled_noise(Batch(x=x), z)))
    assert not torch.equal(loss, inside(model, Batch(x=x), t, z))


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match=r"a batch of 1 has nothing to pair .* set data.batch_size to 2"):
        coupled_noise(Batch(x=drawn(1)), drawn(1))
    with pytest.raises(ValueError, match=r"conditioned on images.* choose objective=flow_matching"):
        coupled_noise(Batch(x=drawn(3), cond=drawn(3)), drawn(3))
    with pytest.raises(ValueError, match=r"noise of shape \(4, 2\) for data of shape \(3, 2\)"):
        coupled_noise(Batch(x=drawn(3)), drawn(4))


def test_flow_matching_and_edm_have_the_same_posterior_mean_up_to_the_change_of_schedule():
    flow, edm = OracleDenoiser(MIXTURE, FlowMatching()), OracleDenoiser(MIXTURE, EDM())
    t = torch.linspace(0.01, 0.98, 50, dtype=torch.float64)
    x_t = (1 - t)[:, None] * MIXTURE.sample(50, generator(0, "x")) + t[:, None] * drawn(50)
    sigma = t / (1 - t)
    torch.testing.assert_close(flow(x_t, t), edm(x_t / (1 - t)[:, None], sigma), rtol=0, atol=1e-6)
    # and the velocity of the flow is that of EDM's ODE dx/dsigma = eps, by the chain rule
    velocity = flow.eps(x_t, t) - flow(x_t, t)
    by_edm = edm.eps(x_t / (1 - t)[:, None], sigma) - edm(x_t / (1 - t)[:, None], sigma)
    torch.testing.assert_close(velocity, by_edm, rtol=0, atol=1e-6)


def test_the_flow_weighting_is_the_error_of_the_velocity():
    model, x, z = OracleDenoiser(MIXTURE, FlowMatching()), MIXTURE.sample(20, generator(0, "x")), drawn(20)
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    x_t = (1 - t)[:, None] * x + t[:, None] * z
    velocity = (x_t - model(x_t, t)) / t[:, None]  # E[z - x_0 | x_t]
    expected = (velocity - (z - x)).square().mean(1)
    loss = DenoisingScoreMatching(FlowWeighting())(model, Batch(x=x), t, z)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


def test_the_law_of_logit_normal_times():
    t = LogNormalNoise(mean=-0.4, std=0.8).sample(4000, FlowMatching(), torch.Generator().manual_seed(0))
    logit = (t / (1 - t)).log()
    assert stats.kstest(logit.numpy(), stats.norm(-0.4, 0.8).cdf).pvalue > 1e-3


def test_residuals_of_an_observation_take_the_straight_path_from_the_data_to_it_and_noise():
    class Recording(JointlyGaussian):
        def __call__(self, x_t, t, cond=None):
            self.x_t, self.y = x_t + cond, cond
            return super().__call__(x_t, t, cond)

    model, x, z = Recording(FlowMatching(std=0.3)), drawn(6), drawn(6, 1)
    t = torch.linspace(0.01, 1, 6, dtype=torch.float64)[:, None]
    objective = ResidualScoreMatching(OPERATOR, GaussianNoise(SIGMA), FlowWeighting())
    objective(model, Batch(x=x), t[:, 0], z)  # data x coupled with y + 0.3 z, y an observation of x
    assert not torch.allclose(model.y, OPERATOR(x))
    torch.testing.assert_close(model.x_t, (1 - t) * x + t * (model.y + 0.3 * z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.5, 1e-4])
def test_their_flow_from_the_observation_has_the_marginals_of_that_path(t):
    model, y = JointlyGaussian(FlowMatching(t_min=1e-4, std=0.3)), observed(4).y
    sampler = ProbabilityFlow(UniformGrid(2, t_end=t), RK45(1e-8, 1e-8), denoise_last=False)
    found = Conditioned(sampler)(observed(4), model, streams=ImageStreams(range(4))).x
    # of x_t given y: mean (1 - t) E[x | y] + t y, covariance (1 - t)^2 C + t^2 std^2
    values, vectors = torch.linalg.eigh(model.covariance)
    root = vectors * ((1 - t) ** 2 * values + (0.3 * t) ** 2).sqrt() @ vectors.T
    z = ImageStreams(range(4)).normal(y)
    torch.testing.assert_close(found, (1 - t) * model.mean(y) + t * y + z @ root, rtol=0, atol=1e-5)
