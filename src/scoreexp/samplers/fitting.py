r"""Fitting a solver of few evaluations to a model: times and coefficients with the smallest error on training starts.

1. Reference: the probability flow from some starts, by an adaptive solver, with its states on the way.
2. Start, the one with the smallest error of two kinds: times even in a power of the angle ``arctan(sigma / alpha)``, and the
   coefficients of each step by least squares, from the solver's own state to the reference's at the next time; or times
   and coefficients of a UniPC method on a usual grid, which every linear multistep method can be written with.
3. Descent: L-BFGS through the model on the logarithm of the mean squared distance at the end, over the gaps of the angle
   and the coefficients. These are taken in the orthonormal coordinates of the least squares (a QR decomposition for each
   step), where the problem is well scaled.
4. The error is that on held-out starts, and what is worse there than the start of the descent is not taken. Beside it
   stands that of ``Auto`` without a fit at as many evaluations, from the same starts.

References:
    N. Shaul et al., "Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models", 2024,
    https://arxiv.org/abs/2403.01329, for the descent;
    E. Frankel, S. Chen, J. Li, P. W. Koh, L. J. Ratliff, S. Oh, "S4S: Solving for a Diffusion Model Solver", 2025,
    https://arxiv.org/abs/2502.17423, for solvers fitted to a reference solver.
"""

import math
from itertools import pairwise, product
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.numerics.ode import RK45
from scoreexp.samplers.auto import Auto
from scoreexp.samplers.base import Sampler, batch_of
from scoreexp.samplers.grids import KarrasGrid, LogSNRGrid, QuadraticGrid, SpacedGrid
from scoreexp.samplers.labels import Label, labels_for
from scoreexp.samplers.non_stationary import NonStationary, combined
from scoreexp.samplers.probability_flow import ProbabilityFlow
from scoreexp.samplers.starts import start_from_prior
from scoreexp.samplers.unipc import UniPC
from scoreexp.samplers.unipc_velocity import UniPCVelocity
from scoreexp.schedules import Schedule

PURPOSE = "solver fit"  # of the random streams: never the noise of a sample
STATES = 97  # of a reference trajectory
POWERS = (1.0, 1.4, 2.0)  # of the angle
VALUES = 65536  # that the starts have together, as far as their number allows
FEWEST, MOST = 32, 1024  # starts
AT_ONCE = 24576  # values that go through the model together with gradients
NEAR = 1e-3  # of the first gap of the angle: evaluated at t_max, as far as times that fall allow
RIDGE = 1e-5  # of the least squares, relative to each term


class _Steady(UniPC):
    """Never evaluates twice at a time."""

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> Any:
        return super().init_state(model, x, times)._replace(restart=False)


class _SteadyVelocity(_Steady, UniPCVelocity):
    pass


METHODS, GRIDS = (_SteadyVelocity, _Steady), (QuadraticGrid, LogSNRGrid, KarrasGrid)
ORDERS: tuple[Literal[2, 3], ...] = (2, 3)


class AngleGrid(SpacedGrid):
    """Even in a power of the angle ``arctan(sigma / alpha)``: with the power 2 denser near the data."""

    def __init__(self, steps: int, power: float = 1.0) -> None:
        super().__init__(steps)
        self.power = power

    def _between(self, schedule: Schedule, start: float, end: float, fraction: Tensor) -> Tensor:
        (first, last) = (_angle(schedule, t) for t in (start, end))
        return _time(schedule, last + (first - last) * (1 - fraction) ** self.power)


def _angle(schedule: Schedule, t: float) -> float:
    alpha, sigma = schedule.at(t)
    return math.atan2(sigma, alpha)


def _time(schedule: Schedule, angle: Tensor) -> Tensor:
    low, high = schedule.sigma_range
    return schedule.t_of_sigma(angle.clamp(max=math.pi / 2).tan().clamp(low, high))


class Trajectories(NamedTuple):
    """Solutions of the probability flow.

    Attributes:
        times: ``[M]``, from ``t_max`` to ``t_min``.
        states: ``[M, B, *]``.
        ends: the posterior means at the last time, ``[B, *]``.
        cond: labels ``[B]``, or None.
    """

    times: Tensor
    states: Tensor
    ends: Tensor
    cond: Tensor | None


class FittedSolver(NamedTuple):
    """A solver and its error.

    Attributes:
        sampler: the solver.
        error: root of the mean squared distance to the end of the flow, over held-out starts, in the units of the data.
        error_fitted: the same over the starts that it was fitted on.
        base: ``Auto`` of as many evaluations, which is fitted to nothing.
        base_error: its error over the held-out starts; infinite where it does not run.
    """

    sampler: NonStationary
    error: float
    error_fitted: float
    base: Auto
    base_error: float

    @property
    def better(self) -> Sampler:
        """The one of the two with the smaller error over the held-out starts."""
        return self.base if self.base_error < self.error else self.sampler


def trajectories(
    model: DenoiserBase,
    starts: int | None = None,
    *,
    label: Label = None,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
) -> Trajectories:
    """The flow from so many starts; by default 32 to 1024, fewer for larger samples."""
    if model.event_shape is None:
        raise ValueError("the model does not say of what shape its samples are: load it from a checkpoint")
    if starts is None:
        starts = min(max(VALUES // math.prod(model.event_shape), FEWEST), MOST)
    streams = ImageStreams(range(starts), PURPOSE)
    cond = labels_for(streams.seeds, model.record, label, device=model.device)
    x = start_from_prior(model, model.event_shape, streams, dtype=dtype, device=model.device)
    flow = ProbabilityFlow(AngleGrid(STATES, 1.5), RK45(tolerance, tolerance), denoise_last=False)
    found = flow(model, x, streams=streams, cond=cond, keep=STATES)
    with torch.no_grad():
        ends = model.begin()(found.x, batch_of(found.times[-1].item(), x), cond)
    return Trajectories(found.times, torch.stack(found.trajectory), ends, cond)


@checked
def fit_solver(
    model: DenoiserBase,
    evaluations: PositiveInt,
    *,
    denoise_last: bool = True,
    label: Label = None,
    reference: Trajectories | None = None,
    iterations: PositiveInt = 60,
    tolerance: PositiveFloat = 1e-5,
) -> FittedSolver:
    """A ``NonStationary`` solver of so many evaluations for ``model``, from ``t_max``.

    >>> import torch
    >>> import scoreexp as se
    >>> means, variances = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.1, 0.1])
    >>> oracle = se.oracles.GaussianMixture(torch.tensor([0.5, 0.5]), means, variances)
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> fitted = se.samplers.fit_solver(model, 4, reference=se.samplers.trajectories(model, 64), iterations=10)
    >>> se.samplers.draw(model, fitted.sampler, seeds=[0, 1]).nfe, fitted.error < 0.2
    (4, True)

    Args:
        model: the denoiser, in evaluation mode.
        evaluations: of the model, for each sample.
        denoise_last: aim at ``E[x_0 | x_t]`` at the last time, else at the state there.
        label: as for ``sample``; for a model with classes.
        reference: ``trajectories(model)`` by default. A quarter of them is held out.
        iterations: of the descent, about 4 evaluations of the model with gradient each, for every one of ``evaluations``.
        tolerance: of the reference, relative and absolute.

    Raises:
        ValueError: if the model does not say of what shape its samples are, the schedule has one noise level only, there
            are fewer than 4 trajectories, or more evaluations than states of these.
    """
    low, high = model.schedule.sigma_range
    if low == high:
        raise ValueError(
            f"the {type(model.schedule).__name__} schedule has the one noise level {low:.6g}: there is no flow to solve, "
            "choose sampler=ddim"
        )
    reference = reference or trajectories(model, label=label, tolerance=tolerance)
    if evaluations > len(reference.times) - 2:
        raise ValueError(
            f"{evaluations} evaluations: a solver is fitted for at most {len(reference.times) - 2}, with more choose "
            "sampler=unipc_velocity"
        )
    held_out = len(reference.ends) // 4
    fitted_on, tested_on = _split(reference, held_out)
    training = _Fit(model, fitted_on, evaluations, denoise_last)
    test = _Fit(model, tested_on, evaluations, denoise_last)
    test.mean = training.mean
    starts = [training.least_squares(power) for power in POWERS] + training.usual()
    start = min(starts, key=training.error)
    found = training.descent(start, iterations)
    best = min((start, found), key=test.error)
    sampler = NonStationary(
        [model.schedule.t_max, *best.times.tolist(), model.schedule.t_min],
        [c.tolist() for c in best.coefficients],
        training.mean,
    )
    base = Auto(evaluations, denoise_last)
    return FittedSolver(sampler, test.error(best), training.error(best), base, test.error_of(base))


def _split(reference: Trajectories, held_out: int) -> tuple[Trajectories, Trajectories]:
    if not held_out:
        raise ValueError(
            f"{len(reference.ends)} reference trajectories: give 4 or more, a quarter is held out"
        )

    def part(rows: slice) -> Trajectories:
        cond = None if reference.cond is None else reference.cond[rows]
        return Trajectories(reference.times, reference.states[:, rows], reference.ends[rows], cond)

    return part(slice(held_out, None)), part(slice(held_out))


class _Symbols(DenoiserBase, wraps=True):
    """Stands for a model: its k-th prediction is the k-th unit vector, so that states are their own coefficients."""

    event_shape = ()

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.times: list[float] = []
        self.states: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.times.append(t[0].item())
        self.states.append(x_t)
        unit = torch.zeros_like(x_t)
        unit[len(self.times) : len(self.times) + 1] = 1.0  # none beyond the last: written_out refuses that
        return unit


def written_out(schedule: Schedule, sampler: Sampler) -> tuple[Tensor, list[Tensor]]:
    """The times and coefficients with which ``NonStationary`` takes the steps of a linear multistep method.

    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> times, coefficients = written_out(VP(), DDIM(UniformGrid(4), denoise_last=False))
    >>> len(times), [len(c) for c in coefficients], [int((c.abs() > 1e-9).sum()) for c in coefficients]
    (4, [2, 3, 4], [2, 2, 2])

    Raises:
        ValueError: if it evaluates twice at a time, or the schedule does not suit it.
    """
    times = sampler.grid(schedule)
    symbols = _Symbols(schedule)
    start = torch.zeros(len(times) + 1, dtype=torch.float64)
    start[0] = 1.0
    end = sampler(symbols, start, streams=ImageStreams(range(len(start)))).x
    if symbols.times != times[:-1].tolist():
        raise ValueError(
            f"{type(sampler).__name__} does not evaluate once at each time but the last: it cannot be written so"
        )
    coefficients = []
    for i, (state, after) in enumerate(pairwise([*symbols.states, end])):
        a = after[0] / state[0]  # the start is eliminated
        coefficients.append(torch.cat([a[None], (after - a * state)[1 : i + 2]]))
    return times, coefficients


class _Solver(NamedTuple):
    """Times ``t_1 ... t_n``, and for each step the coefficients c and R, so that ``R c`` is in units of the state."""

    times: Tensor
    coefficients: list[Tensor]
    scales: list[Tensor]


class _Fit:
    """The mean squared distance of solvers to the ends of trajectories."""

    def __init__(
        self, model: DenoiserBase, reference: Trajectories, evaluations: int, denoise_last: bool
    ) -> None:
        self.model, self.reference, self.evaluations = model, reference, evaluations
        self.start = reference.states[0]
        self.target = reference.ends if denoise_last else reference.states[-1]
        with torch.no_grad():
            t = batch_of(model.schedule.t_max, self.start)
            self.mean = model.begin()(self.start, t, reference.cond).mean(0)

    def squared(self, solver: _Solver, rows: slice = slice(None)) -> Tensor:
        """Sum of squared distances to the targets, by the steps of ``NonStationary``, differentiable in all its numbers."""
        x = self.start[rows]
        cond = None if self.reference.cond is None else self.reference.cond[rows]
        model, known = self.model.begin(), [self.mean.expand_as(x)]
        for i, coefficients in enumerate(solver.coefficients):
            if i:
                known.append(model(x, solver.times[i - 1].expand(len(x)), cond))
            x = combined(coefficients.to(x), x, known)
        return (x - self.target[rows]).double().square().sum()

    def error(self, solver: _Solver) -> float:
        """Root of the mean squared distance; infinite where it is not a number."""
        with torch.no_grad():
            squared = self.squared(solver).item() / len(self.start)
        return math.sqrt(squared) if math.isfinite(squared) else math.inf

    def error_of(self, sampler: Sampler) -> float:
        """That of a deterministic sampler from the same starts."""
        streams = ImageStreams(range(len(self.start)), PURPOSE)
        try:
            end = sampler(self.model, self.start, streams=streams, cond=self.reference.cond).x
        except (ValueError, FloatingPointError):  # the schedule does not suit it, or it left all bounds
            return math.inf
        return (end - self.target).double().square().flatten(1).sum(1).mean().sqrt().item()

    def least_squares(self, power: float) -> _Solver:
        """Even times, and each step fitted from the solver's state to the reference at the next time."""
        n = self.evaluations
        # the first of n + 1 gaps is half as long as the others: there the mean stands for the prediction
        fraction = (torch.arange(n + 1, dtype=torch.float64) + 0.5) / (n + 0.5)
        schedule = self.model.schedule
        high, low = _angle(schedule, schedule.t_max), _angle(schedule, schedule.t_min)
        wanted = _time(schedule, low + (high - low) * (1 - fraction) ** power)
        at = [int((self.reference.times - t).abs().argmin()) for t in wanted.tolist()]
        for k in range(n - 1, -1, -1):  # different states of the reference, the last one for the end only
            at[k] = min(at[k], at[k + 1] - 1)
        at = [max(index, k + 1) for k, index in enumerate(at)]
        targets = [*self.reference.states[at[:-1]], self.target]
        return self.scaled(self.reference.times[at[:-1]], targets=targets)

    def usual(self) -> list[_Solver]:
        """UniPC methods on usual grids, as far as they suit the schedule.

        Their first prediction is the mean, or that at a time next to ``t_max``.
        """
        found, schedule = [], self.model.schedule
        for method, grid, order, mean in product(METHODS, GRIDS, ORDERS, (True, False)):
            try:
                sampler = method(grid(self.evaluations + 1 + mean), order, denoise_last=False)
                times, coefficients = written_out(schedule, sampler)
            except (ValueError, ArithmeticError):  # the schedule does not suit it
                continue
            if not mean:
                first, second = (_angle(schedule, t) for t in times[:2].tolist())
                near = _time(schedule, torch.tensor([first + NEAR * (second - first)], dtype=torch.float64))
                times = torch.cat([times[:1], near, times[1:]])
                stay = torch.tensor([1.0, 0.0], dtype=torch.float64)
                coefficients = [stay, *(torch.cat([c[:1], stay[1:], c[1:]]) for c in coefficients)]
            found.append(self.scaled(times[1:-1], coefficients))
        return found

    @torch.no_grad()
    def scaled(
        self, times: Tensor, coefficients: list[Tensor] | None = None, targets: list[Tensor] | None = None
    ) -> _Solver:
        """The solver with coefficients as given, or each step fitted to its target, and their scales."""
        model, x, known = self.model.begin(), self.start, [self.mean.expand_as(self.start)]
        chosen, scales = [], []
        for i in range(len(times) + 1):
            if i:
                known.append(model(x, batch_of(times[i - 1].item(), x), self.reference.cond))
            terms = torch.stack([v.double().flatten() for v in (x, *known)], 1)
            norms = terms.norm(dim=0).clamp(min=1e-300)
            ridge = RIDGE * torch.eye(len(norms), dtype=torch.float64, device=x.device)
            q, r = torch.linalg.qr(torch.cat([terms / norms, ridge]))
            r = r * norms
            if targets is not None:
                projected = q[: len(terms)].T @ targets[i].double().flatten()
                step = torch.linalg.solve_triangular(r, projected[:, None], upper=True)[:, 0].cpu()
            else:
                assert coefficients is not None
                step = coefficients[i]
            chosen.append(step)
            scales.append(r.cpu() / math.sqrt(len(x)))
            x = combined(step.to(x), x, known)
        return _Solver(times, chosen, scales)

    def descent(self, start: _Solver, iterations: int) -> _Solver:
        """L-BFGS from ``start``."""
        schedule, n = self.model.schedule, self.evaluations
        high, low = _angle(schedule, schedule.t_max), _angle(schedule, schedule.t_min)
        angles = [high, *(_angle(schedule, t) for t in start.times.tolist()), low]
        gaps = -torch.tensor(angles, dtype=torch.float64).diff()
        sizes = [len(c) for c in start.coefficients]
        inverses = [torch.linalg.inv(r) for r in start.scales]

        def solver(point: Tensor) -> _Solver:
            shares = point[: n + 1].softmax(0).cumsum(0)[:-1]
            scaled = point[n + 1 :].split(sizes)
            coefficients = [inverse @ c for inverse, c in zip(inverses, scaled, strict=True)]
            return _Solver(_time(schedule, high - (high - low) * shares), coefficients, start.scales)

        size = max(1, AT_ONCE // self.start[0].numel())
        parts = [slice(k, k + size) for k in range(0, len(self.start), size)]

        def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
            """The logarithm of the sum of squares and its gradient."""
            point, total = torch.from_numpy(values).requires_grad_(), 0.0
            slope = np.zeros_like(values)
            for rows in parts:
                with torch.enable_grad():
                    squared = self.squared(solver(point), rows)
                    slope += torch.autograd.grad(squared, point)[0].numpy()  # the model's weights keep theirs
                total += squared.item()
            if not math.isfinite(total):
                return 1e9, np.zeros_like(values)
            total = max(total, 1e-300)
            return math.log(total), slope / total

        first = torch.cat(
            [gaps.log(), *(r @ c for r, c in zip(start.scales, start.coefficients, strict=True))]
        )
        options = {"maxiter": iterations, "maxcor": 30, "ftol": 1e-7}
        found = minimize(loss, first.numpy(), jac=True, method="L-BFGS-B", options=options)
        with torch.no_grad():
            return solver(torch.from_numpy(found.x))
