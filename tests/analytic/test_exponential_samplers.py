"""Exponential integrators: their coefficients, their papers' algorithms, and the order they keep through the start.

Orders of all deterministic samplers are measured on a held-out mixture in 5 dimensions with the exact denoiser in float64,
from the noise level 2 to 0.1. There a start of too low an order shows; from the prior it does not, because the prediction
hardly changes in the first steps.
"""

import math
from decimal import Decimal, getcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from test_sampler_orders import SAMPLERS, end_at, fitted_order

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import OracleDenoiser
from scoreexp.numerics.ode import RK45
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.samplers import (
    DEIS,
    DPMSolverPP3M,
    DPMSolverPPSinglestep,
    LogSNRGrid,
    ProbabilityFlow,
    SASolver,
    SDEDPMSolverPP,
    UniformGrid,
    UniPC,
    start_from_prior,
)
from scoreexp.samplers.exponential import (
    Prediction,
    data_step,
    exact_moments,
    half_log_snr,
    noise_step,
    phi,
    quadrature,
    sde_step,
    time_between,
)
from scoreexp.schedules import EDM, VP, Cosine

N = 16
STREAMS = ImageStreams(range(N))
MIXTURE = GaussianMixture(
    torch.tensor([0.1, 0.2, 0.3, 0.4]),
    torch.randn(4, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.7,
    torch.rand(4, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 0.25 + 0.05,
)
SCHEDULES = {"vp": VP(), "cosine": Cosine(), "edm": EDM()}


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_functions_to_rounding(k):
    getcontext().prec = 60
    for z in (0.0, 1e-12, -1e-6, 0.3, -0.999, 1.0, -1.001, 2.5, -6.0, 12.0):
        series = sum(Decimal(z) ** m / math.factorial(m + k) for m in range(1, 120)) + 1 / Decimal(
            math.factorial(k)
        )
        assert phi(k, z) == pytest.approx(float(series), rel=3e-14)


@pytest.mark.parametrize("nodes", [(0.0,), (1.0, 0.0), (0.0, -0.7), (1.0, 0.0, -1.3, -1.9)])
@pytest.mark.parametrize("z", [-2.3, -1e-7, 0.8])
def test_quadrature_is_exact_for_polynomials(nodes, z):
    weights = quadrature(nodes, exact_moments(len(nodes), z))
    for k in range(len(nodes)):
        integral = quad(lambda u, k=k: math.exp((1 - u) * z) * u**k, 0, 1, epsabs=1e-14)[0]
        assert sum(w * c**k for w, c in zip(weights, nodes)) == pytest.approx(integral, abs=1e-13)


@pytest.fixture(scope="module")
def flows():
    """The flow from the noise level 2 to 0.1: for each schedule the first time and state, and the solution."""
    found = {}
    for name, schedule in SCHEDULES.items():
        t = end_at(schedule, 2.0)
        alpha, sigma = schedule.at(t)
        z = torch.randn(N, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = alpha * MIXTURE.sample(N, torch.Generator().manual_seed(1)) + sigma * z
        flow = ProbabilityFlow(UniformGrid(2, end_at(schedule)), RK45(1e-12, 1e-12), denoise_last=False)
        found[name] = t, x, flow(OracleDenoiser(MIXTURE, schedule), x, streams=STREAMS, t_start=t).x
    return found


def errors(build, steps, schedule, flow):
    t, x, solution = flow
    model = OracleDenoiser(MIXTURE, schedule)
    grids = [LogSNRGrid(n + 1, t_end=end_at(schedule)) for n in steps]
    return [
        (build(grid, denoise_last=False)(model, x, streams=STREAMS, t_start=t).x - solution).norm().item()
        for grid in grids
    ]


# F-PNDM settles to its order only beyond some hundred steps
DETERMINISTIC = {name: (build, order) for name, (build, order, _) in SAMPLERS.items() if name != "pndm_f"} | {
    "sa_solver_1": (lambda grid, **kw: SASolver(grid, 0.0, 1, **kw), 2),
    "sa_solver_2": (lambda grid, **kw: SASolver(grid, 0.0, 2, **kw), 3),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_order_holds_from_the_first_step(name, schedule, flows):
    build, order = DETERMINISTIC[name]
    steps = [80, 120, 180, 270] if order == 4 and "unipc" in name else [30, 45, 68, 100]
    found = fitted_order(steps, errors(build, steps, SCHEDULES[schedule], flows[schedule]))
    # that of the velocity climbs to 4: 3.7, 3.8 and 3.9 between these steps
    assert found == pytest.approx(order, abs=0.3 if name == "unipc_velocity_3" else 0.12)


class FourTimes(UniformGrid):
    """Times of uneven steps, none of them early."""

    def __call__(self, schedule, *, t_start=None):
        return torch.tensor([0.6, 0.45, 0.4, 0.1], dtype=torch.float64)


class Uneven:
    """The exact denoiser on ``FourTimes`` of VP, in the symbols of the papers."""

    def __init__(self):
        self.t = FourTimes(4)(VP())
        self.alpha, self.sigma = (v.tolist() for v in VP()(self.t))
        self.lam = [math.log(a / s) for a, s in zip(self.alpha, self.sigma)]
        self.model = OracleDenoiser(MIXTURE, VP())
        self.x = start_from_prior(self.model, (5,), STREAMS, dtype=torch.float64)

    def x0(self, x, i):
        return self.model(x, self.t[i].expand(N))

    def eps(self, x, i):
        return self.model.eps(x, self.t[i].expand(N))

    def ddim(self, x, D, i, j):
        h = self.lam[j] - self.lam[i]
        return self.sigma[j] / self.sigma[i] * x - self.alpha[j] * math.expm1(-h) * D

    def result_of(self, build, streams=STREAMS):
        return build(FourTimes(4), denoise_last=False)(self.model, self.x, streams=streams).x


def test_dpm_solver_pp_3m_is_the_integral_of_newtons_polynomial():
    u = Uneven()
    D = [u.x0(u.x, 0)]
    x = u.ddim(u.x, D[0], 0, 1)
    D.append(u.x0(x, 1))
    # the first step again, with a line
    h = u.lam[1] - u.lam[0]
    phi_2 = math.expm1(-h) / h + 1
    x = u.ddim(u.x, D[0], 0, 1) + u.alpha[1] * phi_2 * (D[1] - D[0])
    for i in (1, 2):
        h, h_0 = u.lam[i + 1] - u.lam[i], u.lam[i] - u.lam[i - 1]
        phi_2 = math.expm1(-h) / h + 1
        slope, curvature = (D[i] - D[i - 1]) / h_0, 0.0
        if i == 2:
            h_1 = u.lam[1] - u.lam[0]
            curvature = (slope - (D[1] - D[0]) / h_1) / (h_0 + h_1)  # f[0, -1, -2]
        # f + slope s + curvature s (s + h_0), times e^{-(h - s)}, from 0 to h
        x = u.ddim(x, D[i], i, i + 1)
        x = x + u.alpha[i + 1] * (h * phi_2 * (slope + curvature * h_0) + 2 * h * (h / 2 - phi_2) * curvature)
        D.append(u.x0(x, i + 1))
    torch.testing.assert_close(u.result_of(DPMSolverPP3M), x, rtol=0, atol=1e-12)


def test_2s_and_3s_are_the_papers_algorithms():
    u = Uneven()
    results = {2: u.x, 3: u.x}
    for i, j in pairwise(range(4)):
        h = u.lam[j] - u.lam[i]

        def at(part, i=i, h=h):
            t = end_at(VP(), math.exp(-(u.lam[i] + part * h)))
            return (*VP().at(t), torch.full((N,), t, dtype=torch.float64))

        x = results[2]
        D0 = u.x0(x, i)
        alpha, sigma, t = at(1 / 2)
        middle = sigma / u.sigma[i] * x - alpha * math.expm1(-h / 2) * D0
        results[2] = u.ddim(x, u.model(middle, t), i, j)

        x, r1, r2 = results[3], 1 / 3, 2 / 3
        D0 = u.x0(x, i)
        alpha, sigma, t = at(r1)
        u1 = sigma / u.sigma[i] * x - alpha * math.expm1(-r1 * h) * D0
        D1 = u.model(u1, t) - D0
        alpha, sigma, t = at(r2)
        u2 = sigma / u.sigma[i] * x - alpha * math.expm1(-r2 * h) * D0
        u2 = u2 + alpha * r2 / r1 * (math.expm1(-r2 * h) / (r2 * h) + 1) * D1
        D2 = u.model(u2, t) - D0
        results[3] = u.ddim(x, D0, i, j) + u.alpha[j] / r2 * (math.expm1(-h) / h + 1) * D2
    for order, x in results.items():
        result = u.result_of(lambda grid, order=order, **kw: DPMSolverPPSinglestep(grid, order, **kw))
        torch.testing.assert_close(result, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_solves_zhao_et_als_linear_system(order):
    u = Uneven()

    def stepped(x, i, j, past, new=None):
        """From i to j with the predictions at i and the ``past`` indices, and at j for a corrector."""
        h = u.lam[j] - u.lam[i]
        r = [(u.lam[k] - u.lam[i]) / h for k in past] + [1.0] * (new is not None)
        differences = [D[k] - D[i] for k in past] + ([new - D[i]] if new is not None else [])
        x = u.ddim(x, D[i], i, j)
        if not r:
            return x
        B = math.expm1(-h)
        b, phi_k = [], math.expm1(-h) / -h - 1
        for k in range(1, len(r) + 1):
            b.append(phi_k * math.factorial(k) / B)
            phi_k = phi_k / -h - 1 / math.factorial(k + 1)
        a = (
            [0.5]
            if len(r) == 1
            else np.linalg.solve([[c ** (k - 1) for c in r] for k in range(1, len(r) + 1)], b)
        )
        return x - u.alpha[j] * B * sum(a_m * d / c for a_m, d, c in zip(a, differences, r))

    D, x = {0: u.x0(u.x, 0)}, u.x
    predicted = stepped(x, 0, 1, [])
    for i in (1, 2):
        new = u.x0(predicted, i)
        x = stepped(x, i - 1, i, list(range(i - 2, -1, -1))[: order - 1], new)
        D[i] = new
        predicted = stepped(x, i, i + 1, list(range(i - 1, -1, -1))[: order - 1])
    result = u.result_of(lambda grid, **kw: UniPC(grid, order, **kw))
    torch.testing.assert_close(result, predicted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_integrates_lagranges_polynomials(order):
    u = Uneven()
    x0, eps = u.x0(u.x, 0), [u.eps(u.x, 0)]
    x = u.ddim(u.x, x0, 0, 1)
    eps.append(u.eps(x, 1))
    if order == 3:
        h = u.lam[1] - u.lam[0]
        x = x + u.alpha[1] * (math.expm1(-h) / h + 1) * (u.x0(x, 1) - x0)
    for i in (1, 2):
        nodes = list(range(i, -1, -1))[:order]
        y = u.alpha[i + 1] / u.alpha[i] * x
        for j in nodes:
            others = [k for k in nodes if k != j]

            def integrand(lam, j=j, others=others):
                return math.exp(-lam) * math.prod((lam - u.lam[k]) / (u.lam[j] - u.lam[k]) for k in others)

            y = y - u.alpha[i + 1] * quad(integrand, u.lam[i], u.lam[i + 1], epsabs=1e-13)[0] * eps[j]
        x = y
        eps.append(u.eps(x, i + 1))
    result = u.result_of(lambda grid, **kw: DEIS(grid, order, **kw))
    torch.testing.assert_close(result, x, rtol=0, atol=1e-10)


def test_sde_dpm_solver_pp_is_lu_et_als_update():
    u, streams = Uneven(), ImageStreams(range(N), "sde")
    x, D = u.x, []
    for i, j in pairwise(range(4)):
        h = u.lam[j] - u.lam[i]
        D.append(u.x0(x, i))
        mean = D[i]
        if i > 0:
            r = (u.lam[i] - u.lam[i - 1]) / h
            mean = D[i] + (D[i] - D[i - 1]) / (2 * r)
        z = streams.normal(x)
        x = u.sigma[j] / u.sigma[i] * math.exp(-h) * x + u.alpha[j] * (1 - math.exp(-2 * h)) * mean
        x = x + u.sigma[j] * math.sqrt(1 - math.exp(-2 * h)) * z
    torch.testing.assert_close(
        u.result_of(SDEDPMSolverPP, ImageStreams(range(N), "sde")), x, rtol=0, atol=1e-12
    )


def test_sa_solver_is_xue_et_als_algorithm_1():
    tau, order, u, streams = 0.7, 2, Uneven(), ImageStreams(range(N), "sa")

    def mean(x, i, j, nodes):
        h = u.lam[j] - u.lam[i]
        y = u.sigma[j] / u.sigma[i] * math.exp(-(tau**2) * h) * x
        for k in nodes:
            others = [m for m in nodes if m != k]

            def integrand(lam, k=k, others=others):
                weight = math.exp(-(1 + tau**2) * (u.lam[j] - lam))
                return weight * math.prod((lam - u.lam[m]) / (u.lam[k] - u.lam[m]) for m in others)

            b = u.alpha[j] * (1 + tau**2) * quad(integrand, u.lam[i], u.lam[j], epsabs=1e-13)[0]
            y = y + b * D[k]
        return y

    D, x, predicted, noise = {0: u.x0(u.x, 0)}, u.x, u.x, torch.zeros(N, 5)
    for i, j in pairwise(range(4)):
        if i > 0:
            D[i] = u.x0(predicted, i)
            x = mean(x, i - 1, i, list(range(i, -1, -1))[: order + 1]) + noise
        share = 1 - math.exp(-2 * tau**2 * (u.lam[j] - u.lam[i]))
        noise = u.sigma[j] * math.sqrt(share) * streams.normal(x)
        predicted = mean(x, i, j, list(range(i, -1, -1))[:order]) + noise
    result = u.result_of(lambda grid, **kw: SASolver(grid, tau, order, **kw), ImageStreams(range(N), "sa"))
    torch.testing.assert_close(result, predicted, rtol=0, atol=1e-10)


class EndsAtZero:
    """alpha = 1 - t and sigma = t, of which a step reads no more."""

    def at(self, t):
        return 1 - t, t

    def t_of_sigma(self, ratio):
        return ratio / (1 + ratio)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("t", [1.0, 0.95])
def test_early_steps_are_exact_for_polynomials_in_alpha_over_sigma(t):
    # x_0 = 0.3 - 2 u + 5 u^2, whose flow is x / sigma = x_t / sigma_t + 0.3 u - u^2 + 5 u^3 / 3
    schedule, x, s = EndsAtZero(), column(0.4, -1.0), 0.8
    u = (1 - t) / t, (1 - s) / s

    def prediction(time):
        u = (1 - time) / time
        return Prediction(half_log_snr(schedule, time), column(*[0.3 - 2 * u + 5 * u**2] * 2))

    integral = [0.3 * v - v**2 + 5 * v**3 / 3 for v in u]
    expected = s * (x / t + integral[1] - integral[0])
    known = [prediction(v) for v in (t, s, 0.9)]
    torch.testing.assert_close(data_step(schedule, x, t, s, known), expected, rtol=0, atol=1e-14)
    assert time_between(schedule, t, s, 1 / 3) == pytest.approx(1 / (1 + 2 / 3 * u[0] + u[1] / 3), rel=1e-14)


def test_a_prediction_at_alpha_0_is_not_extrapolated_later():
    schedule, x = EndsAtZero(), column(0.4)
    first, second = (
        Prediction(half_log_snr(schedule, 1.0), column(0.2)),
        Prediction(half_log_snr(schedule, 0.6), column(0.5)),
    )
    for step in (data_step, noise_step, lambda *a: sde_step(*a, 1.0)[0]):
        both, alone = (step(schedule, x, 0.6, 0.3, known) for known in ([second, first], [second]))
        assert torch.equal(both, alone)
    mean, std = sde_step(schedule, x, 1.0, 0.6, [first], 1.0)  # the state is forgotten
    assert (mean.item(), std) == pytest.approx((0.4 * 0.2, 0.6))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: SASolver(UniformGrid(2), tau=-1.0), r"tau=-1\.0 must be a number >= 0"),
        (lambda: SASolver(UniformGrid(2), order=4), "order=4 must be 1, 2 or 3"),
    ],
)
def test_bad_parameters_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
