"""The Radon operator against scikit-image, and DDS on it against the exact posterior of a Gaussian prior."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import radon, resize

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.observations import GaussianNoise, Identity, Observation, Operator, Radon, require_adjoint
from scoreexp.restorers import DDS
from scoreexp.samplers import UniformGrid
from scoreexp.schedules import VP

N, COUNT = 8, 20
PLACES = torch.cartesian_prod(torch.arange(N), torch.arange(N)).double()
COVARIANCE = 0.25 * torch.exp(-(torch.cdist(PLACES, PLACES) ** 2) / 8) + 1e-4 * torch.eye(N * N)
PRIOR = Gaussian(torch.zeros(1, N, N, dtype=torch.float64), COVARIANCE)
MODEL = OracleDenoiser(PRIOR, VP())
OPERATOR = Radon(N, 6)
MATRIX = OPERATOR(torch.eye(N * N, dtype=torch.float64).reshape(-1, 1, N, N)).flatten(1).T
X = PRIOR.sample(COUNT, torch.Generator().manual_seed(0))


def posterior_mean(y, sigma):
    gram = MATRIX @ COVARIANCE @ MATRIX.T + (sigma**2 + 1e-12) * torch.eye(len(MATRIX), dtype=torch.float64)
    return (COVARIANCE @ MATRIX.T @ torch.linalg.solve(gram, y.flatten(1).T)).T.reshape(len(y), 1, N, N)


def restored(sigma=0.0, steps=20, **settings):
    """The relative distance to the posterior mean, the relative residual, and the restoration."""
    noise, streams = GaussianNoise(sigma), ImageStreams(range(COUNT), "observed")
    observation = Observation.simulate(X, OPERATOR, noise, streams)
    made = DDS(UniformGrid(steps), **settings)(observation, MODEL, streams=ImageStreams(range(COUNT)))
    y, mean = observation.y, posterior_mean(observation.y, sigma)
    return (
        ((made.x - mean).norm() / mean.norm()).item(),
        ((OPERATOR(made.x) - y).norm() / y.norm()).item(),
        made,
    )


def test_the_sinogram_is_that_of_another_implementation():
    image = resize(shepp_logan_phantom(), (64, 64), anti_aliasing=True)
    ours = Radon(64, 30)(torch.from_numpy(image)[None, None])[0, 0].numpy()
    theirs = radon(image, theta=np.arange(30) * 6.0, circle=True).T
    assert np.linalg.norm(ours - theirs) < 0.01 * np.linalg.norm(theirs)
    assert np.allclose(
        ours.sum(1), image.sum(), rtol=1e-6
    )  # nothing of the phantom lies beyond the detectors


@pytest.mark.parametrize(("size", "angles"), [(8, 6), (9, 5), (1, 1)])
def test_the_radon_transform_passes_the_adjoint_test(size, angles):
    require_adjoint(Radon(size, angles), (2, size, size))
    with pytest.raises(ValueError, match=f"takes {size} x {size} values"):
        Radon(size, angles)(torch.zeros(1, 1, size + 1, size))


def test_the_gradient_of_the_radon_transform_is_its_adjoint_and_copies_are_the_same():
    operator, x = Radon(5, 3), torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(operator, x)
    torch.autograd.gradgradcheck(lambda x: operator(x**2), x)
    for copied in (copy.deepcopy(operator), pickle.loads(pickle.dumps(operator))):
        assert torch.equal(copied(x), operator(x))


def test_without_noise_it_comes_near_the_posterior_mean():
    distance, residual, _ = restored(steps=100, gamma=50, cg_steps=40, eta=0.0)
    assert distance < 0.05  # what 100 steps leave: 0.033
    assert residual < 1e-3


def test_the_data_are_met_the_better_the_larger_gamma():
    residuals = [restored(gamma=gamma, cg_steps=40)[1] for gamma in (0.05, 0.5, 5, 50)]
    assert all(b < a / 2 for a, b in pairwise(residuals))


def test_with_noise_a_large_gamma_fits_it():
    """DDS keeps gamma whatever the noise: its fixed point is not the posterior mean."""
    distances = [restored(sigma=0.5, gamma=gamma)[0] for gamma in (0.1, 5, 50)]
    assert distances[0] < 0.35 < distances[1] < distances[2]


class Followed(DenoiserBase, wraps=True):
    """Notes whether gradients are recorded."""

    def __init__(self):
        self.schedule, self.event_shape, self.recorded = MODEL.schedule, MODEL.event_shape, []

    def __call__(self, x_t, t, cond=None):
        self.recorded.append(torch.is_grad_enabled())
        return MODEL(x_t, t)


def test_one_evaluation_for_each_time_and_no_gradient():
    model = Followed()
    observation = Observation(OPERATOR(X), OPERATOR, GaussianNoise(0.0))
    made = DDS(UniformGrid(7))(observation, model, streams=ImageStreams(range(COUNT)), keep=3)
    assert made.nfe == 7
    assert model.recorded == [False] * 7
    assert len(made.trajectory) == 3
    assert torch.equal(made.trajectory[-1], made.x)


def test_a_seed_names_a_result_whatever_the_batch():
    observation = Observation(OPERATOR(X), OPERATOR, GaussianNoise(0.0))
    whole = DDS(UniformGrid(5))(observation, MODEL, streams=ImageStreams(range(COUNT))).x
    part = Observation(OPERATOR(X)[3:5], OPERATOR, GaussianNoise(0.0))
    torch.testing.assert_close(DDS(UniformGrid(5))(part, MODEL, streams=ImageStreams([3, 4])).x, whole[3:5])


class Squared(Operator):
    def __call__(self, x):
        return x**2


def test_what_it_cannot_serve_is_refused():
    dds, streams = DDS(UniformGrid(3)), ImageStreams([0])
    with pytest.raises(ValueError, match="Squared is no LinearOperator"):
        dds(Observation(X[:1], Squared(), GaussianNoise(0.1)), MODEL, streams=streams)
    with pytest.raises(
        ValueError, match=r"y has samples of shape \(1, 6, 8\), but Identity makes \(1, 8, 8\)"
    ):
        dds(Observation(OPERATOR(X[:1]), Identity(), GaussianNoise(0.1)), MODEL, streams=streams)
    with pytest.raises(ValueError, match="needs a model"):
        dds(Observation(X[:1], Identity(), GaussianNoise(0.1)), streams=streams)
    with pytest.raises(ValueError, match="2 observations for 1 seeds"):
        dds(Observation(OPERATOR(X[:2]), OPERATOR, GaussianNoise(0.1)), MODEL, streams=streams)
    with pytest.raises(ValueError, match="y holds values that are not finite"):
        dds(Observation(OPERATOR(X[:1]) * float("nan"), OPERATOR, GaussianNoise(0.1)), MODEL, streams=streams)


def test_two_steps_by_hand():
    """Dense solves in the place of conjugate gradients, the noise drawn in the same order."""
    y, grid, gamma, eta = OPERATOR(X), UniformGrid(2), 3.0, 0.6
    streams, schedule = ImageStreams(range(COUNT)), MODEL.schedule
    system = torch.eye(N * N, dtype=torch.float64) + gamma * MATRIX.T @ MATRIX
    x_t = schedule.prior_std * streams.normal(X)
    times = grid(schedule).tolist()
    for i, t in enumerate(times):
        alpha, sigma = schedule.at(t)
        x0_hat = MODEL(x_t, torch.full((COUNT,), t, dtype=torch.float64))
        right = x0_hat + gamma * OPERATOR.adjoint(y)
        x0 = torch.linalg.solve(system, right.flatten(1).T).T.reshape(X.shape)
        if i + 1 < len(times):
            alpha_s, sigma_s = schedule.at(times[i + 1])
            eps = (x_t - alpha * x0_hat) / sigma
            x_t = alpha_s * x0 + sigma_s * ((1 - eta**2) ** 0.5 * eps + eta * streams.normal(X))
    made = DDS(grid, gamma=gamma, cg_steps=64, eta=eta)(
        Observation(y, OPERATOR, GaussianNoise(0.0)), MODEL, streams=ImageStreams(range(COUNT))
    )
    torch.testing.assert_close(made.x, x0, rtol=1e-8, atol=1e-8)
