import warnings

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve
from scipy.stats import gaussian_kde

from scoreexp.numerics.fokker_planck import (
    GeometricDiffusion,
    Grid,
    PicardDivergence,
    Problem,
    ScorePrecomputation,
    Spectral,
    initial_log_density,
    iterate_log_density,
    make_solver,
    mass,
    sample_positions,
    solve_log_density,
)
from scoreexp.numerics.fokker_planck.initial import initial_log_densities

TIMES = np.linspace(0, 0.1, 6)


@pytest.fixture
def image():
    u = np.linspace(0, 1, 16)
    return 0.5 + 0.45 * np.sin(5 * u)[:, None] * np.cos(3 * u)


def test_sampled_kde_replays_given_positions(image):
    positions = sample_positions(image, np.random.default_rng(4))
    assert positions.shape == (2000, 2)
    log_p = initial_log_density(image, "sampled_kde", positions=positions)
    np.testing.assert_array_equal(
        log_p, initial_log_density(image, "sampled_kde", rng=np.random.default_rng(4))
    )
    u = np.arange(16) / 15
    density = gaussian_kde(positions.T)(np.stack(np.meshgrid(u, u, indexing="ij")).reshape(2, -1)).reshape(
        16, 16
    )
    density = np.maximum(density, 1e-10)
    np.testing.assert_allclose(np.exp(log_p), density / (density.sum() / 15**2), rtol=1e-12)


def test_smoothed_is_the_mean_of_the_draws(image):
    # 60 draws of 2000 points, the standard error of their mean measured from the draws. The clipped jitter,
    # left out of the smoothed density, moves border points by 0.4 * 0.01 inwards: 1 % of the density there.
    rng = np.random.default_rng(0)
    draws = np.exp([initial_log_density(image, "sampled_kde", rng=rng) for _ in range(60)])
    error = draws.mean(0) - np.exp(initial_log_density(image))
    allowed = 5 * draws.std(0) / np.sqrt(60) + 0.01 * draws.mean(0)
    assert (abs(error) < allowed).all()


def test_smoothed_follows_the_kernel_definition(image):
    grid = np.stack(np.meshgrid(np.arange(16) / 15, np.arange(16) / 15, indexing="ij")).reshape(2, -1)
    weights = (image + 0.1).ravel() / (image + 0.1).sum()
    centred = grid - (grid * weights).sum(1, keepdims=True)
    covariance = (centred * weights) @ centred.T + 1e-4 * np.eye(2)
    kernel = np.linalg.inv(2000 ** (-1 / 3) * covariance + 1e-4 * np.eye(2))
    offsets = grid[:, :, None] - grid[:, None, :]
    density = np.exp(-np.einsum("aij,ab,bij->ij", offsets, kernel, offsets) / 2) @ weights
    density = (density / density.sum() * 15**2).reshape(16, 16)
    np.testing.assert_allclose(np.exp(initial_log_density(image)), density, rtol=1e-10)


def test_channels_are_averaged_and_normalised(image):
    colour = np.stack([image, image**2, 0.5 * image], axis=-1)
    log_p = initial_log_density(colour)
    np.testing.assert_allclose(log_p, initial_log_density(colour.mean(-1)), rtol=1e-12)
    assert np.exp(log_p).sum() / 15**2 == pytest.approx(1, rel=1e-12)
    wide = initial_log_density(colour[:, :9])
    assert np.exp(wide).sum() / (15 * 8) == pytest.approx(1, rel=1e-12)


def test_black_and_constant_images_are_the_uniform_weight():
    black = initial_log_density(np.zeros((8, 8)))
    np.testing.assert_allclose(initial_log_density(np.ones((8, 8, 3))), black, rtol=1e-12)
    np.testing.assert_allclose(black, black[::-1], rtol=1e-12)
    pairs = initial_log_density(np.full((8, 8), 0.3), "value_pairs")
    assert np.ptp(pairs) == 0


def test_value_pairs_reads_the_density_of_symmetric_value_pairs():
    # Pixels drawn from N(0.5, 0.1^2): pairs (x_ij, x_ji) are independent, so the smoothed density at a pixel
    # is the product Gaussian of variance (1 + n^(-1/3)) 0.01. With 64^2 points the sampling error near the
    # mode is a few percent per pixel, and below 5 % on average over the pixels near the mode.
    image = np.clip(np.random.default_rng(0).normal(0.5, 0.1, (64, 64)), 0, 1)
    log_p = initial_log_density(image, "value_pairs")
    assert log_p.shape == (64, 64)
    np.testing.assert_allclose(log_p, log_p.T, atol=1e-8)
    variance = (1 + image.size ** (-1 / 3)) * 0.01
    radius = (image - 0.5) ** 2 + (image.T - 0.5) ** 2
    expected = -radius / (2 * variance) - np.log(2 * np.pi * variance)
    near = radius < 0.15**2
    assert abs((log_p - expected)[near].mean()) < 0.05
    colour = initial_log_density(np.stack([image, image[::-1]], -1), "value_pairs")
    assert colour.shape == (2, 64, 64)
    np.testing.assert_array_equal(colour[0], log_p)


def test_value_pairs_uses_scotts_bandwidth():
    # Two values at bin centres: four point masses, each smoothed to N(., h^2) with h = 64^(-1/6) std = std / 2. What lies
    # beyond the unit square, two bandwidths away, is reflected: e^-8 of the peak.
    low, high = 16.5 / 64, 47.5 / 64
    image = np.full((8, 8), low)
    image[2:5, 1:6] = high
    bandwidth = image.std() / 2
    pairs = np.stack([image.ravel(), image.T.ravel()], axis=1)
    squared = ((pairs[:, None] - pairs[None]) ** 2).sum(-1)
    density = np.exp(-squared / (2 * bandwidth**2)).mean(1) / (2 * np.pi * bandwidth**2)
    np.testing.assert_allclose(np.exp(initial_log_density(image, "value_pairs")).ravel(), density, rtol=0.01)


@pytest.mark.parametrize(
    ("bad", "method", "message"),
    [
        (np.full((8, 8), 1.01), "smoothed", "rescale them to"),
        (np.full((8, 8), -0.01), "smoothed", "rescale them to"),
        (np.full((8, 8), np.nan), "smoothed", "NaN"),
        (np.zeros((1, 8)), "smoothed", "too small"),
        (np.zeros(8), "smoothed", "shape"),
        (np.zeros((8, 8, 0)), "smoothed", "shape"),
        (np.zeros((8, 9)), "value_pairs", "square"),
        (np.zeros((8, 8)), "sampled_kde", "rng="),
    ],
)
def test_bad_images_are_refused(bad, method, message):
    with pytest.raises(ValueError, match=message) as error:
        initial_log_density(bad, method)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "positions", [np.zeros((5, 3)), np.full((5, 2), 2.0), np.full((5, 2), 0.5), np.eye(2)]
)
def test_bad_positions_are_refused(image, positions):
    with pytest.raises(ValueError, match="positions"):
        initial_log_density(image, "sampled_kde", positions=positions)


def test_positions_belong_to_the_sampled_method(image):
    with pytest.raises(ValueError, match="only to 'sampled_kde'"):
        initial_log_density(image, positions=np.zeros((5, 2)))


@pytest.mark.parametrize("solver", ["spectral", "direct"])
def test_keep_selects_times_and_the_iterator_streams_them(image, solver):
    log_p0 = np.stack([initial_log_density(image), initial_log_density(image**2)])
    full = solve_log_density(log_p0, g=0.5, times=TIMES, solver=solver)
    some = solve_log_density(log_p0, g=0.5, times=TIMES, solver=solver, keep=[-1, 2, 0], dtype=np.float32)
    assert some.kept.tolist() == [0, 2, 5]
    assert some.log_p.dtype == some.score.dtype == np.float32
    np.testing.assert_array_equal(some.times, TIMES[[0, 2, 5]])
    np.testing.assert_array_equal(some.log_p, full.log_p[[0, 2, 5]].astype(np.float32))
    np.testing.assert_array_equal(some.score, full.score[[0, 2, 5]].astype(np.float32))
    np.testing.assert_array_equal(some.iterations, full.iterations)
    slices = list(iterate_log_density(Problem(log_p0, g=0.5, times=TIMES, keep=[2, 5]), solver))
    assert [s.index for s in slices] == [2, 5]
    np.testing.assert_array_equal(slices[1].log_p, full.log_p[5])
    np.testing.assert_array_equal(slices[1].score, full.score[5])


def test_diagnostics_of_direct(image):
    log_p0 = np.stack([np.zeros((16, 16)), initial_log_density(image)])
    field = solve_log_density(log_p0, g=0.5, times=TIMES, solver="direct", tol=1e-9, max_iter=4)
    assert field.solver == "direct"
    assert field.residuals.shape == (5, 4, 2)
    # A constant solves the equation at once; the image stays above 1e-9 after 4 iterations.
    assert (field.iterations == [1, 4]).all()
    assert (field.converged == [True, False]).all()
    assert np.isfinite(field.final_residuals).all()
    assert set(field.seconds) == {"assembly", "solve", "score"}
    warning = field.convergence_warning()
    assert warning is not None
    assert "5 of 10 steps" in warning
    assert "image (1,)" in warning
    assert "\n" not in warning
    met = solve_log_density(log_p0, g=0.5, times=TIMES, solver="direct", tol=1e-9, max_iter=30)
    assert met.convergence_warning() is None
    assert (met.final_residuals < 1e-9).all()


def test_exact_solver_reports_no_iterations(image):
    field = solve_log_density(initial_log_density(image), g=0.5, times=TIMES)
    assert field.residuals.shape == (5, 0)
    assert field.converged.all()
    assert field.convergence_warning() is None


def test_deep_densities_are_floored_and_finite():
    log_p0 = np.zeros((16, 16))
    log_p0[4:12, 4:12] = -800.0
    log_p0[0, 0] = 500.0
    field = solve_log_density(log_p0, g=0.05, times=TIMES)
    np.testing.assert_array_equal(field.log_p[0], log_p0)
    assert np.isfinite(field.log_p).all()
    assert np.isfinite(field.score).all()
    assert (field.log_p[1:] >= 500 + np.log(4 * np.finfo(float).eps)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_p0": np.full((8, 8), np.nan)}, "NaN"),
        ({"log_p0": np.zeros((1, 8))}, "too small"),
        ({"log_p0": np.zeros(8)}, "too small"),
        ({"log_p0": np.zeros((0, 8, 8))}, "at least one"),
        ({"g": 0.0}, "positive"),
        ({"g": -1.0}, "positive"),
        ({"g": lambda t: t}, "positive"),
        ({"g": np.nan}, "positive"),
        ({"times": [0.0, 0.0]}, "increasing"),
        ({"times": [0.0]}, "increasing"),
        ({"times": [0.0, np.nan]}, "increasing"),
        ({"times": [1.0, 0.5]}, "increasing"),
        (
            {"drift": lambda x, t: x, "boundary": "zero", "solver": "factorised"},
            "boundary='zero' with a drift",
        ),
        ({"boundary": "periodic"}, "choose one of neumann, zero"),
        ({"solver": "multigrid"}, "choose one of"),
        ({"boundary": "zero"}, "solver 'spectral' does not support boundary='zero': choose one of direct, "),
        (
            {"drift": lambda x, t: x},
            "with a drift: choose one of factorised, direct, bicgstab, gmres, krylov_projection",
        ),
        ({"drift": lambda x, t: x[0], "solver": "direct"}, "drift gave shape"),
        ({"tol": 0.0}, "tol"),
        ({"max_iter": 0}, "max_iter"),
        ({"spacing": 0.0}, "spacing"),
        ({"keep": [7]}, "keep"),
        ({"keep": []}, "keep"),
    ],
)
def test_bad_input_is_refused(change, message):
    args = {"log_p0": np.zeros((8, 8)), "g": 0.5, "times": TIMES} | change
    with pytest.raises(ValueError, match=message) as error:
        solve_log_density(args.pop("log_p0"), **args)
    assert "\n" not in str(error.value)
    if "drift gave" not in message:  # the others are refused before the first time is asked for
        args = {"start": np.zeros((8, 8)), "g": 0.5, "times": TIMES} | change
        args["start"] = args.pop("log_p0", args["start"])
        solver = args.pop("solver", "spectral")
        with pytest.raises(ValueError, match=message):
            iterate_log_density(Problem(**args), solver)


def test_unknown_eigenvalues_are_refused():
    with pytest.raises(ValueError, match="'grid' or 'continuum'"):
        make_solver("spectral", eigenvalues="exact")


def test_divergence_names_image_time_and_residual():
    rough = 100 * np.random.default_rng(0).normal(size=(16, 16))
    log_p0 = np.zeros((2, 2, 16, 16))
    log_p0[1, 0] = rough
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            PicardDivergence, match=r"image \(1, 0\), time 1, residual .*smaller time steps"
        ) as error:
            solve_log_density(log_p0, g=1.0, times=[0, 1.0, 2.0], solver="direct")
    assert error.value.image == (1, 0)
    assert error.value.time == 1.0
    assert error.value.residual > 1


def test_spacing_scales_time():
    # The unit square at variance v is the pixel grid (h = 1) at variance v (H - 1)^2.
    log_p0 = np.random.default_rng(0).normal(size=(9, 9))
    unit = solve_log_density(log_p0, g=0.5, times=TIMES)
    pixels = solve_log_density(log_p0, g=0.5, times=TIMES * 64, spacing=1.0)
    np.testing.assert_allclose(pixels.log_p, unit.log_p, rtol=1e-10)
    np.testing.assert_allclose(pixels.score * 8, unit.score, rtol=1e-8, atol=1e-10)
    assert mass(log_p0, 1.0) == pytest.approx(64 * mass(log_p0))
    assert Spectral().eigenvalues == "grid"


def test_precomputation_is_the_two_stages_in_a_row(image):
    images = np.stack([image, image**2])[..., None].repeat(3, axis=-1)
    compute = ScorePrecomputation(
        g=GeometricDiffusion(2.0), steps=4, horizon=0.5, solver="direct", max_iter=9
    )
    field = compute(images, keep=[1, -1])
    log_p0 = np.stack([initial_log_density(each) for each in images])
    times = np.linspace(0, 0.5, 5)
    expected = solve_log_density(
        log_p0, g=lambda t: 2.0**t, times=times, solver="direct", max_iter=9, keep=[1, 4]
    )
    np.testing.assert_array_equal(field.score, expected.score)
    assert set(field.seconds) == {"initial_density", "assembly", "solve", "score"}
    assert ScorePrecomputation(initial_density="value_pairs").initial(images).shape == (2, 3, 16, 16)


def smoothed(image):
    """The convolution as it is defined, of one image."""
    weights = image.mean(-1) + 0.1
    weights /= weights.sum()
    grid = Grid.of(weights.shape)
    centred = grid.points - (weights * grid.points).sum(axis=(1, 2))[:, None, None]
    covariance = np.einsum("ij,aij,bij->ab", weights, centred, centred) + 0.01**2 * np.eye(2)
    smoothing = 2000 ** (-1 / 3) * covariance + 0.01**2 * np.eye(2)
    axes = (np.arange(1 - n, n) * h for n, h in zip(grid.shape, grid.spacing))
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"))
    exponent = np.einsum("aij,ab,bij->ij", offsets, np.linalg.inv(smoothing), offsets)
    kernel = np.exp(-exponent / 2) / (2 * np.pi * np.sqrt(np.linalg.det(smoothing)))
    height, width = grid.shape
    density = fftconvolve(weights, kernel)[height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]
    density = np.maximum(density, 1e-10)
    return np.log(density / (density.sum() * np.prod(grid.spacing)))


def value_pairs(plane):
    """The density of the pairs, by the general functions, of one channel."""
    of_both = {"bins": 64, "range": [[0, 1], [0, 1]], "density": True}
    histogram, _, _ = np.histogram2d(plane.ravel(), plane.T.ravel(), **of_both)
    density = gaussian_filter(histogram, max(plane.size ** (-1 / 6) * plane.std() * 64, 1.0))
    bins = np.stack([plane.ravel(), plane.T.ravel()]) * 64 - 0.5
    at_pixels = map_coordinates(density, bins, order=1, mode="nearest")
    return np.log(np.maximum(at_pixels, 1e-10)).reshape(plane.shape)


@pytest.mark.parametrize("side", [9, 32, 48])
def test_densities_of_many_images_are_those_of_each_by_its_definition(side):
    rng = np.random.default_rng(0)
    images = rng.random((11, side, side, 3)) ** 2
    images[1] = rng.integers(0, 2, (side, side, 3))  # on the edges of the outermost bins
    images[2] = 0.25
    images[3] = np.round(255 * images[3]) / 255
    images[4] = 0.3 + 0.2 * images[4]  # bins on both sides of its own are empty
    np.testing.assert_allclose(
        initial_log_densities(images, "smoothed"),
        np.stack([smoothed(image) for image in images]),
        rtol=0,
        atol=1e-14,
    )
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    np.testing.assert_array_equal(
        initial_log_densities(images, "value_pairs"),  # bit for bit
        np.stack([[value_pairs(plane) for plane in image] for image in planes]),
    )


def test_precomputation_refuses_a_single_image(image):
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        ScorePrecomputation()(image)
