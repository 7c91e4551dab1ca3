"""Observations and noise models against closed forms; every linear operator against its adjoint."""

import math

import pytest
import torch
from torch.distributions import Normal

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import GaussianNoise, Identity, LinearOperator, Observation, require_adjoint
from scoreexp.restorers import BySampling
from scoreexp.samplers import DDIM, DDPM, UniformGrid
from scoreexp.schedules import VP

COVARIANCE = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)


def posterior(y, sigma):
    """Mean and covariance of x given y = x + sigma z, by the textbook formula."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64))
    return MEAN + (y - MEAN) @ gain.T, COVARIANCE - gain @ COVARIANCE


class Scaled(LinearOperator):
    """``A = 2 I`` with an adjoint of the given factor."""

    def __init__(self, adjoint_factor):
        self.adjoint_factor = adjoint_factor

    def __call__(self, x):
        return 2 * x

    def adjoint(self, y):
        return self.adjoint_factor * y


class Halved(LinearOperator):
    """Keeps the first half of the entries."""

    def __call__(self, x):
        return x[:, : x.shape[1] // 2]

    def adjoint(self, y):
        return torch.cat([y, torch.zeros_like(y)], 1)


def test_gaussian_noise_has_its_moments_and_density():
    noise, streams = GaussianNoise(0.3), ImageStreams(range(400))
    x = torch.linspace(-1, 1, 50, dtype=torch.float64).expand(400, 50)
    y = noise.sample(x, streams)
    assert (y - x).mean().abs() < 4 * 0.3 / math.sqrt(y.numel())
    assert (y - x).var().item() == pytest.approx(0.09, rel=4 * math.sqrt(2 / y.numel()))
    assert torch.equal(noise.variance(x), torch.full_like(x, 0.09))
    expected = Normal(x, torch.tensor(0.3, dtype=torch.float64)).log_prob(y).sum(1)
    torch.testing.assert_close(noise.log_likelihood(y, x), expected, rtol=1e-12, atol=1e-12)


def test_tweedie_gives_the_posterior_mean_of_a_gaussian():
    y = torch.tensor([[0.9, 0.1], [-1.0, 0.4]], dtype=torch.float64)
    sigma = 0.4
    score = Gaussian(MEAN, COVARIANCE).score(y, torch.ones(2), torch.full((2,), sigma, dtype=torch.float64))
    mean, _ = posterior(y, sigma)
    torch.testing.assert_close(GaussianNoise(sigma).posterior_mean(y, score), mean, rtol=1e-12, atol=1e-12)


def test_a_density_without_noise_is_refused():
    with pytest.raises(ValueError, match="sigma=0"):
        GaussianNoise(0.0).log_likelihood(torch.zeros(1, 2), torch.zeros(1, 2))


def test_adjoints_are_told_from_what_is_none():
    require_adjoint(Scaled(2.0), (3, 4))
    require_adjoint(Halved(), (6,))
    with pytest.raises(ValueError, match=r"<A x, y> = -?\d.*<x, A\^T y> = -?\d"):
        require_adjoint(Scaled(2.001), (3, 4))
    with pytest.raises(ValueError, match="adjoint gives the shape"):
        require_adjoint(Halved(), (7,))


def test_an_observation_of_another_shape_is_refused():
    observation = Observation(torch.zeros(1, 3), Halved(), GaussianNoise(0.1))
    observation.require_shape((6,))
    with pytest.raises(ValueError, match=r"shape \(3,\), but Halved makes \(4,\) of samples of shape \(8,\)"):
        observation.require_shape((8,))


@pytest.mark.parametrize(
    ("y", "operator", "noise", "said"),
    [
        (torch.zeros(2, 2, dtype=torch.uint8), Identity(), GaussianNoise(1), "y is torch.uint8"),
        (torch.zeros(1, 2), GaussianNoise(1), Identity(), "operator=<GaussianNoise> must be an Operator"),
        (
            torch.zeros(1, 2),
            Identity(),
            0.1,
            r"noise=0\.1 must be a NoiseModel, such as \w+Noise\(0\.1\)",
        ),
    ],
)
def test_a_field_of_another_kind_is_refused_at_construction(y, operator, noise, said):
    with pytest.raises(TypeError, match=said):
        Observation(y, operator, noise)


def test_a_simulated_observation_is_the_noise_on_what_the_operator_makes():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    observation = Observation.simulate(x, Halved(), GaussianNoise(0.2), ImageStreams(range(4)))
    drawn = torch.stack([ImageStreams([seed]).normal(torch.zeros(1, 3))[0] for seed in range(4)])
    torch.testing.assert_close(observation.y, x[:, :3] + 0.2 * drawn)


def test_sampling_from_an_observation_draws_from_the_posterior():
    sigma, n = 0.5, 1500
    y = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), VP())
    observation = Observation(y.expand(n, 2), Identity(), GaussianNoise(sigma))
    restored = BySampling(DDPM(UniformGrid(150)))(observation, model, streams=ImageStreams(range(n)))
    mean, covariance = posterior(y, sigma)
    error = 5 * covariance.diagonal().sqrt() / math.sqrt(n)
    assert ((restored.x.mean(0) - mean[0]).abs() < error + 0.01).all()
    torch.testing.assert_close(restored.x.T.cov(), covariance, rtol=0.1, atol=0.01)
    assert restored.nfe == 150


def test_a_grid_of_one_time_gives_the_posterior_mean_and_the_way_begins_at_the_observation():
    y = torch.tensor([[0.9, 0.1]], dtype=torch.float64)
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), VP())
    observation = Observation(y, Identity(), GaussianNoise(0.5))
    restored = BySampling(DDIM(UniformGrid(1)))(observation, model, streams=ImageStreams([0]), keep=2)
    torch.testing.assert_close(restored.x, posterior(y, 0.5)[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(restored.trajectory[0], y, rtol=1e-9, atol=1e-9)
    assert torch.equal(restored.trajectory[1], restored.x)


def test_a_sampler_alone_refuses_other_observations():
    model = OracleDenoiser(Gaussian(MEAN, COVARIANCE), VP())
    restorer = BySampling(DDIM(UniformGrid(1)))
    with pytest.raises(ValueError, match="not GaussianNoise under Scaled"):
        restorer(
            Observation(torch.zeros(1, 2), Scaled(2.0), GaussianNoise(0.5)), model, streams=ImageStreams([0])
        )
    with pytest.raises(ValueError, match="needs a model"):
        restorer(Observation(torch.zeros(1, 2), Identity(), GaussianNoise(0.5)), streams=ImageStreams([0]))
