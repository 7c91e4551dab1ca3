"""Frechet distance: closed forms, any rank, equal to the published route by the matrix square root."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from scoreexp.metrics import FeatureStatistics, frechet_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size, seed, rank=None):
    a = normal(size, rank or size, seed=seed)
    return a @ a.T


def test_diagonal_gaussians():
    """W_2^2 = |m1 - m2|^2 + sum (sqrt a - sqrt b)^2, singular ones included."""
    a, b = torch.tensor([4.0, 9.0, 0.0]), torch.tensor([1.0, 16.0, 25.0])
    m1, m2 = torch.zeros(3), torch.tensor([1.0, 2.0, 2.0])
    assert frechet_distance(m1, a.diag(), m2, b.diag()).item() == pytest.approx(9 + 1 + 1 + 25, rel=1e-14)


def test_two_dimensions_without_common_axes():
    """tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)) for 2 x 2 matrices."""
    a, b = covariance(2, 0), covariance(2, 1)
    root = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float((a @ b).det())))
    expected = float(a.trace() + b.trace()) - 2 * root
    zero = torch.zeros(2)
    assert frechet_distance(zero, a, zero, b).item() == pytest.approx(expected, rel=1e-12)


def test_a_rank_one_covariance_against_any():
    """C1 = u u^T: the root of C1^1/2 C2 C1^1/2 has the one eigenvalue sqrt(u^T C2 u)."""
    u, c2, zero = normal(30), covariance(30, 1), torch.zeros(30)
    expected = float(u @ u + c2.trace() - 2 * (u @ c2 @ u).sqrt())
    assert frechet_distance(zero, torch.outer(u, u), zero, c2).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [5, 60])
def test_equal_to_the_root_of_the_product(size):
    m1, m2, a, b = normal(size), normal(size, seed=1), covariance(size, 2), covariance(size, 3)
    root = np.real(np.trace(sqrtm((a @ b).numpy())))
    expected = float((m1 - m2).square().sum() + a.trace() + b.trace()) - 2 * root
    assert frechet_distance(m1, a, m2, b).item() == pytest.approx(expected, rel=1e-9)


def test_zero_for_equal_ones_of_any_rank_and_symmetric():
    for rank in (1, 20, 40):
        c, m = covariance(40, 0, rank), normal(40)
        assert frechet_distance(m, c, m, c).item() < 1e-11 * float(c.trace())
    low, full, zero = covariance(40, 0, 7), covariance(40, 1), torch.zeros(40)
    there, back = frechet_distance(zero, low, zero, full), frechet_distance(zero, full, zero, low)
    assert there.item() == pytest.approx(back.item(), rel=1e-12)


def test_bad_moments_are_refused():
    c, m = torch.eye(3), torch.zeros(3)
    with pytest.raises(ValueError, match="of one extractor"):
        frechet_distance(m, c, torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(m, c * float("nan"), m, c)


def test_statistics_of_parts_add_up_to_numpy_s():
    features = (5 + 0.1 * normal(50, 4)).float()
    statistics = sum(
        map(FeatureStatistics.of, features.split([10, 1, 39])), FeatureStatistics.of(features[:0])
    )
    wide = features.double().numpy()
    assert statistics.count == 50
    np.testing.assert_allclose(statistics.mean, wide.mean(0), rtol=1e-13)
    # Sums of squares near 25 lose log10(25 / 0.01) = 3.4 of 16 digits where 0.01 is left of them.
    np.testing.assert_allclose(statistics.covariance, np.cov(wide.T), rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="at least 2"):
        _ = FeatureStatistics.of(features[:1]).covariance


def test_distance_of_samples_approaches_that_of_their_distributions():
    """N(0, I) and N(v, 4 I) in 3 dimensions: |v|^2 + 3."""
    n, v = 40_000, torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    x, y = normal(n, 3), v + 2 * normal(n, 3, seed=1)
    found = FeatureStatistics.of(x).frechet_distance(FeatureStatistics.of(y)).item()
    # The mean's part 9 has the deviation 2 |v| sqrt((1 + 4)/n), the covariance's part 3 a smaller one.
    assert found == pytest.approx(12, abs=4 * (6 + 3) * math.sqrt(5 / n))
