"""Runge-Kutta solvers on equations with known solutions: orders, tolerances, and samples that ignore their neighbours."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scoreexp.core.tensors import expand_to
from scoreexp.numerics.ode import _A, _C, _E, RK45, RungeKutta


def swing(t, y):
    """y' = y cos t, solved by y_0 exp(sin t)."""
    return expand_to(t.cos(), y) * y


START = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_fixed_steps_have_their_order(method, order):
    steps, errors = [8, 16, 32, 64], []
    for n in steps:
        times, y = torch.linspace(0, 2, n + 1, dtype=torch.float64).tolist(), START
        for a, b in pairwise(times):
            solution = RungeKutta(method)(swing, y, a, b)
            y = solution.y
            assert solution.evaluations == {"euler": 1, "heun": 2, "rk4": 4}[method]
        errors.append((y - START * math.exp(math.sin(2))).norm().item())
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.15)


def test_the_coefficients_satisfy_the_quadrature_conditions():
    b = np.array([*_A[6], 0.0])
    for stage, c in zip(_A, _C, strict=True):
        assert sum(stage) == pytest.approx(c, abs=1e-15)
    for k in range(5):
        assert b @ np.array(_C) ** k == pytest.approx(1 / (k + 1), abs=1e-15)
    for k in range(4):  # the companion is of order 4
        assert np.array(_E) @ np.array(_C) ** k == pytest.approx(0, abs=1e-15)
    assert abs(np.array(_E) @ np.array(_C) ** 4) > 1e-4


def test_one_adaptive_step_has_a_local_error_of_order_six():
    sizes, errors = [0.4, 0.2, 0.1, 0.05], []
    for h in sizes:
        given = torch.full((2,), h, dtype=torch.float64)
        solution = RK45(rtol=1.0, atol=1.0)(swing, START, 0.3, 0.3 + h, step_size=given)
        assert solution.accepted.tolist() == [1, 1]
        exact = START * math.exp(math.sin(0.3 + h) - math.sin(0.3))
        errors.append((solution.y - exact).norm().item())
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(6, abs=0.3)


def test_errors_follow_the_tolerance_and_steps_its_fifth_root():
    tolerances, steps = [1e-8, 1e-9, 1e-10, 1e-11, 1e-12], []
    for tol in tolerances:
        solution = RK45(tol, tol)(swing, START, 0.0, 4.0)
        # local errors of `tol` times the size of y add up, and e^(sin t) spreads them at most by e^2
        assert (solution.y - START * math.exp(math.sin(4))).abs().max() < 30 * tol
        tried = (solution.accepted + solution.rejected).max().item()
        assert solution.evaluations == 6 * tried + 2
        steps.append(tried)
    assert -np.polyfit(np.log(tolerances), np.log(steps), 1)[0] == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_one_sample_takes_scipys_steps(tol):
    ours = RK45(tol, tol)(swing, START[1:, 1:], 0.0, 6.0)
    theirs = solve_ivp(lambda t, y: y * np.cos(t), (0, 6), [2.0], rtol=tol, atol=tol, method="RK45")
    assert ours.accepted.item() == len(theirs.t) - 1
    assert ours.evaluations == theirs.nfev
    assert ours.y.item() == pytest.approx(theirs.y[0, -1], rel=1e-9)


def test_backward_undoes_forward():
    solver = RK45(1e-8, 1e-8)
    there = solver(swing, START, 0.5, 2.0).y
    torch.testing.assert_close(solver(swing, there, 2.0, 0.5).y, START, rtol=0, atol=1e-6)


def stiffness(rates):
    """y' = -rate (y - cos t) - sin t, solved by cos t from 1: the rate decides on the steps alone."""

    def f(t, y):
        t = expand_to(t, y)
        return -expand_to(rates, y) * (y - t.cos()) - t.sin()

    return f


def test_a_sample_does_not_see_its_neighbours():
    rates = torch.tensor([1.0, 40.0, 300.0], dtype=torch.float64)
    y = torch.tensor([[1.5, 0.0], [1.5, 0.0], [1.5, 0.0]], dtype=torch.float64)
    together = RK45(1e-5, 1e-5)(stiffness(rates), y, 0.0, 2.0)
    for k in range(3):
        alone = RK45(1e-5, 1e-5)(stiffness(rates[k : k + 1]), y[k : k + 1], 0.0, 2.0)
        assert torch.equal(alone.y[0], together.y[k])
        assert alone.accepted[0] == together.accepted[k]
    assert together.accepted[0] < together.accepted[1] < together.accepted[2]
    assert together.evaluations == 6 * (together.accepted + together.rejected).max() + 2


def test_a_rejected_step_is_repeated_smaller():
    given = torch.tensor([1.9, 1e-3], dtype=torch.float64)
    rates = torch.tensor([30.0, 30.0], dtype=torch.float64)
    solution = RK45(1e-6, 1e-6)(stiffness(rates), START, 0.0, 2.0, step_size=given)
    assert solution.rejected[0] > 0
    exact = math.cos(2) + (START - 1) * math.exp(-60)
    assert (solution.y - exact).abs().max() < 1e-5


def test_a_step_size_carries_on():
    solver, f = RK45(1e-6, 1e-6), stiffness(torch.tensor([5.0, 50.0], dtype=torch.float64))
    first = solver(f, START, 0.0, 1.0)
    # a step cut short by the end says nothing about the error, and the next one is as long as it was going to be
    sliver = solver(f, first.y, 1.0, 1.0 + 1e-6, step_size=first.step_size)
    assert torch.equal(sliver.step_size, first.step_size)
    second = solver(f, first.y, 1.0, 2.0, step_size=first.step_size)
    assert second.evaluations == 6 * (second.accepted + second.rejected).max() + 1
    whole = solver(f, START, 0.0, 2.0)
    assert ((first.accepted + second.accepted - whole.accepted).abs() <= 2).all()


def test_the_norm_decides():
    # ignoring the fast second component leaves few steps
    rates = torch.tensor([[1.0, 60.0]], dtype=torch.float64)

    def f(t, y):
        return -rates * y

    y = torch.ones(1, 2, dtype=torch.float64)
    slow = RK45(1e-5, 1e-5)(f, y, 0.0, 0.1, norm=lambda e: e[:, 0].abs())
    assert slow.accepted[0] < RK45(1e-5, 1e-5)(f, y, 0.0, 0.1).accepted[0]


def test_any_event_shape_in_single_precision_and_no_interval():
    y = torch.ones(2, 3, 4, 4)
    solution = RK45(1e-4, 1e-4)(lambda t, y: -y, y, 1.0, 0.0)
    assert solution.y.dtype == torch.float32
    torch.testing.assert_close(solution.y, math.e * y, rtol=1e-3, atol=0)
    nothing = RK45()(lambda t, y: -y, y, 1.0, 1.0)
    assert nothing.y is y
    assert nothing.evaluations == 0


def test_what_cannot_be_solved_is_reported():
    nan_late = lambda t, y: torch.where(expand_to(t, y) > 0.5, math.nan, 1.0) * y  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"not finite in step [1-9], at 0\.[0-4]"):
        RK45()(nan_late, START, 0.0, 1.0)
    with pytest.raises(RuntimeError, match=r"5 steps from 0 reached .*, not 100, .* max_steps=5"):
        RK45(1e-8, 1e-8, max_steps=5)(swing, START, 0.0, 100.0)
    # y' = y^2 leaves for infinity at t = 1 / y_0 = 1/2: the steps shrink to nothing there
    with pytest.raises(
        RuntimeError, match=r"reached 0\.5, not 1, .*choose larger tolerances than rtol=1e-06"
    ):
        RK45(1e-6, 1e-6)(lambda t, y: y**2, START, 0.0, 1.0)
