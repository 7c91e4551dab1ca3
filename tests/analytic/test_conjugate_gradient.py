"""Batched conjugate gradients against dense solves."""

import pytest
import torch

from scoreexp.numerics.conjugate_gradient import conjugate_gradient


def spd(n, condition, seed):
    """A symmetric matrix with eigenvalues from 1 to ``condition``."""
    basis, _ = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    return basis @ torch.diag(torch.linspace(1, condition, n, dtype=torch.float64)) @ basis.T


MATRICES = torch.stack([spd(12, condition, i) for i, condition in enumerate((1.5, 30, 200))])
B = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
EXACT = torch.linalg.solve(MATRICES, B.flatten(1)[..., None])[..., 0].reshape(B.shape)


def matvec(x):
    return (MATRICES @ x.flatten(1)[..., None])[..., 0].reshape(x.shape)


def relative_residual(x):
    return (B - matvec(x)).flatten(1).norm(dim=1) / B.flatten(1).norm(dim=1)


@pytest.mark.parametrize("start", [None, torch.ones_like(B)])
def test_each_sample_is_solved_in_steps_of_its_own(start):
    found = conjugate_gradient(matvec, B, start, tol=1e-8, max_iter=60)
    torch.testing.assert_close(found.residual, relative_residual(found.x), rtol=1e-3, atol=1e-13)
    assert (found.residual <= 1e-8).all()
    assert found.iterations[0] < found.iterations[2]
    # error <= condition number times residual
    error = (found.x - EXACT).flatten(1).norm(dim=1) / EXACT.flatten(1).norm(dim=1)
    assert (error <= torch.linalg.cond(MATRICES) * 1e-8).all()
    for i, matrix in enumerate(MATRICES):
        single = conjugate_gradient(
            lambda x: (matrix @ x.flatten()).reshape(x.shape),  # noqa: B023
            B[i : i + 1],
            None if start is None else start[i : i + 1],
            tol=1e-8,
        )
        assert single.iterations == found.iterations[i]
        # a sample that has met its tolerance stays where it is: going on would move it by 1e-8
        torch.testing.assert_close(found.x[i : i + 1], single.x, rtol=1e-11, atol=1e-11)


def test_as_many_steps_as_distinct_eigenvalues():
    """I + 5 A^T A with A of rank 3 has four."""
    a = torch.randn(3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = torch.eye(12, dtype=torch.float64) + 5 * a.T @ a
    b = torch.randn(1, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = torch.linalg.solve(dense, b[0])
    errors = [
        (conjugate_gradient(lambda x: x @ dense, b, max_iter=n, tol=0.0).x[0] - exact).norm() for n in (3, 4)
    ]
    assert errors[1] < 1e-12 * exact.norm() < errors[0]
    x_0 = torch.randn(1, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    b = x_0 + 5 * torch.ones(1, 3, dtype=torch.float64) @ a  # the residual lies in the range of A^T
    exact = torch.linalg.solve(dense, b[0])
    errors = [
        (conjugate_gradient(lambda x: x @ dense, b, x_0, max_iter=n, tol=0.0).x[0] - exact).norm()
        for n in (2, 3)
    ]
    assert errors[1] < 1e-12 * exact.norm() < errors[0]


def test_a_right_hand_side_of_zero_needs_no_step():
    found = conjugate_gradient(matvec, torch.cat([B[:2], 0 * B[2:]]))
    assert found.x[2].eq(0).all()
    assert (found.iterations[2], found.residual[2]) == (0, 0)
    assert found.x.isfinite().all()


def test_the_solution_is_a_fixed_start():
    found = conjugate_gradient(matvec, B, EXACT, tol=1e-8)
    assert found.iterations.eq(0).all()
    assert torch.equal(found.x, EXACT)


def test_what_does_not_converge_is_reported():
    found = conjugate_gradient(matvec, B, max_iter=3, tol=1e-12)
    assert found.iterations.eq(3).all()
    assert (found.residual > 1e-12).all()
    torch.testing.assert_close(found.residual, relative_residual(found.x), rtol=1e-6, atol=0)


def test_what_cannot_be_solved_is_named():
    with pytest.raises(ValueError, match=r"b has shape \(3,\): .* use b\[None\] for one"):
        conjugate_gradient(lambda x: x, torch.ones(3))
    with pytest.raises(ValueError, match=r"x_0 has shape \(1, 3, 4\): it must have that of b, \(3, 3, 4\)"):
        conjugate_gradient(matvec, B, B[:1])
    with pytest.raises(FloatingPointError, match="right-hand side"):
        conjugate_gradient(matvec, B * float("nan"))
    with pytest.raises(ValueError, match=r"step 1, sample 0: p\^T A p = -\d.* symmetric positive definite"):
        conjugate_gradient(lambda x: -x, B)
    with pytest.raises(ValueError, match=r"sample 2 has the relative residual .* after 2 steps, not 1e-06"):
        conjugate_gradient(matvec, B, max_iter=2, require_convergence=True)


def test_where_told_a_sample_stops_at_a_direction_without_positive_curvature():
    """The first sample meets -1 at once and stays at its start, the second is solved."""
    scale = torch.tensor([[-1.0], [4.0]])
    solved = conjugate_gradient(lambda x: scale * x, torch.ones(2, 3), stop_at_curvature=True)
    torch.testing.assert_close(solved.x, torch.tensor([[0.0], [0.25]]).expand(2, 3))
    assert solved.iterations.tolist() == [0, 1]
