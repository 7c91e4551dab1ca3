import numpy as np
import pytest

from scoreexp.numerics.linalg import arnoldi, bicgstab, gmres

SOLVERS = [bicgstab, gmres]


def systems(batch: int, n: int, *, symmetric: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Matrices [batch, n, n] of growing condition number and right-hand sides [batch, n]."""
    rng = np.random.default_rng(seed)
    matrices = []
    for k in range(batch):
        q, _ = np.linalg.qr(rng.normal(size=(n, n)))
        a = q @ np.diag(np.geomspace(1, 10.0 ** (k + 1), n)) @ q.T
        matrices.append(a if symmetric else a + np.triu(rng.normal(size=(n, n)), 1) * 0.1)
    return np.stack(matrices), rng.normal(size=(batch, n))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_solves_easy_and_hard_systems_to_the_tolerance(solver, preconditioned):
    a, b = systems(3, 30, symmetric=False)
    diagonal = np.einsum("bii->bi", a)
    options = {"precondition": lambda x: x / diagonal} if preconditioned else {}
    result = solver(lambda x: np.einsum("bij,bj->bi", a, x), b, tol=1e-10, **options)
    assert result.converged.all()
    residual = np.linalg.norm(b - np.einsum("bij,bj->bi", a, result.x), axis=1) / np.linalg.norm(b, axis=1)
    assert (residual <= 1e-10).all()
    np.testing.assert_allclose(result.residuals, residual, rtol=1e-3)
    # error <= condition number times residual
    exact = np.linalg.solve(a, b[..., None])[..., 0]
    error = np.linalg.norm(result.x - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (error <= np.linalg.cond(a) * 1e-10).all()
    if not preconditioned:
        assert result.iterations[0] < result.iterations[2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_gives_each_system_its_own_result(solver):
    a, b = systems(3, 20, symmetric=False, seed=1)
    batch = solver(lambda x: np.einsum("bij,bj->bi", a, x), b, tol=1e-9)
    for k in range(3):
        one = slice(k, k + 1)
        single = solver(lambda x: np.einsum("bij,bj->bi", a[one], x), b[one], tol=1e-9)  # noqa: B023
        assert single.iterations[0] == batch.iterations[k]
        # a system that has met its tolerance stays where it is: going on would move it by 1e-9
        np.testing.assert_allclose(batch.x[k], single.x[0], rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solution_is_a_fixed_start_and_zero_needs_no_work(solver):
    a, b = systems(2, 10, symmetric=True)
    b[1] = 0.0
    exact = np.linalg.solve(a, b[..., None])[..., 0]
    result = solver(lambda x: np.einsum("bij,bj->bi", a, x), b, exact, tol=1e-8)
    assert (result.iterations == 0).all()
    np.testing.assert_array_equal(result.x, exact)
    assert result.converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_does_not_converge_is_reported(solver):
    a, b = systems(2, 40, symmetric=True, seed=2)
    result = solver(lambda x: np.einsum("bij,bj->bi", a * [[[1.0]], [[-1.0]]], x), b, tol=1e-12, max_iter=3)
    assert not result.converged.any()
    assert (result.iterations == 3).all()
    assert np.isfinite(result.x).all()
    assert (result.residuals > 1e-12).all()


def test_gmres_is_exact_after_n_iterations_and_minimises_the_residual():
    a, b = systems(1, 12, symmetric=False, seed=3)
    matvec = lambda x: x @ a[0].T  # noqa: E731
    assert gmres(matvec, b, tol=1e-12, restart=12).iterations[0] <= 12
    basis = np.stack([np.linalg.matrix_power(a[0], k) @ b[0] for k in range(5)], axis=1)
    q, _ = np.linalg.qr(basis)
    y = np.linalg.lstsq(a[0] @ q, b[0], rcond=None)[0]
    best = np.linalg.norm(b[0] - a[0] @ q @ y) / np.linalg.norm(b[0])
    assert gmres(matvec, b, tol=1e-14, max_iter=5).residuals[0] == pytest.approx(best, rel=1e-8)


def test_gmres_survives_an_exhausted_krylov_space():
    result = gmres(lambda x: 2 * x, np.ones((2, 6)), tol=1e-12)
    assert result.converged.all()
    np.testing.assert_allclose(result.x, 0.5, rtol=1e-14)


def test_bicgstab_starts_afresh_when_its_recurrence_breaks_down():
    # a rotation by 90 degrees: <A r, r> = 0 in the first iteration
    a = np.array([[0.0, 1.0], [-1.0, 0.0]])
    result = bicgstab(lambda x: x @ a.T, np.array([[1.0, 0.0]]), tol=1e-10, max_iter=50)
    assert np.isfinite(result.x).all()
    assert result.converged[0] == (result.residuals[0] <= 1e-10)


def test_event_shapes_are_free():
    rng = np.random.default_rng(4)
    weights = rng.uniform(1, 2, size=(3, 4, 5))
    for solver in SOLVERS:
        result = solver(lambda x: weights * x, rng.normal(size=(3, 4, 5)), tol=1e-10)
        assert result.x.shape == (3, 4, 5)
        assert result.converged.all()


def test_arnoldi_relation_and_orthonormality():
    a = np.random.default_rng(5).normal(size=(24, 24))
    basis, h = arnoldi(
        lambda v: (a @ v.ravel()).reshape(v.shape), np.random.default_rng(6).normal(size=(4, 6)), 9
    )
    flat = basis.reshape(10, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(10), atol=1e-13)
    np.testing.assert_allclose(a @ flat[:9].T, flat.T @ h, atol=1e-12)


def test_arnoldi_stays_orthonormal_where_one_pass_cancels():
    # The vectors line up with the largest eigenvalues, and one Gram-Schmidt pass loses all digits of what is left.
    scale = np.geomspace(1, 1e12, 40)
    basis, _ = arnoldi(lambda v: scale * v, np.ones(40), 12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(13), atol=1e-13)


def test_arnoldi_stops_where_the_space_is_exhausted():
    basis, h = arnoldi(lambda v: v * [1.0, 2.0, 3.0, 3.0], np.ones(4), 4)
    assert h.shape == (3, 3)
    assert len(basis) == 3
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(h).real), [1, 2, 3], atol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bicgstab(lambda x: x, np.ones(3)),
        lambda: bicgstab(lambda x: x, np.ones((1, 3)), np.ones((1, 2))),
        lambda: bicgstab(lambda x: x, np.ones((1, 3)), tol=0.0),
        lambda: bicgstab(lambda x: x, np.ones((1, 3)), max_iter=0),
        lambda: gmres(lambda x: x, np.ones((1, 3)), restart=0),
        lambda: arnoldi(lambda x: x, np.zeros(3), 2),
        lambda: arnoldi(lambda x: x, np.ones(3), 0),
    ],
)
def test_bad_parameters_are_refused(call):
    with pytest.raises(ValueError, match=r"must|shape"):
        call()
