"""Noise models against conjugate posteriors, exact expectations and other implementations of the same law."""

import math

import pytest
import scipy.stats
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    PoissonGaussianNoise,
    PoissonNoise,
)


def test_counts_and_speckle_have_the_densities_of_scipy():
    x = torch.tensor([[-0.5, 0.2, 0.9]], dtype=torch.float64)
    u = ((x + 1) / 2).numpy()
    counts = torch.tensor([[3.0, 0.0, 25.0]], dtype=torch.float64)
    found = PoissonNoise(20.0).log_likelihood(2 * counts / 20 - 1, x)
    assert float(found) == pytest.approx(scipy.stats.poisson(20 * u).logpmf(counts.numpy()).sum(), rel=1e-12)
    y = torch.tensor([[-0.7, 0.5, 1.4]], dtype=torch.float64)
    law = scipy.stats.gamma(a=3.0, scale=u / 3.0)
    expected = (law.logpdf(((y + 1) / 2).numpy()) - math.log(2)).sum()
    assert float(GammaNoise(3.0).log_likelihood(y, x)) == pytest.approx(expected, rel=1e-12)


def test_the_density_of_photons_and_reading_noise_is_a_sum_over_counts():
    noise, x = PoissonGaussianNoise(5.0, 0.1), torch.tensor([[0.3]], dtype=torch.float64)
    grid = torch.linspace(-2, 8, 40001, dtype=torch.float64)
    density = torch.stack([noise.log_likelihood(y.reshape(1, 1), x) for y in grid[::10]]).exp()[:, 0]
    step = float(grid[10] - grid[0])
    assert float(density.sum() * step) == pytest.approx(1, abs=1e-3)
    assert float((density * grid[::10]).sum() * step) == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(("photons", "rate"), [(30.0, 500.0), (500.0, 30.0), (-5.0, 2.0)])
def test_the_density_of_photons_and_reading_noise_holds_far_from_the_data(photons, rate):
    """Where a restorer begins: the counts that matter lie between what is seen and what is expected."""
    noise, s = PoissonGaussianNoise(1000.0, 0.02), 10.0
    n = torch.arange(2000.0, dtype=torch.float64)
    law = torch.from_numpy(
        scipy.stats.poisson(rate).logpmf(n.numpy()) + scipy.stats.norm(n, s).logpdf(photons)
    )
    y, x = (torch.full((1, 1), 2 * m / 1000 - 1, dtype=torch.float64) for m in (photons, rate))
    found = noise.log_likelihood(y, x)
    assert float(found) == pytest.approx(float(law.logsumexp(0)) + math.log(500.0), rel=1e-9)


@pytest.mark.parametrize("noise", [GaussianNoise(0.3), PoissonGaussianNoise(200.0, 0.3)])
def test_the_posterior_mean_adds_the_variance_times_the_score(noise):
    y, score = torch.tensor([[0.2, -0.4]], dtype=torch.float64), torch.tensor([[1.5, -0.5]]).double()
    torch.testing.assert_close(noise.posterior_mean(y, score), y + noise.variance(y) * score)


def test_black_pixels_have_a_likelihood():
    black = -torch.ones(1, 4)
    assert GammaNoise(3.0).log_likelihood(black, black).isfinite().all()
    assert GammaNoise(0.5).log_likelihood(black, torch.zeros(1, 4)).isfinite().all()
    assert PoissonGaussianNoise(5.0, 0.1).log_likelihood(black, black).isfinite().all()


def test_the_formula_for_counts_is_near_the_posterior_mean_of_a_gamma_prior():
    """lambda ~ Gamma(a, 1 / b): the posterior mean is (n + a) / (1 + b), which Robbins' formula gives exactly."""
    a, b, peak = 4.0, 0.25, 40.0
    n = torch.arange(1.0, 60.0, dtype=torch.float64)
    exact = (n + a) / (1 + b)

    def log_marginal(n):
        return torch.lgamma(n + a) - torch.lgamma(n + 1) + n * math.log(1 / (1 + b))

    robbins = (n + 1) * (log_marginal(n + 1) - log_marginal(n)).exp()
    torch.testing.assert_close(robbins, exact, rtol=1e-10, atol=1e-10)
    m = n.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_marginal(m).sum(), m)
    y, score = 2 * n / peak - 1, slope * peak / 2
    found = peak * (PoissonNoise(peak).posterior_mean(y, score) + 1) / 2
    linear = n + n * slope  # of other libraries
    weights = (log_marginal(n) - log_marginal(n).logsumexp(0)).exp()
    errors = [
        float((weights * (e - exact) ** 2).sum().sqrt() / (weights * exact).sum()) for e in (found, linear, n)
    ]
    assert errors[0] < 0.05 < 2 * errors[1]
    assert errors[0] < errors[1] < errors[2]


def test_the_formula_for_speckle_is_the_harmonic_posterior_mean_and_not_the_mean():
    """1 / u ~ Gamma(a, 1 / b) is conjugate: 1 / u given v ~ Gamma(a + L, 1 / (b + L v))."""
    a, b, looks = 3.0, 1.5, 4.0
    v = torch.linspace(0.05, 2.0, 40, dtype=torch.float64).requires_grad_()
    log_marginal = (looks - 1) * v.log() - (a + looks) * (b + looks * v).log()
    (slope,) = torch.autograd.grad(log_marginal.sum(), v)
    v = v.detach()
    found = (GammaNoise(looks).posterior_mean(2 * v - 1, slope / 2) + 1) / 2
    harmonic = (b + looks * v) / (a + looks)
    mean = (b + looks * v) / (a + looks - 1)
    torch.testing.assert_close(found, harmonic, rtol=1e-12, atol=1e-12)
    assert ((found - mean).abs() > 0.1 * mean).all()


@pytest.mark.parametrize(("peak", "sigma"), [(1.0, 0.0), (30.0, 0.05), (4.0, 0.5), (2000.0, 0.001)])
def test_the_inverse_is_unbiased_for_every_count_and_the_algebraic_one_is_not(peak, sigma):
    noise, s = PoissonGaussianNoise(peak, sigma), peak * sigma / 2
    u = torch.tensor([0.02, 0.1, 0.4, 0.8, 1.2], dtype=torch.float64)
    nodes = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    weights = torch.exp(-(nodes**2) / 2) / torch.exp(-(nodes**2) / 2).sum()
    n = torch.arange(int(peak * 1.2 + 15 * math.sqrt(peak * 1.2) + 30), dtype=torch.float64)
    law = torch.from_numpy(scipy.stats.poisson(peak * u.numpy()[:, None]).pmf(n.numpy()))
    expected = law @ (noise.stabilise(2 * (n[:, None] + s * nodes) / peak - 1) * weights).sum(1)
    torch.testing.assert_close(peak * (noise.unstabilise(expected) + 1) / 2, peak * u, rtol=2e-3, atol=5e-3)
    algebraic = (expected / 2) ** 2 - 0.375 - s**2
    bias = algebraic - peak * u
    assert ((bias > -0.35) & (bias < 0)).all()
    if peak > 20:
        assert float(bias[-1]) == pytest.approx(-0.25, abs=0.03)


def test_correlated_noise_has_its_covariance_and_gives_the_wiener_filter():
    noise, side, n = CorrelatedNoise(0.3, 1.0), 16, 3000
    y = noise.sample(torch.zeros(n, 1, side, side, dtype=torch.float64), ImageStreams(range(n)))
    for shift in (0, 1, 2):
        expected = 0.09 * math.exp(-(shift**2) / 4)
        assert float((y * y.roll(shift, -1)).mean()) == pytest.approx(expected, abs=0.002)
    signal = CorrelatedNoise(0.5, 3.0).spectrum(y)  # a stationary prior of mean 0
    total = signal + noise.spectrum(y)
    score = -torch.fft.ifft2(torch.fft.fft2(y) / total).real
    wiener = torch.fft.ifft2(torch.fft.fft2(y) * signal / total).real
    torch.testing.assert_close(noise.posterior_mean(y, score), wiener, rtol=1e-9, atol=1e-9)


def test_the_density_of_correlated_noise_is_that_of_the_dense_covariance():
    noise = CorrelatedNoise(0.3, 0.7)
    unit = torch.eye(24, dtype=torch.float64).reshape(24, 1, 4, 6)
    covariance = torch.fft.ifft2(torch.fft.fft2(unit) * noise.spectrum(unit)).real.flatten(1)
    y = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(torch.zeros(24, dtype=torch.float64), covariance)
    torch.testing.assert_close(
        noise.log_likelihood(y, torch.zeros_like(y)), law.log_prob(y.flatten(1)), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PoissonNoise(0.0), "peak=0"),
        (lambda: PoissonGaussianNoise(3.0, -1.0), "sigma=-1"),
        (lambda: GammaNoise(-2.0), "looks=-2"),
        (lambda: CorrelatedNoise(0.1, 0.0), "length=0"),
        (lambda: CorrelatedNoise(0.1).sample(torch.zeros(3, 5), ImageStreams([0, 1, 2])), "is for images"),
        (lambda: PoissonNoise(3.0).variance(torch.full((1, 1), -1.5)), "for values of x >= -1"),
        (
            lambda: CorrelatedNoise(0.1, 9.0).log_likelihood(
                torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)
            ),
            "no density",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
