"""Deterministic samplers: measured orders, closed-form flows, their papers' algorithms and their errors.

Orders are measured on a mixture of Gaussians with the exact denoiser in float64, on grids that end at the noise level
0.1, against the probability flow solved to 1e-10.
"""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import Denoiser, OracleDenoiser
from scoreexp.denoisers.preconditioning import EpsPrediction
from scoreexp.numerics.ode import RK45, RungeKutta
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.samplers import (
    DDIM,
    DEIS,
    PNDM,
    DPMSolverPP,
    DPMSolverPP3M,
    DPMSolverPPSinglestep,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    ProbabilityFlow,
    UniformGrid,
    UniPC,
    UniPCVelocity,
    start_from_prior,
)
from scoreexp.schedules import DDPM as DDPMSchedule
from scoreexp.schedules import EDM, VE, VP, ConstantNoise, FlowMatching, VEPower

# name: (how to build, order, evaluations for N times without the last denoising)
SAMPLERS = {
    "ddim": (lambda grid, **kw: DDIM(grid, **kw), 1, lambda n: n - 1),
    "heun": (lambda grid, **kw: Heun(grid, **kw), 2, lambda n: 2 * (n - 1)),
    "dpm_solver_pp": (lambda grid, **kw: DPMSolverPP(grid, **kw), 2, lambda n: n - 1),
    "dpm_solver_pp_3m": (lambda grid, **kw: DPMSolverPP3M(grid, **kw), 3, lambda n: n - 1),
    "dpm_solver_pp_2s": (lambda grid, **kw: DPMSolverPPSinglestep(grid, 2, **kw), 2, lambda n: 2 * (n - 1)),
    "dpm_solver_pp_3s": (lambda grid, **kw: DPMSolverPPSinglestep(grid, 3, **kw), 3, lambda n: 3 * (n - 1)),
    "deis_2": (lambda grid, **kw: DEIS(grid, 2, **kw), 2, lambda n: n - 1),
    "deis_3": (lambda grid, **kw: DEIS(grid, 3, **kw), 3, lambda n: n - 1),
    "unipc_2": (lambda grid, **kw: UniPC(grid, 2, **kw), 3, lambda n: n - 1),
    "unipc_3": (lambda grid, **kw: UniPC(grid, 3, **kw), 4, lambda n: n - 1 + (n >= 20)),
    "unipc_velocity_2": (lambda grid, **kw: UniPCVelocity(grid, 2, **kw), 3, lambda n: n - 1),
    "unipc_velocity_3": (lambda grid, **kw: UniPCVelocity(grid, 3, **kw), 4, lambda n: n - 1 + (n >= 20)),
    "pndm_s": (lambda grid, **kw: PNDM(grid, "S", **kw), 2, lambda n: n),
    "pndm_f": (lambda grid, **kw: PNDM(grid, "F", **kw), 2, lambda n: n + 8),
    "flow_euler": (lambda grid, **kw: ProbabilityFlow(grid, RungeKutta("euler"), **kw), 1, lambda n: n - 1),
    "flow_rk4": (lambda grid, **kw: ProbabilityFlow(grid, RungeKutta("rk4"), **kw), 4, lambda n: 4 * (n - 1)),
}
# where rounding is not yet seen, or the next order no more
STEPS = {
    "flow_rk4": [20, 30, 45, 68],
    "dpm_solver_pp_3m": [135, 200, 300, 450],
    "unipc_3": [220, 300, 400, 530],
    "unipc_velocity_3": [220, 300, 400, 530],
}
NEW = {name: build for name, (build, *_) in SAMPLERS.items() if name != "ddim"} | {
    "flow_rk45": lambda grid, **kw: ProbabilityFlow(grid, RK45(), **kw)
}
every_new_sampler = pytest.mark.parametrize("build", NEW.values(), ids=NEW.keys())
STRAIGHT = [name for name in NEW if not name.startswith("flow")]  # exact for a constant prediction
SCHEDULES = [VP(), DDPMSchedule(), VE(), VEPower(sigma=25.0), FlowMatching()]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.7]), torch.tensor([[-0.8, 0.0], [0.6, 0.5]]), torch.tensor([0.05, 0.1])
)
STREAMS = ImageStreams(range(16))


def end_at(schedule, level=0.1):
    """The time at which the noise level is `level`."""
    return schedule.t_of_sigma(torch.tensor(level, dtype=torch.float64)).item()


def prior(schedule, n=16):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return schedule.prior_std * z


def solved(schedule, tol, t_end=None):
    grid = UniformGrid(2, t_end=end_at(schedule) if t_end is None else t_end)
    sampler = ProbabilityFlow(grid, RK45(tol, tol), denoise_last=False)
    return sampler(OracleDenoiser(MIXTURE, schedule), prior(schedule), streams=STREAMS)


@pytest.fixture(scope="module")
def exact():
    return {type(s): solved(s, 1e-10).x for s in (VP(), VE())}


def errors_of(build, grids, schedule, reference):
    model, x = OracleDenoiser(MIXTURE, schedule), prior(schedule)
    return [
        (build(g, denoise_last=False)(model, x, streams=STREAMS).x - reference).norm().item() for g in grids
    ]


def fitted_order(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence(name, exact):
    build, order, _ = SAMPLERS[name]
    schedule, steps = VP(), STEPS.get(name, [40, 80, 120, 180])
    grids = [LogSNRGrid(n + 1, t_end=end_at(schedule)) for n in steps]
    errors = errors_of(build, grids, schedule, exact[VP])
    assert fitted_order(steps, errors) == pytest.approx(order, abs=0.3 if name == "unipc_velocity_3" else 0.1)


@pytest.mark.parametrize("name", ["pndm_s", "pndm_f", "dpm_solver_pp"])
def test_order_on_a_grid_in_time(name, exact):
    # where PNDM's even steps are; F has an early fast decay and settles to its order beyond a hundred steps
    build, order, _ = SAMPLERS[name]
    steps = [160, 220, 300, 400]
    grids = [UniformGrid(n + 1, t_end=end_at(VP())) for n in steps]
    assert fitted_order(steps, errors_of(build, grids, VP(), exact[VP])) == pytest.approx(order, abs=0.2)


class FourTimes(UniformGrid):
    """Times of uneven steps."""

    def __call__(self, schedule, *, t_start=None):
        return torch.tensor([0.9, 0.5, 0.4, 0.1], dtype=torch.float64)


def test_dpm_solver_pp_is_lu_et_als_algorithm_2():
    # uneven steps; errors of a wrong step ratio would cancel between neighbours and leave the order as it is
    schedule, x = VP(), prior(VP())
    model, t = OracleDenoiser(MIXTURE, schedule), FourTimes(4)(schedule)
    alpha, sigma = schedule(t)
    lam = (alpha / sigma).log()
    start, buffer = x, [model(x, t[0].expand(16))]
    for i in range(1, 4):
        h = lam[i] - lam[i - 1]
        D = buffer[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            D = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * ((-h).exp() - 1) * D
        buffer.append(model(x, t[i].expand(16)))
    result = DPMSolverPP(FourTimes(4), denoise_last=False)(model, start, streams=STREAMS)
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-12)


def test_four_steps_of_pndm_have_the_smaller_constant(exact):
    for schedule in (VP(), VE()):
        grid = UniformGrid(161, t_end=end_at(schedule))
        (s,), (f,) = (
            errors_of(SAMPLERS[name][0], [grid], schedule, exact[type(schedule)])
            for name in ("pndm_s", "pndm_f")
        )
        assert f < 0.5 * s


@pytest.mark.parametrize(("form", "method", "steps"), [("S", "heun", 1), ("F", "rk4", 3)])
def test_pndm_begins_with_runge_kutta_steps(form, method, steps):
    # where time is the noise level the pseudo steps are the classical ones of dx/dt = eps
    schedule, grid = EDM(), UniformGrid(steps + 1, t_end=1.0)
    model, x = OracleDenoiser(MIXTURE, schedule), prior(schedule, 4) / 40
    result = PNDM(grid, form, denoise_last=False)(model, x, streams=ImageStreams(range(4)), t_start=2.0).x
    for t, s in pairwise(grid(schedule, t_start=2.0).tolist()):
        x = RungeKutta(method)(lambda time, x: model.eps(x, time), x, t, s).y
    torch.testing.assert_close(result, x, rtol=0, atol=1e-12)


def test_pndm_is_runge_kutta_and_adams_bashforth_where_the_transfer_is_linear():
    # time is the noise level: the transfer is a step in time, and the weights have their full order
    schedule, t_start, t_end = EDM(), 8.0, 1.0
    model, x = OracleDenoiser(MIXTURE, schedule), prior(schedule, 4) / 10
    streams, steps = ImageStreams(range(4)), [40, 60, 90, 135]

    def end(sampler):
        return sampler(model, x, streams=streams, t_start=t_start).x

    reference = end(ProbabilityFlow(UniformGrid(2, t_end), RK45(1e-11, 1e-11), denoise_last=False))
    for form, order in (("S", 2), ("F", 4)):
        errors = [
            (end(PNDM(UniformGrid(n + 1, t_end), form, denoise_last=False)) - reference).norm() for n in steps
        ]
        assert fitted_order(steps, errors) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("schedule", [VP(), DDPMSchedule(), VE()], ids=lambda s: type(s).__name__)
def test_rk45_keeps_its_tolerance_on_every_schedule(schedule, exact):
    reference = exact[type(schedule)] if type(schedule) in exact else solved(schedule, 1e-9).x
    evaluations = []
    for tol in (1e-3, 1e-5, 1e-7):
        result = solved(schedule, tol)
        # the flow of this mixture spreads neighbouring points by at most about thirty
        assert (result.x - reference).norm(dim=1).max() < 100 * tol
        evaluations.append(result.nfe)
    # the betas of DDPM are constant on each of 1000 steps; in t that would take thousands of evaluations
    assert evaluations[-1] < 250


@every_schedule
@every_new_sampler
def test_the_flow_of_a_gaussian_is_followed(schedule, build):
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    model, x = OracleDenoiser(Gaussian(mean, covariance), schedule), prior(schedule, 2)
    (alpha_T, sigma_T), (alpha_0, sigma_0) = schedule.at(schedule.t_max), schedule.at(end_at(schedule))
    variances, basis = torch.linalg.eigh(covariance)
    scale = ((alpha_0**2 * variances + sigma_0**2) / (alpha_T**2 * variances + sigma_T**2)).sqrt()
    flow = alpha_0 * mean + ((x - alpha_T * mean) @ basis * scale) @ basis.T
    sampler = build(LogSNRGrid(24, t_end=end_at(schedule)), denoise_last=False)
    bound = 0.25 if build is NEW["flow_euler"] else 0.05
    assert (sampler(model, x, streams=ImageStreams([0, 1])).x - flow).norm(dim=1).max() < bound


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "pndm_f"])
def test_a_schedule_is_only_a_clock_and_a_scale(name):
    # x / alpha at the noise level sigma / alpha is the same in every schedule (F-PNDM halves intervals of time)
    build, results = SAMPLERS[name][0], []
    for schedule in (VP(), DDPMSchedule(), VE()):
        x = prior(VE(), 4) / 2
        grid, t_start = KarrasGrid(12, t_end=end_at(schedule)), end_at(schedule, 50.0)
        model = OracleDenoiser(MIXTURE, schedule)
        start = schedule.at(t_start)[0] * x
        results.append(build(grid)(model, start, streams=ImageStreams(range(4)), t_start=t_start).x)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_are_the_papers(name):
    build, _, evaluations = SAMPLERS[name]
    model, x = OracleDenoiser(MIXTURE, VP()), prior(VP())
    for n in (6, 13, 20):
        assert build(UniformGrid(n), denoise_last=False)(model, x, streams=STREAMS).nfe == evaluations(n)
        assert build(UniformGrid(n))(model, x, streams=STREAMS).nfe == evaluations(n) + 1


def test_heun_is_karras_et_als_algorithm_2():
    # in the paper's symbols, sigma(t) = t, on a schedule of another scale
    s_churn, s_tmin, s_tmax, s_noise, n = 6.0, 0.05, 20.0, 1.003, 12
    t = [*KarrasGrid(n)(EDM(0.02, 80.0)).tolist(), 0.0]
    ones = torch.ones(4, dtype=torch.float64)

    def D(x, sigma):
        return MIXTURE.posterior_mean(x, ones, sigma * ones)

    streams = ImageStreams(range(4))
    x = x_start = 80.0 * ImageStreams(range(4), "prior").normal(torch.empty(4, 2, dtype=torch.float64))
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_tmin <= t[i] <= s_tmax else 0.0
        t_hat = t[i] + gamma * t[i]
        if gamma > 0:
            x = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * streams.normal(x)
        d = (x - D(x, t_hat)) / t_hat
        x_next = x + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x_next - D(x_next, t[i + 1])) / t[i + 1]
            x_next = x + (t[i + 1] - t_hat) * (d + d_next) / 2
        x = x_next

    schedule = VP()
    sampler = Heun(
        KarrasGrid(n, t_end=end_at(schedule, 0.02)),
        s_churn=s_churn,
        s_tmin=s_tmin,
        s_tmax=s_tmax,
        s_noise=s_noise,
    )
    t_start = end_at(schedule, 80.0)
    start = schedule.at(t_start)[0] * x_start
    result = sampler(
        OracleDenoiser(MIXTURE, schedule), start, streams=ImageStreams(range(4)), t_start=t_start
    )
    assert result.nfe == 2 * n - 1
    torch.testing.assert_close(result.x, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "churn"),
    [(EDM(0.02, 80.0), {"s_churn": 30.0, "s_tmax": 50.0}), (FlowMatching(), {"s_churn": 40.0})],
    ids=("edm", "flow"),
)
def test_churn_keeps_the_distribution(schedule, churn):
    # Gaussian data: mean and variance of the result against the exact ones, 4.5 standard errors and the bias of 60 steps
    mean, variance, n = 0.5, 0.3, 4000
    model = OracleDenoiser(Gaussian(torch.tensor([mean]), torch.tensor([variance])), schedule)
    generator = torch.Generator().manual_seed(0)

    class OneStream(ImageStreams):
        def normal(self, like):
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    streams = OneStream([])
    alpha, sigma = schedule.at(schedule.t_max)
    x = alpha * mean + math.hypot(alpha * variance**0.5, sigma) * streams.normal(
        torch.empty(n, 1, dtype=torch.float64)
    )
    x = Heun(UniformGrid(60) if alpha == 0 else KarrasGrid(60), denoise_last=False, **churn)(
        model, x, streams=streams
    ).x
    alpha, sigma = schedule.at(schedule.t_min)
    exact = alpha**2 * variance + sigma**2
    assert x.mean().item() == pytest.approx(alpha * mean, abs=4.5 * math.sqrt(exact / n) + 0.005)
    assert x.var().item() == pytest.approx(exact, rel=4.5 * math.sqrt(2 / n) + 0.02)


def test_the_first_step_of_dpm_solver_pp_is_ddim():
    model, x = OracleDenoiser(MIXTURE, VP()), prior(VP())
    a, b = (build(UniformGrid(2))(model, x, streams=STREAMS).x for build in (DPMSolverPP, DDIM))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("event_shape", [(2,), (3, 4, 4)])
def test_one_image_is_found_from_everywhere(name, event_shape):
    image = torch.rand(1, *event_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for schedule in SCHEDULES:
        model = OracleDenoiser(EmpiricalImages(image), schedule)
        x = start_from_prior(model, event_shape, ImageStreams([0, 1]))
        result = NEW[name](LogSNRGrid(8))(model, x, streams=ImageStreams([0, 1]), keep=3)
        assert result.x.dtype == torch.float32
        assert torch.equal(result.x, image.expand_as(x))
        if name in STRAIGHT:  # alpha x_0 + sigma z on the way
            (alpha, sigma), (alpha_T, sigma_T) = (
                schedule.at(t) for t in (result.times[1].item(), schedule.t_max)
            )
            expected = alpha * image + sigma * (x - alpha_T * image) / sigma_T
            torch.testing.assert_close(result.trajectory[1], expected, rtol=0, atol=1e-4)


def test_more_times_do_not_change_an_adaptive_flow():
    class Spy(RK45):
        def __call__(self, *args, step_size=None, **kwargs):
            given.append(step_size)
            solution = super().__call__(*args, step_size=step_size, **kwargs)
            returned.append(solution.step_size)
            return solution

    given, returned = [], []
    model, x = OracleDenoiser(MIXTURE, VP()), prior(VP())
    few, many = (
        ProbabilityFlow(UniformGrid(n), Spy(1e-8, 1e-8))(model, x, streams=STREAMS, keep=n + 1)
        for n in (2, 9)
    )
    torch.testing.assert_close(many.x, few.x, rtol=0, atol=1e-6)
    assert len(many.trajectory) == 10
    # each interval goes on with the step sizes of the one before
    assert given[0] is given[1] is None
    assert all(a is b for a, b in zip(given[2:], returned[1:-1], strict=True))


class Affine(torch.nn.Module):
    """A network with a parameter; turns to NaN below a noise level."""

    def __init__(self, nan_below):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((), 0.5))
        self.nan_below = nan_below

    def forward(self, x, c_noise, cond=None):
        return torch.where((c_noise < self.nan_below)[:, None], torch.nan, self.weight * x)


@every_new_sampler
def test_a_network_that_fails_midway_is_reported_where_it_does(build):
    schedule = VP()
    model = Denoiser(Affine(nan_below=0.0), EpsPrediction(), schedule)  # c_noise < 0: sigma / alpha < 1
    limit = end_at(schedule, 1.0)
    with pytest.raises(FloatingPointError, match="check the weights of the network") as caught:
        build(UniformGrid(15))(model, torch.ones(1, 2), streams=ImageStreams([0]))
    message = str(caught.value)
    if found := re.search(r"after step (\d+) of 15, from t = ([\d.e-]+) to ([\d.e-]+)", message):
        step, t, s = int(found[1]), float(found[2]), float(found[3])
        # the step whose evaluations, at t or at s, are the first beyond the limit
        assert s < limit < t + (t - s)
        assert torch.isclose(
            UniformGrid(15)(schedule)[step - 1], torch.tensor(t, dtype=torch.float64), rtol=1e-5
        )
    else:  # the flow names the time itself
        t = float(re.search(r"not finite at t = ([\d.e-]+), in evaluation \d+", message)[1])
        assert t < limit


@every_new_sampler
def test_a_schedule_without_growing_noise_is_refused(build):
    model = OracleDenoiser(MIXTURE, ConstantNoise())
    with pytest.raises(ValueError, match=r"ConstantNoise schedule has the same noise level 0\.2 .* choose"):
        build(UniformGrid(5))(model, torch.ones(1, 2), streams=ImageStreams([0]))


def test_churn_beyond_the_schedule_is_refused():
    model, grid = OracleDenoiser(MIXTURE, VE()), KarrasGrid(10)
    with pytest.raises(
        ValueError, match=r"noise level 100 to 120, beyond 100 of the VE .* s_tmax <= 83\.3333"
    ):
        Heun(grid, s_churn=2.0)(model, torch.ones(1, 2), streams=ImageStreams([0]))
    Heun(grid, s_churn=2.0, s_tmax=83.0)(model, torch.ones(1, 2), streams=ImageStreams([0]))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Heun(UniformGrid(2), s_tmin=2.0, s_tmax=1.0), "s_tmin=2.0, s_tmax=1.0"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
