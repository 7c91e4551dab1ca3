"""Distances between sets of samples: exact in closed cases, unbiased where they say so, blind to nothing they measure."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from scoreexp.core.streams import generator as stream
from scoreexp.metrics import (
    distribution,
    gaussian_kernel,
    kid,
    median,
    median_distance,
    memorisation,
    mmd,
    nearest_neighbours,
    polynomial_kernel,
    precision_recall,
    sliced_wasserstein,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- sliced Wasserstein -----------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(37, 53), (40, 40), (1, 7), (12, 8)])
def test_on_a_line_it_is_the_wasserstein_distance(n, m):
    x, y = normal(n, 1), 0.3 + 2 * normal(m, 1, seed=1)
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, projections=3).item() == pytest.approx(expected, rel=1e-12)


def test_unequal_sizes_are_exact_for_the_square():
    """Every sample repeated 5 and 3 times is the same pair of distributions with equal sizes."""
    x, y = normal(3, 1), normal(5, 1, seed=1)
    u, v = x.repeat_interleave(5, 0).sort(0).values, y.repeat_interleave(3, 0).sort(0).values
    expected = (u - v).square().mean().sqrt().item()
    assert sliced_wasserstein(x, y, projections=2).item() == pytest.approx(expected, rel=1e-12)


def test_a_shift_is_seen_by_its_projections():
    """SW^2 of a shift by v is the mean of (theta.v)^2, |v|^2/d; for d = 2 its relative deviation is sqrt(1/2)."""
    x = normal(50, 2)
    found = sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), projections=4096).square().item()
    assert found == pytest.approx(25 / 2, rel=5 * math.sqrt(0.5 / 4096))


def test_a_rotation_round_the_mean_is_seen_in_the_plane():
    x = normal(400, 2) * torch.tensor([3.0, 0.1])
    assert sliced_wasserstein(x, x.flip(1)) > 1
    assert sliced_wasserstein(x, x[torch.randperm(400, generator=torch.Generator().manual_seed(0))]) == 0


def test_lines_are_fixed_unless_a_generator_is_given():
    x, y = normal(20, 3, 4, 4), normal(30, 3, 4, 4, seed=1)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    drawn = [sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_single_precision_is_widened_and_a_metric_in_the_unit_of_the_samples():
    x, y = normal(20, 5).float(), normal(30, 5, seed=1)
    value = sliced_wasserstein(x, y)
    assert value.dtype == torch.float64
    torch.testing.assert_close(sliced_wasserstein(10 * x, 10 * y), 10 * value)
    torch.testing.assert_close(sliced_wasserstein(y, x), value)


# -- MMD and KID ------------------------------------------------------------------------------------


def mmd_by_definition(x, y, kernel, unbiased):
    n, m = len(x), len(y)
    xx, yy, xy = (np.array([[kernel(u, v) for v in b] for u in a]) for a, b in ((x, x), (y, y), (x, y)))
    if unbiased:
        np.fill_diagonal(xx, 0)
        np.fill_diagonal(yy, 0)
        return xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * xy.mean()
    return xx.mean() + yy.mean() - 2 * xy.mean()


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("block", [4, 1024])
def test_mmd_by_its_definition(unbiased, block, monkeypatch):
    monkeypatch.setattr(distribution, "_BLOCK", block)
    x, y = normal(9, 3), 0.5 + normal(6, 3, seed=1)
    plain_kernels = (
        (gaussian_kernel(0.7), lambda u, v: np.exp(-np.sum((u - v) ** 2) / (2 * 0.7**2))),
        (polynomial_kernel(3), lambda u, v: (u @ v / 3 + 1) ** 3),
    )
    for kernel, plain in plain_kernels:
        expected = mmd_by_definition(x.numpy(), y.numpy(), plain, unbiased)
        assert mmd(x, y, kernel=kernel, unbiased=unbiased).item() == pytest.approx(expected, abs=1e-12)


def test_unbiased_mmd_is_zero_on_average_and_the_biased_one_is_not():
    kernel = gaussian_kernel(1.0)
    both = torch.tensor([
        [mmd(normal(10, 2, seed=2 * s), normal(12, 2, seed=2 * s + 1), kernel=kernel, unbiased=u) for u in (True, False)]
        for s in range(200)
    ])  # fmt: skip
    mean, error = both.mean(0), both.std(0) / math.sqrt(200)
    assert abs(mean[0]) < 4 * error[0]
    assert mean[1] > 20 * error[1]
    assert mmd(normal(10, 2), normal(10, 2), kernel=kernel, unbiased=False).abs() < 1e-12


def test_median_heuristic():
    x = torch.tensor([[0.0], [1.0]])
    y = torch.tensor([[3.0], [7.0]])  # distances 1 2 3 4 6 7
    assert median_distance(x, y) == 3.5
    assert mmd(x, y) == mmd(x, y, kernel=gaussian_kernel(3.5))
    with pytest.raises(ValueError, match="median distance is 0"):
        mmd(torch.ones(5, 2), torch.ones(4, 2))


def test_kid_over_subsets_and_over_all():
    x, y = normal(60, 8), 0.2 + normal(50, 8, seed=1)
    everything = kid(x[:50], y)
    assert everything.mean.item() == pytest.approx(
        mmd(x[:50], y, kernel=polynomial_kernel(3)).item(), rel=1e-12
    )
    assert everything.std.isnan()
    subsets = kid(x, y, subsets=400, subset_size=20)
    whole = mmd(x, y, kernel=polynomial_kernel(3)).item()
    # Subsets of one sample share pictures, so their mean is nearer to the whole than independent ones would be.
    assert abs(subsets.mean.item() - whole) < 4 * subsets.std.item() / math.sqrt(400)
    assert kid(x, y).mean == kid(x, y).mean


# -- neighbours -------------------------------------------------------------------------------------


def test_nearest_neighbours_by_brute_force(monkeypatch):
    monkeypatch.setattr(distribution, "_BLOCK", 5)
    x, y = normal(13, 2, 3), normal(17, 2, 3, seed=1)
    distance = (x[:, None] - y[None]).flatten(2).norm(dim=2)
    expected = distance.sort(1)
    found = nearest_neighbours(x, y, k=4)
    torch.testing.assert_close(found.distance, expected.values[:, :4])
    assert torch.equal(found.position, expected.indices[:, :4])


def test_copies_are_found():
    train = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    held_out = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    fresh = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    copies = train[[4, 11, 7]]
    found = memorisation(torch.cat([copies, fresh]), train, held_out)
    assert found.distance[:3].eq(0).all()  # exactly, in spite of matrix products
    assert found.position[:3].tolist() == [4, 11, 7]
    assert found.ratio[:3].eq(0).all()
    assert found.share.item() == pytest.approx(3 / 23)
    assert found.relative[:3].eq(0).all()
    assert found.relative[3:].median().item() == pytest.approx(1, abs=0.05)  # as far as held-out ones
    assert memorisation(held_out, train).relative is None
    blend = memorisation(0.9 * train[:1] + 0.1 * fresh[:1], train, held_out)
    assert blend.share == 1
    assert blend.relative.item() == pytest.approx(
        0.1, rel=0.3
    )  # a tenth of the way between unrelated pictures
    with pytest.raises(ValueError, match="needs at least 2"):
        memorisation(fresh, train[:1])


def test_precision_and_recall_of_one_mode_of_two():
    real = torch.cat([normal(100, 4), 50 + normal(100, 4, seed=1)])
    one_mode = normal(100, 4, seed=2)
    both = torch.cat([normal(100, 4, seed=3), 50 + normal(100, 4, seed=4)])
    far = 1000 + normal(100, 4, seed=5)
    found = precision_recall(one_mode, real)
    assert found.precision > 0.8
    assert 0.4 < found.recall < 0.5
    assert min(precision_recall(both, real)) > 0.8
    assert max(precision_recall(far, real)) == 0
    assert min(precision_recall(real, real)) == 1


def test_precision_by_its_definition():
    generated, real = 1.5 * normal(200, 2), normal(40, 2, seed=1)  # many near the border
    radius = (real[:, None] - real[None]).norm(dim=2).sort(1).values[:, 2]
    inside = ((generated[:, None] - real[None]).norm(dim=2) <= radius).any(1)
    assert precision_recall(generated, real, k=2).precision == inside.double().mean()
    assert precision_recall(real, generated, k=2).recall == inside.double().mean()


def exact_overlap(generated, real, k=3):
    """Precision and recall by differences in numpy."""

    def share(x, manifold):
        own = np.linalg.norm(manifold[:, None] - manifold[None], axis=2)
        radius = np.sort(own, axis=1)[:, k]
        return (np.linalg.norm(x[:, None] - manifold[None], axis=2) <= radius).any(1).mean()

    generated, real = (v.flatten(1).double().numpy() for v in (generated, real))
    return share(generated, real), share(real, generated)


def pixels(n, seed):
    """Random 8-bit images in [0, 1]."""
    values = torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
    return values.float() / 255


@pytest.mark.parametrize(
    ("generated", "real", "expected"),
    [
        (pixels(200, 0)[:1].expand(60, 3, 8, 8), pixels(200, 0), (1, 1 / 200)),  # collapsed to one real image
        (pixels(50, 1), pixels(50, 1).repeat(4, 1, 1, 1), (1, 1)),  # each real image held four times
        (pixels(40, 2).repeat(5, 1, 1, 1), pixels(40, 2), (1, 1)),  # each generated five times
    ],
)
def test_copies_lie_inside_the_manifold(generated, real, expected):
    assert tuple(map(float, precision_recall(generated, real))) == expected
    assert exact_overlap(generated, real) == expected


def test_half_memorised():
    real = pixels(120, 3)
    generated = torch.cat([real[:60], real[:20].repeat(2, 1, 1, 1), (real[60:] + pixels(60, 4)) / 2])
    found = precision_recall(generated, real)
    assert tuple(map(float, found)) == pytest.approx(exact_overlap(generated, real), abs=1e-12)


def test_copies_among_features():
    """Features through random weights, some of which are 0, of a real set that holds one image ten times."""
    weights = normal(192, 2048, seed=5).float()
    images = torch.cat([pixels(60, 6), pixels(1, 7).expand(10, 3, 8, 8)])
    real = (images.flatten(1) @ weights).relu()
    generated = real[-1:].expand(20, 2048)
    found = precision_recall(generated, real)
    assert found.precision == 1
    assert tuple(map(float, found)) == exact_overlap(generated, real)


def test_of_equally_near_ones_the_first_is_named_whatever_the_rest():
    y = torch.cat([pixels(30, 8), pixels(30, 8)])
    near = nearest_neighbours(pixels(30, 8), y, k=2)
    assert near.distance.eq(0).all()
    assert near.position.tolist() == [[i, i + 30] for i in range(30)]


def test_the_deviation_over_subsets_has_their_number_as_divisor():
    x, y = normal(20, 3), normal(20, 3, seed=1)
    found = kid(x, y, subsets=7, subset_size=8)
    generator = stream("kid", 20, 20)
    values = []
    for _ in range(7):
        one, other = (v[torch.randperm(20, generator=generator)[:8]] for v in (x, y))
        values.append(mmd(one, other, kernel=polynomial_kernel(3)).item())
    assert found.std.item() == pytest.approx(np.std(values), rel=1e-9)
    assert found.mean.item() == pytest.approx(np.mean(values), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_median_of_odd_and_even_numbers(n):
    x = normal(n, 1, seed=9)
    assert median(x).item() == pytest.approx(np.median(x.numpy()), rel=1e-15)
    held_out, train = normal(n, 3, seed=10), normal(9, 3, seed=11)
    relative = memorisation(held_out, train, held_out).relative
    assert np.median(relative.numpy()) == pytest.approx(1, rel=1e-12)


# -- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [sliced_wasserstein, mmd, kid, nearest_neighbours, memorisation, precision_recall, median_distance],
)
def test_unlike_sets_are_refused(function):
    with pytest.raises(ValueError, match="same event shape"):
        function(torch.rand(5, 3), torch.rand(5, 4))
    with pytest.raises(ValueError, match="at least one of each"):
        function(torch.rand(0, 3), torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"uint8.*divided by 255"):
        function(torch.zeros(5, 3, dtype=torch.uint8), torch.rand(5, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: mmd(x[:1], x), "at least 2 of each"),
        (lambda x: kid(x, x, subset_size=6), "subset_size=6"),
        (lambda x: nearest_neighbours(x, x, k=6), "k=6"),
        (lambda x: precision_recall(x, x, k=5), "k=5"),
    ],
)
def test_arguments_outside_their_domain(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.rand(5, 3))
