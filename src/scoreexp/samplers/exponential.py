r"""Exponential integrators in the half log-SNR: what multistep and singlestep solvers share.

With :math:`\lambda = \log(\alpha / \sigma)` and :math:`h = \lambda_s - \lambda_t` the probability flow has the exact
solutions

.. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int_0^h e^{-(h - \tau)} \hat x_0(\lambda_t + \tau)\, d\tau, \qquad
          x_s = \frac{\alpha_s}{\alpha_t} x_t - \sigma_s \int_0^h e^{h - \tau} \hat\epsilon(\lambda_t + \tau)\, d\tau .

A solver replaces the prediction by the polynomial through those it knows, at :math:`\lambda_t + c_j h`, and integrates that
exactly: with :math:`z = \mp h` the integral is :math:`h \sum_j w_j(z) \hat x_0(\lambda_t + c_j h)`. Coefficients are Python
floats, hence float64.

While noise dominates, from a :math:`\lambda_t` below -2 (noise levels above 7.4), the polynomial is one in
:math:`u = \alpha / \sigma = e^\lambda`, and :math:`x_s / \sigma_s = x_t / \sigma_t + \int_{u_t}^{u_s} \hat x_0\, du`. The
posterior mean is smooth in u down to ``alpha = 0``, where :math:`\lambda = -\infty`; with polynomials in :math:`\lambda`
alone a schedule that begins there would have order 2 at most on an even grid.

References:
    M. Hochbruck, A. Ostermann, "Exponential integrators", 2010, https://doi.org/10.1017/S0962492910000048;
    C. Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", 2022,
    https://arxiv.org/abs/2206.00927, proposition 3.1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.schedules import Schedule

EARLY = -2.0  # half log-SNR below which polynomials are in alpha / sigma


class Prediction(NamedTuple):
    """What a model predicted, ``[B, *]``, and where: a half log-SNR, unless the sampler says otherwise."""

    at: float
    value: Tensor


def half_log_snr(schedule: Schedule, t: float) -> float:
    """``lambda = log(alpha / sigma)`` of a time; -inf where alpha is 0."""
    alpha, sigma = schedule.at(t)
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def time_between(schedule: Schedule, t: float, s: float, part: float) -> float:
    """The time a ``part`` of the way from ``t`` to ``s``, in ``lambda`` or, from early times, in ``alpha / sigma``."""
    start, end = half_log_snr(schedule, t), half_log_snr(schedule, s)
    if start < EARLY:
        ratio = (1 - part) * math.exp(start) + part * math.exp(end)
    else:
        ratio = math.exp((1 - part) * start + part * end)
    return schedule.t_of_sigma(torch.tensor(1 / ratio, dtype=torch.float64)).item()


def phi(k: int, z: float) -> float:
    r"""``phi_k(z) = int_0^1 e^{(1 - theta) z} theta^{k-1} / (k-1)! dtheta`` for ``k >= 1``, to rounding.

    >>> phi(1, 1e-9) == math.expm1(1e-9) / 1e-9, round(phi(2, -1.0), 6)
    (True, 0.367879)
    """
    if abs(z) < 1:  # where the recurrence below cancels
        term = total = 1 / math.factorial(k)
        for m in range(1, 20):
            term *= z / (k + m)
            total += term
        return total
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


Moments = Callable[[int, float], list[float]]


def exact_moments(n: int, z: float) -> list[float]:
    """``int_0^1 e^{(1 - theta) z} theta^k dtheta = k! phi_{k+1}(z)`` for ``k < n``."""
    return [math.factorial(k) * phi(k + 1, z) for k in range(n)]


def quadrature(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """``w`` with ``sum_j w_j p(c_j)`` the integral of every polynomial ``p`` of degree < J, given those of its powers.

    >>> [round(w, 6) for w in quadrature([0.0, -1.0], exact_moments(2, 0.0))]  # Adams and Bashforth
    [1.5, -0.5]

    Args:
        nodes: ``c [J]``, different from each other; in units of the step 0 is its start and 1 its end.
        moments: the integrals ``[J]`` of ``1, theta, theta^2, ...``.
    """
    weights = []
    for j, c in enumerate(nodes):
        lagrange = [
            1.0
        ]  # coefficients of the polynomial that is 1 here and 0 at the other nodes, the constant first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            lower, raised = [*lagrange, 0.0], [0.0, *lagrange]
            lagrange = [(a - other * b) / (c - other) for a, b in zip(raised, lower, strict=True)]
        weights.append(sum(a * m for a, m in zip(lagrange, moments, strict=True)))
    return weights


def weighted_mean(nodes: Sequence[float], known: Sequence[Prediction], moments: Sequence[float]) -> Tensor:
    """The integral over a step, in units of its length, of the polynomial through the ``known`` at the ``nodes``."""
    weights = quadrature(nodes, moments)
    return torch.stack([w * p.value for w, p in zip(weights, known, strict=True)]).sum(0)


def _finite(known: Sequence[Prediction]) -> list[Prediction]:
    """Without that made at ``alpha = 0``, infinitely far in ``lambda``."""
    return [p for p in known if math.isfinite(p.at)]


def data_step(
    schedule: Schedule,
    x_t: Tensor,
    t: float,
    s: float,
    known: Sequence[Prediction],
    *,
    moments: Moments = exact_moments,
) -> Tensor:
    """``x_s`` from ``x_t`` by the flow, with the polynomial through the ``known`` predictions of ``x_0``."""
    (_, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    start = half_log_snr(schedule, t)
    if start < EARLY:
        u = math.exp(start)
        length = alpha_s / sigma_s - u
        nodes = [(math.exp(p.at) - u) / length for p in known]
        x0_hat = weighted_mean(nodes, known, moments(len(known), 0.0))
        return sigma_s / sigma_t * x_t + sigma_s * length * x0_hat
    known, h = _finite(known), half_log_snr(schedule, s) - start
    x0_hat = weighted_mean([(p.at - start) / h for p in known], known, moments(len(known), -h))
    return sigma_s / sigma_t * x_t + alpha_s * h * x0_hat


def noise_step(schedule: Schedule, x_t: Tensor, t: float, s: float, known: Sequence[Prediction]) -> Tensor:
    """``x_s`` from ``x_t`` by the flow, with the polynomial in ``lambda`` through the ``known`` predictions of the noise."""
    (alpha_t, _), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    start, known = half_log_snr(schedule, t), _finite(known)
    h = half_log_snr(schedule, s) - start
    eps = weighted_mean([(p.at - start) / h for p in known], known, exact_moments(len(known), h))
    return alpha_s / alpha_t * x_t - sigma_s * h * eps


def sde_step(
    schedule: Schedule, x_t: Tensor, t: float, s: float, known: Sequence[Prediction], tau: float
) -> tuple[Tensor, float]:
    r"""Mean of ``x_s`` given ``x_t`` by the SDE with the amount of noise ``tau > 0``, and its standard deviation.

    .. math:: \frac{\sigma_s}{\sigma_t} e^{-\tau^2 h} x_t
              + \alpha_s (1 + \tau^2) h \sum_j w_j(-(1 + \tau^2) h)\, \hat x_0(\lambda_t + c_j h),
              \qquad \sigma_s \sqrt{1 - e^{-2 \tau^2 h}},

    with the polynomial in :math:`\lambda` at all times; from ``alpha = 0`` the state is forgotten.
    """
    (_, sigma_t), (alpha_s, sigma_s) = schedule.at(t), schedule.at(s)
    start = half_log_snr(schedule, t)
    if math.isinf(start):
        return alpha_s * known[0].value, sigma_s
    known, h, rate = _finite(known), half_log_snr(schedule, s) - start, 1 + tau**2
    nodes = [(p.at - start) / h for p in known]
    x0_hat = weighted_mean(nodes, known, exact_moments(len(known), -rate * h))
    mean = sigma_s / sigma_t * math.exp(-(tau**2) * h) * x_t + alpha_s * rate * h * x0_hat
    return mean, sigma_s * math.sqrt(-math.expm1(-2 * tau**2 * h))
