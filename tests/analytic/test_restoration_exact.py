"""The exact answers that docs/restoration.md measures restorers against, by quadrature and by another route."""

import pytest
import torch

exact = pytest.importorskip("benchmarks.restoration_exact", reason="benchmarks are not part of the package")
restoration = pytest.importorskip("benchmarks.restoration")

PLANE = exact.Mixture(
    torch.tensor([0.6, 0.4], dtype=torch.float64),
    torch.tensor([[0.5, -0.2], [-0.6, 0.4]], dtype=torch.float64),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]]], dtype=torch.float64),
)


def density(mixture, x):
    parts = [
        w * torch.distributions.MultivariateNormal(m, c).log_prob(x).exp()
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances)
    ]
    return torch.stack(parts).sum(0)


def test_the_posterior_of_a_mixture_is_that_of_quadrature():
    a, y, variance = torch.tensor([[1.0, 0.7]], dtype=torch.float64), 0.1, 0.09
    line = torch.linspace(-4, 4, 801, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    weights = density(PLANE, x) * torch.exp(-((y - x @ a[0]) ** 2) / (2 * variance))
    weights = weights / weights.sum()
    mean = weights @ x
    trace = float(weights @ (x - mean).square().sum(1))
    found = PLANE.posterior(
        a, torch.tensor([y], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64)
    )
    torch.testing.assert_close(found.mean, mean, rtol=1e-8, atol=1e-8)
    assert found.trace == pytest.approx(trace, rel=1e-8)


@pytest.mark.parametrize("prior", exact.PRIORS)
def test_the_control_is_the_denoiser_of_the_posterior(prior):
    """Given x_t and y at once, as one observation of the prior."""
    made, operator = exact.PRIORS[prior](), exact.OPERATORS["reduction"]
    a = exact.dense(operator, exact.SHAPE)
    noise = torch.full((len(a),), exact.SIGMA**2, dtype=torch.float64)
    x = made.model.oracle.sample(2, torch.Generator().manual_seed(0))
    y, t = operator(x).flatten(1), 0.4
    alpha, sigma = exact.Posterior.schedule.at(t)
    x_t = (alpha * x + sigma).repeat_interleave(exact.SEEDS, 0)
    control = exact.Posterior([made.exact.posterior(a, one, noise) for one in y])
    found = control(x_t, torch.full((len(x_t),), t, dtype=torch.float64))
    for i in range(2):
        both = made.exact.posterior(
            torch.cat([a, alpha * exact.EYE]),
            torch.cat([y[i], x_t[i * exact.SEEDS].flatten()]),
            torch.cat([noise, torch.full((len(exact.EYE),), sigma**2, dtype=torch.float64)]),
        )
        torch.testing.assert_close(found[i * exact.SEEDS].flatten(), both.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            found[(i + 1) * exact.SEEDS - 1].flatten(), both.mean, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("prior", exact.PRIORS)
def test_both_forms_of_a_prior_are_one(prior):
    """The oracle's denoiser and the exact posterior under the identity."""
    made = exact.PRIORS[prior]()
    x = made.model.oracle.sample(3, torch.Generator().manual_seed(0))
    variance = torch.full((exact.SIDE**2,), 0.25, dtype=torch.float64)
    found = torch.stack([made.exact.posterior(exact.EYE, one.flatten(), variance).mean for one in x])
    one, half = torch.ones(3, dtype=torch.float64), torch.full((3,), 0.5, dtype=torch.float64)
    expected = made.model.oracle.posterior_mean(x, one, half)
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-8, atol=1e-8)


def test_a_distance_leaves_out_what_is_random():
    """Means of draws of one law are at distance 0, those of two laws at the distance of their means."""
    unit, shift = torch.full((exact.OBSERVATIONS,), 2.0), torch.zeros(9, dtype=torch.float64)
    shift[0] = 3.0
    random = torch.Generator().manual_seed(0)

    def draws(moved):
        x = torch.randn(exact.OBSERVATIONS, exact.SEEDS, 9, generator=random, dtype=torch.float64) + moved
        return exact.Draws(x.mean(1), torch.stack([one.T.cov() for one in x]))

    value, resolution = exact.distance(draws(0), draws(0), unit)
    assert value < resolution < 0.4
    value, _ = exact.distance(draws(0), draws(shift), unit)
    assert value == pytest.approx(3 / 2**0.5, rel=0.1)
