"""Solvers beside ``direct`` and ``spectral``: agreement where the equations agree, drift, positivity, iterations."""

import numpy as np
import pytest

from scoreexp.numerics.fokker_planck import (
    GMRES,
    BiCGSTAB,
    Factorised,
    Grid,
    KrylovProjection,
    LinearSolverFailure,
    ScorePrecomputation,
    make_solver,
    mass,
    solve_log_density,
)
from scoreexp.numerics.fokker_planck.factorised import Faces, bernoulli
from scoreexp.numerics.fokker_planck.krylov import project
from scoreexp.numerics.fokker_planck.picard import System

ITERATIVE = [
    BiCGSTAB("jacobi"),
    BiCGSTAB("ilu"),
    BiCGSTAB("lu"),
    GMRES("jacobi"),
    GMRES("ilu", restart=5),
    GMRES("lu"),
    KrylovProjection(),
    KrylovProjection("first", basis_size=4, refresh=3, solver="gmres", preconditioner="jacobi"),
    KrylovProjection(
        basis_size=6, enrich=3, every_iteration=True, solver="bicgstab", preconditioner="jacobi"
    ),
]


def linear_drift(points, t):
    return -(1 + t) * (points - 0.4)


def mixed_batch(n: int = 10) -> np.ndarray:
    """Constant (solved at once), smooth and rough starts."""
    u = np.linspace(0, 1, n)
    smooth = np.cos(np.pi * u)[:, None] * np.cos(2 * np.pi * u)
    return np.stack([np.zeros((n, n)), smooth, 2 * smooth, np.random.default_rng(0).normal(size=(n, n))])


@pytest.mark.parametrize("solver", ITERATIVE, ids=repr)
@pytest.mark.parametrize("boundary", ["neumann", "zero"])
@pytest.mark.parametrize("drift", [None, linear_drift], ids=["no drift", "drift"])
def test_iterative_solvers_equal_direct(solver, boundary, drift):
    # A residual |b - A m| <= 1e-10 |b| leaves an error of m of at most about dt |b| 1e-10 = 1e-10 |m| (Euclidean norms:
    # 10 max |m| here), and the Picard iterations stop within 1e-9 |m|: below 3.5e-8 over 3 steps with max |m| = 3.5.
    args = {"g": 0.5, "times": np.linspace(0, 0.03, 4), "drift": drift, "boundary": boundary}
    args |= {"tol": 1e-9, "max_iter": 40}
    direct = solve_log_density(mixed_batch(), solver="direct", **args)
    field = solve_log_density(mixed_batch(), solver=solver, **args)
    np.testing.assert_allclose(field.log_p, direct.log_p, rtol=0, atol=3.5e-8)
    assert field.converged.all()
    assert abs(field.iterations - direct.iterations).max() <= 1
    assert field.solver == solver.name
    assert (field.linear_iterations[:, 3] >= field.iterations[:, 3] - 1).all()
    assert field.linear_iterations[0, 0] <= field.linear_iterations[0, 3]


def test_a_constant_needs_no_iterations_without_drift():
    field = solve_log_density(mixed_batch()[:2], g=0.5, times=[0, 0.01], solver=BiCGSTAB("jacobi"))
    assert field.linear_iterations[0, 0] == 0 < field.linear_iterations[0, 1]


@pytest.mark.parametrize("drift", [None, linear_drift], ids=["no drift", "drift"])
@pytest.mark.parametrize("basis_size", [1, 5, 60])
def test_projection_never_raises_the_starting_residual(drift, basis_size, monkeypatch):
    from scoreexp.numerics.fokker_planck import krylov

    seen = []
    projector = krylov.project

    def watched(system, warm, residual, basis):
        start = projector(system, warm, residual, basis)
        after = np.linalg.norm((system.rhs - system.matvec(start)).reshape(len(start), -1), axis=1)
        seen.append(after / np.maximum(np.linalg.norm(residual.reshape(len(start), -1), axis=1), 1e-300))
        return start

    monkeypatch.setattr(krylov, "project", watched)
    solver = KrylovProjection(
        basis_size=basis_size, enrich=2, every_iteration=True, solver="gmres", preconditioner="jacobi"
    )
    solve_log_density(
        mixed_batch()[1:], g=0.5, times=[0, 0.01, 0.02], drift=drift, solver=solver, tol=1e-8, max_iter=30
    )
    ratios = np.concatenate(seen)
    # 1e-10: round-off of a residual that is recomputed
    assert ratios.max() <= 1 + 1e-10
    assert ratios[: len(seen[0])].min() < 0.9


def test_projection_that_would_raise_a_residual_keeps_the_warm_start(monkeypatch):
    grid = Grid.of((5, 5))
    system = System(2.0, np.zeros((4, 2, 5, 5)), np.ones((2, 5, 5)))
    warm = np.zeros((2, 5, 5))
    assert (project(system, warm, system.rhs, np.ones((1, 5, 5))) == 0.5).all()
    monkeypatch.setattr(np.linalg, "lstsq", lambda a, b, rcond: (np.full(len(b), -9.0),))
    np.testing.assert_array_equal(project(system, warm, system.rhs, grid.points[:1]), warm)


def test_projection_solves_the_seed_and_saves_iterations_for_copies_of_it():
    # Equal images have equal matrices, so that the seed's Krylov space is that of GMRES for all of them.
    start = np.repeat(mixed_batch()[3:], 3, axis=0)
    args = {"g": 0.5, "times": [0, 0.01], "tol": 1e-8, "max_iter": 1}
    plain = solve_log_density(start, solver=GMRES("jacobi"), **args).linear_iterations
    helped = solve_log_density(
        start, solver=KrylovProjection(basis_size=8, solver="gmres", preconditioner="jacobi"), **args
    ).linear_iterations
    assert (helped <= plain - 5).all()


def test_non_converging_linear_solve_names_image_time_and_residual():
    start = mixed_batch()[None]
    with pytest.raises(
        LinearSolverFailure, match=r"image \(0, 1\), time 0.01, residual .*linear_max_iter"
    ) as error:
        solve_log_density(start, g=0.5, times=[0, 0.01], solver=BiCGSTAB("jacobi", linear_max_iter=1))
    assert error.value.residual > 1e-7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_solver("bicgstab", restart=3), "no parameter restart"),
        (lambda: make_solver("direct", tol=3), "takes none"),
        (lambda: make_solver("auto"), "unknown"),
        (
            lambda: ScorePrecomputation(solver="auto", solver_options={"restart": 3}),
            "named solver other than 'auto'",
        ),
        (
            lambda: solve_log_density(np.zeros((4, 4)), g=1, times=[0, 1], solver=BiCGSTAB(linear_tol=1e-3)),
            "linear_tol",
        ),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("drift", "boundary", "chosen"),
    [
        (None, "neumann", "spectral"),
        (linear_drift, "neumann", "factorised"),
        (None, "zero", "bicgstab"),
        (linear_drift, "zero", "bicgstab"),
    ],
)
def test_auto_names_the_solver_it_chose(drift, boundary, chosen):
    field = solve_log_density(
        mixed_batch(), g=0.5, times=[0, 0.01], drift=drift, boundary=boundary, solver="auto"
    )
    assert field.solver == chosen
    assert ScorePrecomputation(solver="auto", steps=1)(np.zeros((1, 8, 8, 1))).solver == "spectral"


# The linear equation


def test_factorised_converges_to_spectral_at_first_order_in_time():
    # Without drift the flux is the centred one: the same semi-discrete equation, so that only time errors remain.
    m0 = mixed_batch(17)[2]
    exact = solve_log_density(m0, g=0.5, times=[0, 0.2]).log_p[-1]
    errors = [
        abs(
            solve_log_density(m0, g=0.5, times=np.linspace(0, 0.2, k + 1), solver="factorised").log_p[-1]
            - exact
        ).max()
        for k in (16, 32, 64)
    ]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (abs(orders - 1) < 0.1).all(), orders


def gaussian(grid: Grid, mean: float, variance: float) -> np.ndarray:
    return -((grid.points - mean) ** 2).sum(0) / (2 * variance) - np.log(2 * np.pi * variance)


@pytest.mark.parametrize(("solver", "side", "tolerance"), [("factorised", 33, 0.03), ("bicgstab", 17, 1e-3)])
def test_linear_drift_moves_and_shrinks_a_gaussian(solver, side, tolerance):
    # dx = -a (x - 1/2) dt + g dW: mean 1/2 + (mu - 1/2) e^(-at), variance V = v e^(-2at) + g^2 (1 - e^(-2at))/(2a).
    # The border is at least 7 standard deviations away. Errors are of first order in dt: extrapolated from dt and
    # dt/2 they leave O(dt^2 + h^2), checked to shrink fourfold when h and dt are halved.
    a, g, mu, v, end = 1.0, 0.08, 0.45, 0.06**2, 0.2
    errors = []
    for n, steps in ((side, 2), (2 * side - 1, 4)):
        grid = Grid.of((n, n))
        fields = [
            solve_log_density(
                gaussian(grid, mu, v),
                g=g,
                times=np.linspace(0, end, k + 1),
                drift=lambda x, t: -a * (x - 0.5),
                solver=solver,
                tol=1e-8,
                max_iter=60,
                keep=[-1],
            ).log_p[0]
            for k in (steps, 2 * steps)
        ]
        decay = np.exp(-a * end)
        mean = 0.5 + (mu - 0.5) * decay
        exact = gaussian(grid, mean, v * decay**2 + g**2 * (1 - decay**2) / (2 * a))
        near = ((grid.points - mean) ** 2).sum(0) < 0.1**2
        errors.append(abs(2 * fields[1] - fields[0] - exact)[near].max())
    assert errors[0] < tolerance
    assert 2.5 < errors[0] / errors[1] < 6, errors


@pytest.mark.parametrize("strength", [1.0, 300.0])
def test_factorised_keeps_mass_and_positivity_under_any_drift(strength):
    # 300 h / (g^2/2) = 218 is a cell Peclet number at which centred differences go negative.
    def swirl(points, t):
        return strength * np.stack([0.5 - points[1], points[0] - 0.5 + 0.2 * t])

    log_p0 = 4 * np.random.default_rng(1).normal(size=(3, 12, 9))
    field = solve_log_density(log_p0, g=0.5, times=[0, 0.1, 0.2, 5.0], drift=swirl, solver="factorised")
    assert np.isfinite(field.log_p).all()
    np.testing.assert_allclose(mass(field.log_p), np.broadcast_to(mass(log_p0), (4, 3)), rtol=1e-12)


def test_factorised_matrix_is_an_m_matrix():
    grid = Grid.of((6, 5))
    rates = 0.3 * Faces(grid).rates(0.01, lambda x, t: np.stack([5 - 20 * x[0], 3 * x[1]]), 0.0)
    matrix = Faces(grid).implicit_matrix(rates).toarray()
    np.testing.assert_allclose(matrix.sum(0), grid.weights.ravel(), rtol=0, atol=1e-13)
    off = matrix - np.diag(np.diag(matrix))
    assert (off <= 0).all()
    assert (np.diag(matrix) > 0).all()
    assert np.linalg.inv(matrix).min() >= 0


def test_factorised_equilibrium_of_a_potential_drift():
    # f = -a (x - 1/2): the scheme's stationary flux-free state obeys B(-q) p_a = B(q) p_b on every face, hence
    # log(p_b/p_a) = q with f at the face's centre: exactly the Gaussian's ratio.
    a, g = 3.0, 0.6
    grid = Grid.of((10, 13))
    m = -a * ((grid.points - 0.5) ** 2).sum(0) / g**2
    field = solve_log_density(
        m, g=g, times=[0, 1.0, 50.0], drift=lambda x, t: -a * (x - 0.5), solver=Factorised()
    )
    np.testing.assert_allclose(field.log_p[1:], np.broadcast_to(m, (2, 10, 13)), atol=1e-11)


def test_factorised_agrees_with_the_continuum_for_time_dependent_diffusion():
    # D is the exact mean over each step, so implicit Euler decays a mode by 1/(1 + rate int g^2/2) per step.
    grid = Grid.of((9, 9))
    mode = np.cos(np.pi * grid.points[1])
    rate = 4 / grid.spacing[0] ** 2 * np.sin(np.pi * grid.spacing[0] / 2) ** 2
    times = np.array([0.0, 0.3, 0.5, 1.0])
    field = solve_log_density(
        np.log(1 + 0.5 * mode), g=lambda t: 0.1 * 25**t, times=times, solver="factorised"
    )
    variance = 0.01 * np.diff(25 ** (2 * times)) / (2 * np.log(25))
    amplitude = 0.5 * np.cumprod(1 / (1 + rate * variance / 2))
    np.testing.assert_allclose(np.exp(field.log_p[1:]), 1 + amplitude[:, None, None] * mode, rtol=1e-11)


def test_one_factorisation_serves_equal_steps_and_a_new_step_gets_a_new_one():
    m0 = mixed_batch()[2]
    uneven = np.array([0.0, 0.01, 0.02, 0.05, 0.08])
    whole = solve_log_density(m0, g=0.5, times=uneven, drift=linear_drift, solver="factorised").log_p
    m = m0
    for n in range(4):
        m = solve_log_density(
            m, g=0.5, times=uneven[n : n + 2], drift=linear_drift, solver="factorised"
        ).log_p[1]
        np.testing.assert_allclose(whole[n + 1], m, rtol=1e-10, atol=1e-12)
    even = solve_log_density(m0, g=0.5, times=np.linspace(0, 1, 41), solver="factorised").seconds
    varying = solve_log_density(
        m0, g=lambda t: 0.5 + t, times=np.linspace(0, 1, 41), solver="factorised"
    ).seconds
    assert set(even) == set(varying) == {"assembly", "factorise", "solve", "score"}


def test_bernoulli_function():
    q = np.array([-800.0, -2.0, -1e-9, 0.0, 1e-9, 1e-6, 2.0, 800.0])
    exact = [800, 2 / (1 - np.exp(-2)), 1, 1, 1, 1 - 5e-7, 2 / np.expm1(2), 0]
    np.testing.assert_allclose(bernoulli(q), exact, rtol=1e-8, atol=1e-250)
