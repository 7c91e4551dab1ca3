"""Oracles against torch's distributions, autograd, quadrature and each other."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture

B = 6
ALPHA = torch.tensor([1.0, 0.9, 0.5, 0.1, 1.0, 0.01], dtype=torch.float64)
SIGMA = torch.tensor([0.05, 0.4, 0.9, 1.0, 10.0, 1.0], dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_gaussian():
    root = randn(3, 3, seed=1)
    return Gaussian(randn(3, seed=2), root @ root.T)


def oracles():
    image = (3, 4, 4)
    return {
        "full gaussian": full_gaussian(),
        "diagonal gaussian": Gaussian(randn(*image), randn(*image, seed=1).square()),
        "isotropic mixture": GaussianMixture(torch.tensor([1.0, 2.0]), randn(2, 2), torch.tensor([0.1, 0.5])),
        "diagonal mixture": GaussianMixture(
            torch.tensor([1.0, 2.0, 0.0]), randn(3, *image), randn(3, *image, seed=4).square()
        ),
        "empirical": EmpiricalImages(randn(5, *image), chunk_size=2),
    }


every_oracle = pytest.mark.parametrize("oracle", oracles().values(), ids=oracles().keys())


def noisy(oracle, seed=7):
    clean = oracle.sample(B, torch.Generator().manual_seed(seed))
    shape = (B, *(1,) * len(oracle.event_shape))
    return ALPHA.reshape(shape) * clean + SIGMA.reshape(shape) * randn(*clean.shape, seed=seed + 1)


@every_oracle
def test_the_score_is_the_gradient_of_the_log_density(oracle):
    x = noisy(oracle).requires_grad_()
    gradient = torch.autograd.grad(oracle.log_prob(x, ALPHA, SIGMA).sum(), x)[0]
    torch.testing.assert_close(oracle.score(x, ALPHA, SIGMA), gradient, rtol=1e-8, atol=1e-9)


@every_oracle
def test_the_posterior_mean_obeys_tweedie(oracle):
    x = noisy(oracle)
    shape = (B, *(1,) * len(oracle.event_shape))
    alpha, sigma = ALPHA.reshape(shape), SIGMA.reshape(shape)
    tweedie = (x + sigma**2 * oracle.score(x, ALPHA, SIGMA)) / alpha
    torch.testing.assert_close(oracle.posterior_mean(x, ALPHA, SIGMA), tweedie, rtol=1e-9, atol=1e-9)


@every_oracle
def test_float32_in_gives_the_rounded_float64_result(oracle):
    x = noisy(oracle).float()
    for function in (oracle.log_prob, oracle.score, oracle.posterior_mean):
        assert torch.equal(function(x, ALPHA, SIGMA), function(x.double(), ALPHA, SIGMA).float())


@every_oracle
def test_another_event_shape_is_refused(oracle):
    with pytest.raises(ValueError, match="must agree"):
        oracle.score(torch.zeros(B, 7), ALPHA, SIGMA)


def test_gaussian_log_density_is_torchs():
    oracle, x = full_gaussian(), randn(B, 3, seed=3)
    root = randn(3, 3, seed=1)
    for i in range(B):
        covariance = ALPHA[i] ** 2 * root @ root.T + SIGMA[i] ** 2 * torch.eye(3)
        expected = MultivariateNormal(ALPHA[i] * randn(3, seed=2), covariance).log_prob(x[i])
        torch.testing.assert_close(oracle.log_prob(x, ALPHA, SIGMA)[i], expected)


def test_a_diagonal_gaussian_is_the_full_one():
    variances, x = torch.tensor([0.2, 1.0, 0.0]), randn(B, 3)
    diagonal, full = Gaussian(randn(3), variances), Gaussian(randn(3), variances.diag())
    for name in ("log_prob", "score", "posterior_mean"):
        torch.testing.assert_close(
            getattr(diagonal, name)(x, ALPHA, SIGMA), getattr(full, name)(x, ALPHA, SIGMA)
        )


@pytest.mark.parametrize("diagonal", [False, True])
def test_mixture_log_density_is_torchs(diagonal):
    weights, means, x = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), randn(3, 2), randn(B, 2, seed=5)
    variances = randn(3, 2, seed=6).square() if diagonal else randn(3, seed=6).square()
    oracle = GaussianMixture(10 * weights, means, variances)
    for i in range(B):
        v = (ALPHA[i] ** 2 * variances + SIGMA[i] ** 2).reshape(3, -1).expand(3, 2)
        components = Independent(Normal(ALPHA[i] * means, v.sqrt()), 1)
        expected = MixtureSameFamily(Categorical(weights), components).log_prob(x[i])
        torch.testing.assert_close(oracle.log_prob(x, ALPHA, SIGMA)[i], expected)


def test_posterior_mean_by_quadrature():
    oracle = GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [0.5]]), torch.tensor([0.04, 0.09])
    )
    x0 = torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    prior = 0.3 * Normal(-1.0, 0.2).log_prob(x0).exp() + 0.7 * Normal(0.5, 0.3).log_prob(x0).exp()
    for alpha, sigma, x in [(0.8, 0.6, 0.1), (1.0, 0.3, -0.6), (0.2, 1.0, 2.0)]:
        joint = prior * Normal(alpha * x0, sigma).log_prob(torch.tensor(x, dtype=torch.float64)).exp()
        expected = (x0 * joint).sum() / joint.sum()
        mean = oracle.posterior_mean(
            torch.tensor([[x]]).double(), torch.tensor([alpha]), torch.tensor([sigma])
        )
        # prior in float32 weights: the quadrature itself is exact to rounding for smooth, decaying integrands
        torch.testing.assert_close(mean.squeeze(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 1024])
def test_empirical_is_the_mixture_of_points_for_every_chunk_size(chunk_size):
    images = randn(5, 3, 4, 4)
    points = GaussianMixture(torch.ones(5), images, torch.zeros(5))
    oracle, x = EmpiricalImages(images, chunk_size), noisy(points)
    for name in ("log_prob", "score", "posterior_mean"):
        ours, theirs = getattr(oracle, name)(x, ALPHA, SIGMA), getattr(points, name)(x, ALPHA, SIGMA)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_one_image_is_returned_exactly():
    image = randn(1, 3, 8, 8)
    mean = EmpiricalImages(image).posterior_mean(randn(B, 3, 8, 8, seed=1), ALPHA, SIGMA)
    assert torch.equal(mean, image.expand(B, -1, -1, -1))


def test_far_from_all_images_nothing_underflows():
    # every weight exp(-|x - x_i|^2 / 2 sigma^2) is far below the smallest float64
    oracle = EmpiricalImages(randn(4, 3, 8, 8), chunk_size=1)
    nearest = oracle._images[2].reshape(1, 3, 8, 8)
    alpha, sigma = torch.ones(1), torch.full((1,), 1e-3)
    x = nearest + 0.3
    assert torch.equal(oracle.posterior_mean(x, alpha, sigma), nearest)
    residual = -0.5 * (0.3 / sigma.double()) ** 2 * 192 - 192 * (
        sigma.double().log() + 0.5 * math.log(2 * math.pi)
    )
    torch.testing.assert_close(oracle.log_prob(x, alpha, sigma), residual - math.log(4), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["full gaussian", "isotropic mixture"])
def test_samples_have_the_moments_of_the_distribution(name):
    oracle, n = oracles()[name], 40_000
    x = oracle.sample(n, torch.Generator().manual_seed(0))
    if name == "full gaussian":
        root = randn(3, 3, seed=1)
        mean, covariance = randn(3, seed=2), root @ root.T
    else:
        w, m = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), randn(2, 2)
        mean = w @ m
        covariance = (w * torch.tensor([0.1, 0.5])).sum() * torch.eye(2) + (m - mean).T @ (
            w[:, None] * (m - mean)
        )
    products = (x - mean)[:, :, None] * (x - mean)[:, None, :]
    assert ((x.mean(0) - mean).abs() < 4.5 * x.std(0) / math.sqrt(n)).all()
    assert ((products.mean(0) - covariance).abs() < 4.5 * products.std(0) / math.sqrt(n)).all()


def test_empirical_samples_are_the_images_in_equal_shares():
    images, n = randn(4, 3, 2, 2), 4000
    x = EmpiricalImages(images).sample(n, torch.Generator().manual_seed(0))
    hits = (x[:, None] == images).flatten(2).all(2)
    assert (hits.sum(1) == 1).all()
    assert ((hits.double().mean(0) - 0.25).abs() < 4.5 * math.sqrt(0.25 * 0.75 / n)).all()


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), r"shape \(3,\)"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "not symmetric"),
        (lambda: Gaussian(torch.zeros(2), torch.tensor([1.0, -0.5])), "eigenvalue -0.5"),
        (
            lambda: GaussianMixture(torch.ones(3), torch.zeros(2, 2), torch.ones(2)),
            r"weights of shape \(3,\)",
        ),
        (
            lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 2), torch.ones(3)),
            r"variances of shape \(3,\)",
        ),
        (lambda: GaussianMixture(torch.zeros(2), torch.zeros(2, 2), torch.ones(2)), "positive sum"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 2), -torch.ones(2)), "variance is -1"),
        (lambda: EmpiricalImages(torch.zeros(0, 2)), "at least one image"),
        (lambda: EmpiricalImages(torch.tensor([[math.nan]])), "finite"),
        (lambda: EmpiricalImages(torch.zeros(1, 2, dtype=torch.uint8)), "uint8"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
