"""The Fokker-Planck solvers against closed-form solutions, a literal transcription of the published scheme,
and measured convergence orders."""

import numpy as np
import pytest
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve

from scoreexp.numerics.fokker_planck import Direct, Grid, Spectral, mass, solve_log_density


def smooth_log_density(n: int) -> np.ndarray:
    """Even about all borders, so that it is smooth for the reflecting problem on any grid."""
    u = np.linspace(0, 1, n)
    return 0.6 * np.cos(np.pi * u)[:, None] + 0.4 * np.outer(np.cos(np.pi * u), np.cos(2 * np.pi * u))


def published_scheme(
    m0: np.ndarray, g: float, dt: float, steps: int, tol: float, max_iter: int
) -> np.ndarray:
    """Node-by-node transcription of the published scheme: square grid, no drift, outer neighbours dropped."""
    n = m0.shape[0]
    h = 1 / (n - 1)

    def gradient(f, i, j, axis):
        k = (i, j)[axis]
        ahead, behind = min(k + 1, n - 1), max(k - 1, 0)
        value = [f[x, j] if axis == 0 else f[i, x] for x in (ahead, behind)]
        return (value[0] - value[1]) / ((ahead - behind) * h)

    fields = [m0]
    for _ in range(steps):
        old, guess = fields[-1], fields[-1]
        for _ in range(max_iter):
            a, b = lil_matrix((n * n, n * n)), np.zeros(n * n)
            for i in range(n):
                for j in range(n):
                    row = i * n + j
                    vx, vy = (-(g**2) / 2 * gradient(guess, i, j, axis) for axis in (0, 1))
                    a[row, row] = 1 / dt + 2 * g**2 / h**2
                    b[row] = old[i, j] / dt
                    for di, dj, v in ((1, 0, vx), (-1, 0, -vx), (0, 1, vy), (0, -1, -vy)):
                        if 0 <= i + di < n and 0 <= j + dj < n:
                            a[row, row + di * n + dj] = (-(g**2) / h + v) / (2 * h)
            m = spsolve(a.tocsr(), b).reshape(n, n)
            change = np.linalg.norm(m - guess) / (np.linalg.norm(guess) + 1e-8)
            guess = m
            if change < tol:
                break
        fields.append(guess)
    return np.stack(fields)


@pytest.mark.parametrize(("n", "steps"), [(5, 20), (32, 2)])
def test_direct_equals_the_published_scheme(n, steps):
    m0 = np.random.default_rng(3).normal(size=(n, n)).cumsum(0) / 4
    expected = published_scheme(m0, 0.5, 0.01, steps, 1e-6, 5)
    times = 0.01 * np.arange(steps + 1)
    field = solve_log_density(m0, g=0.5, times=times, boundary="zero", solver="direct", tol=1e-6, max_iter=5)
    np.testing.assert_allclose(field.log_p, expected, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_direct_equals_the_published_scheme_in_the_full_setting():
    m0 = np.random.default_rng(3).normal(size=(32, 32)).cumsum(0) / 4
    expected = published_scheme(m0, 0.5, 0.01, 100, 1e-6, 5)
    field = solve_log_density(m0, g=0.5, times=np.linspace(0, 1, 101), boundary="zero", solver="direct")
    np.testing.assert_allclose(field.log_p, expected, rtol=0, atol=1e-9)


def test_the_published_diagonal_stays_on_the_dropped_border():
    # One step from a constant with the velocity still zero, node by node.
    n, g, dt = 6, 0.7, 0.05
    h = 1 / (n - 1)
    m = solve_log_density(
        np.ones((n, n)), g=g, times=[0, dt], boundary="zero", solver="direct", max_iter=1
    ).log_p[1]
    padded = np.pad(m, 1)
    neighbours = padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]
    np.testing.assert_allclose(
        (1 / dt + 2 * g**2 / h**2) * m - g**2 / (2 * h**2) * neighbours, 1 / dt, rtol=1e-12
    )


@pytest.mark.parametrize(
    ("g", "variance"),
    [(0.1, lambda t: 0.01 * t), (lambda t: 0.02 * 5**t, lambda t: 4e-4 * (25**t - 1) / (2 * np.log(5)))],
)
def test_gaussian_stays_gaussian(g, variance):
    # At the last time the variance is at most 0.0125: the border is 4.4 standard deviations away, and its
    # reflection is below 1e-8 of the value at the nodes compared, those within 0.15 of the centre.
    grid = Grid.of((81, 81))
    squared_radius = ((grid.points - 0.5) ** 2).sum(0)
    times = np.array([0.0, 0.2, 0.5, 1.0])
    total = 0.05**2 + variance(times)[:, None, None]
    exact = -squared_radius / (2 * total) - np.log(2 * np.pi * total)
    field = solve_log_density(exact[0], g=g, times=times, solver=Spectral("continuum"))
    near = squared_radius < 0.15**2
    np.testing.assert_allclose(field.log_p[:, near], exact[:, near], rtol=0, atol=1e-6)


@pytest.mark.parametrize("eigenvalues", ["grid", "continuum"])
@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_cosine_modes_decay_at_the_exact_rate(eigenvalues, shape):
    k, ell, g, t = 3, 5, 0.4, np.array([0.0, 0.01, 0.3])
    grid = Grid.of(shape)
    mode = np.cos(np.pi * k * grid.points[0]) * np.cos(np.pi * ell * grid.points[1])
    if eigenvalues == "grid":
        rate = -sum(4 / h**2 * np.sin(np.pi * q * h / 2) ** 2 for q, h in zip((k, ell), grid.spacing))
    else:
        rate = -(np.pi**2) * (k**2 + ell**2)
    exact = 1 + 0.5 * np.exp(rate * g**2 / 2 * t)[:, None, None] * mode
    field = solve_log_density(np.log(exact[0]), g=g, times=t, solver=Spectral(eigenvalues))
    np.testing.assert_allclose(np.exp(field.log_p), exact, rtol=1e-12)


def test_variance_quadrature_is_exact_for_constant_and_geometric_diffusion():
    # p = 1 + c mode decays by exp(rate int g^2/2); read the integral back from the field.
    grid = Grid.of((8, 8))
    start = 1 + 0.5 * np.cos(np.pi * grid.points[0])
    rate = 4 / grid.spacing[0] ** 2 * np.sin(np.pi * grid.spacing[0] / 2) ** 2
    times = np.array([0.0, 0.3, 1.0])
    for g, integral in (
        (0.3, 0.09 * times),
        (lambda t: 0.1 * 25**t, 0.01 * (25 ** (2 * times) - 1) / (2 * np.log(25))),
    ):
        amplitude = np.exp(solve_log_density(np.log(start), g=g, times=times).log_p)[:, 0, 0] - 1
        np.testing.assert_allclose(-2 * np.log(amplitude / 0.5) / rate, integral, rtol=1e-10, atol=1e-13)


def test_spectral_conserves_mass():
    log_p0 = np.random.default_rng(0).normal(size=(4, 24, 17))
    field = solve_log_density(log_p0, g=0.5, times=np.linspace(0, 1, 11))
    np.testing.assert_allclose(mass(field.log_p), np.broadcast_to(mass(log_p0), (11, 4)), rtol=1e-12)


def test_direct_keeps_mass_to_the_order_of_its_scheme_and_the_published_border_leaks():
    # The scheme for m does not conserve: its mass error is O(dt + h^2), about halved with dt and h.
    drifts = []
    for n, steps in ((9, 8), (17, 16)):
        m0 = smooth_log_density(n)
        args = {
            "g": 0.5,
            "times": np.linspace(0, 0.5, steps + 1),
            "solver": "direct",
            "tol": 1e-8,
            "max_iter": 20,
        }
        drifts.append(abs(mass(solve_log_density(m0, **args).log_p[-1]) / mass(m0) - 1))
    assert drifts[0] < 0.05
    assert 1.6 < drifts[0] / drifts[1] < 2.6
    leaking = solve_log_density(m0 + 3, boundary="zero", **args).log_p[-1]
    assert mass(leaking) < 0.5 * mass(m0 + 3)


def test_direct_converges_to_spectral_at_first_order_in_time():
    m0 = smooth_log_density(17)
    exact = solve_log_density(m0, g=0.5, times=[0, 0.2]).log_p[-1]
    errors = []
    for steps in (8, 16, 32):
        times = np.linspace(0, 0.2, steps + 1)
        field = solve_log_density(m0, g=0.5, times=times, solver="direct", tol=1e-9, max_iter=30)
        errors.append(abs(field.log_p[-1] - exact).max())
    # m and p discretised differ by O(h^2) in space, a constant that the differences of errors remove.
    order = np.log2((errors[0] - errors[1]) / (errors[1] - errors[2]))
    assert 0.85 < order < 1.15


def test_direct_converges_to_spectral_at_second_order_in_space():
    # Richardson in time (2 m_{dt/2} - m_dt) leaves a time error far below the space error.
    errors = []
    for n in (7, 13, 25):
        m0 = smooth_log_density(n)
        exact = solve_log_density(m0, g=0.5, times=[0, 0.1], solver=Spectral("continuum")).log_p[-1]
        coarse, fine = (
            solve_log_density(
                m0,
                g=0.5,
                times=np.linspace(0, 0.1, k + 1),
                solver="direct",
                tol=1e-8,
                max_iter=30,
                keep=[-1],
            ).log_p[0]
            for k in (8, 16)
        )
        errors.append(abs(2 * fine - coarse - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 2) < 0.25).all(), orders


def test_score_is_the_gradient_at_second_order():
    # log(1 + a cos cos), the amplitude decaying in time; both components, border included.
    errors = []
    for n in (17, 33, 65):
        grid = Grid.of((n, n))
        u, v = grid.points
        p = 1 + 0.3 * np.cos(np.pi * u) * np.cos(2 * np.pi * v)
        field = solve_log_density(np.log(p), g=0.5, times=[0, 0.05], solver=Spectral("continuum"))
        a = 0.3 * np.exp(-5 * np.pi**2 * 0.125 * 0.05)
        q = 1 + a * np.cos(np.pi * u) * np.cos(2 * np.pi * v)
        exact = np.stack(
            [
                -a * np.pi * np.sin(np.pi * u) * np.cos(2 * np.pi * v) / q,
                -2 * a * np.pi * np.cos(np.pi * u) * np.sin(2 * np.pi * v) / q,
            ]
        )
        errors.append(abs(field.score[1] - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 2) < 0.25).all(), orders


@pytest.mark.parametrize("solver", ["spectral", "direct"])
def test_batch_equals_loop(solver):
    log_p0 = np.random.default_rng(1).normal(size=(2, 3, 9, 12)) * 0.3
    args = {"g": 0.5, "times": np.linspace(0, 0.1, 4), "solver": solver}
    batch = solve_log_density(log_p0, **args)
    assert batch.log_p.shape == (4, 2, 3, 9, 12)
    assert batch.score.shape == (4, 2, 3, 2, 9, 12)
    for index in np.ndindex(2, 3):
        single = solve_log_density(log_p0[index], **args)
        np.testing.assert_allclose(batch.log_p[:, *index], single.log_p, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(batch.score[:, *index], single.score, rtol=1e-10, atol=1e-11)
        np.testing.assert_array_equal(batch.iterations[:, *index], single.iterations)


@pytest.mark.parametrize("boundary", ["neumann", "zero"])
def test_non_square_direct_is_the_transpose_of_the_transpose(boundary):
    log_p0 = np.random.default_rng(2).normal(size=(7, 12)) * 0.3
    drift = lambda x, t: np.stack([0.3 - x[0], 0.1 + 0 * x[1]])  # noqa: E731
    turned = lambda x, t: drift(x[::-1], t)[::-1]  # noqa: E731
    args = {"g": 0.5, "times": np.linspace(0, 0.1, 4), "boundary": boundary, "solver": Direct()}
    field = solve_log_density(log_p0, drift=drift, **args)
    other = solve_log_density(log_p0.T, drift=turned, **args)
    np.testing.assert_allclose(other.log_p.swapaxes(1, 2), field.log_p, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(other.score[:, ::-1].swapaxes(2, 3), field.score, rtol=1e-9, atol=1e-10)


def test_direct_keeps_the_no_flux_equilibrium_of_a_drift():
    # f = -a (x - 1/2) has the stationary density exp(-a |x - 1/2|^2 / g^2), also between reflecting walls; on
    # its logarithm, a quadratic, central differences and the slopes of the ghost nodes are exact.
    a, g = 1.5, 0.6
    grid = Grid.of((12, 9))
    m = -a * ((grid.points - 0.5) ** 2).sum(0) / g**2
    field = solve_log_density(
        m,
        g=g,
        times=np.linspace(0, 1, 6),
        drift=lambda x, t: -a * (x - 0.5),
        solver=Direct(),
        tol=1e-12,
        max_iter=50,
    )
    np.testing.assert_allclose(field.log_p[-1], m, rtol=0, atol=1e-10)
