"""Random features against a direct solution and exact scores."""

import pytest
import torch

from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator
from scoreexp.data import SwissRoll
from scoreexp.denoisers import Denoiser, X0Prediction
from scoreexp.diagnostics.score_errors import score_error_by_level
from scoreexp.lit import RidgeScore
from scoreexp.networks import MLP, RandomFeatures
from scoreexp.numerics.oracles import Gaussian
from scoreexp.objectives import DenoisingScoreMatching, LogNormalNoise, X0Weighting
from scoreexp.schedules import VP


def module(network, **options):
    return RidgeScore(
        denoiser=Denoiser(network, X0Prediction(), VP()),
        objective=DenoisingScoreMatching(X0Weighting()),
        time_law=LogNormalNoise(mean=0.0, std=1.0),
        optimizer=torch.optim.Adam,
        **options,
    )


class GaussianPoints(SwissRoll):
    """Points of a Gaussian, in the place of the Swiss Roll."""

    law = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 0.1]))

    def open_split(self, name):
        split = super().open_split(name)
        points = self.law.sample(len(split), generator(5, name)).float()
        return type(split)(points.numpy())


def test_the_layer_is_the_direct_solution_in_any_batches():
    stream = generator(0, "pairs")
    x, c = torch.randn(300, 1, 3, generator=stream), torch.randn(300, generator=stream)
    y = torch.randn(300, 1, 3, generator=stream)
    network, ridge = RandomFeatures(event_shape=(1, 3), width=40, bandwidth=1.5), 1e-3
    network.solve([(x[:120], c[:120], y[:120]), (x[120:], c[120:], y[120:])], ridge)
    phi = network.features(x, c).double()
    rows = torch.cat([phi, (300 * ridge) ** 0.5 * torch.eye(40, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(
        rows, torch.cat([y.flatten(1).double(), torch.zeros(40, 3).double()])
    ).solution
    torch.testing.assert_close(network.head.weight.double(), wanted.T, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(x, c).flatten(1), (phi @ wanted).float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no pairs"):
        network.solve([])


def test_the_score_of_a_gaussian_is_found_without_descent():
    found = module(RandomFeatures(event_shape=(2,), width=100, bandwidth=1.0), pairs=20000)
    found.prepare(GaussianPoints(points=20000))
    errors = score_error_by_level(
        found.evaluation_denoiser.eval(), GaussianPoints.law, [0.5, 1.0, 2.0], n=500
    )
    assert max(e.value for e in errors.values()) < 0.02


def test_a_narrow_bandwidth_leaves_a_floor_that_no_width_lowers():
    x = torch.linspace(-1, 1, 400)[:, None]
    target, level = (12 * x).sin(), torch.zeros(400)
    left = {}
    for bandwidth in (2.0, 16.0):
        for width in (50, 400):
            network = RandomFeatures(event_shape=(1,), width=width, bandwidth=bandwidth)
            network.solve([(x, level, target)], ridge=1e-6)
            left[bandwidth, width] = (network(x, level) - target).square().mean().item()
    assert left[2.0, 400] > 0.9 * left[2.0, 50] > 0.1
    assert left[16.0, 400] < 1e-4


def test_another_network_is_refused():
    with pytest.raises(UserError, match="the network is MLP: set network=random_features"):
        module(MLP(event_shape=(2,), width=8)).prepare(SwissRoll(points=10))
