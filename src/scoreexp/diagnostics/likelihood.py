r"""The likelihood of data under a score model, by the probability-flow equation.

The probability flow carries the prior ``N(0, prior_std^2 I)`` at ``t_max`` to a density at ``t_min`` that is known at
every point: along a solution ``y(phi)`` of ``dy/dphi = v(y, phi)`` (see ``scoreexp.denoisers.angular_flow``) the
instantaneous change of variables is

.. math:: \log p_{\phi_0}(y(\phi_0)) = \log p_{\phi_1}(y(\phi_1))
          + \int_{\phi_0}^{\phi_1} \operatorname{div} v(y(\phi), \phi)\, d\phi .

The divergence is the trace of the Jacobian, either exact, with one reverse-mode product per dimension, or estimated
without bias from random probes, ``E[e^T J e]`` for ``E[e e^T] = I`` (Hutchinson).

What is measured. The flow ends at ``t_min``, not at clean data: the density is that of ``x_t / alpha`` there, hence of
data smoothed by a Gaussian of standard deviation ``sigma(t_min) / alpha(t_min)`` in the units of the data (and of the
exact denoiser; of a trained one, the density that its own flow defines). The prior has no trace of the data, while the
exact marginal at ``t_max`` keeps ``alpha`` of it; for a data mean ``m`` and a latent ``sigma z`` this changes the
log-density by up to about ``|m| |z| alpha / sigma``: 0.007 nats per unit for VP. That belongs to the model, because
samplers start from the same prior. Where ``alpha`` is 0 at ``t_max`` (flow matching) there is no difference.

References:
    Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, section 4.3 and appendix D.2;
    W. Grathwohl et al., "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models", 2019,
    https://arxiv.org/abs/1810.01367;
    L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", 2016,
    https://arxiv.org/abs/1511.01844 (dequantisation).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import NonNegativeFloat, PositiveInt
from scoreexp.denoisers.angular_flow import AngularFlow
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.metrics.likelihood_metrics import bits_per_dim, level_spacing
from scoreexp.numerics.ode import RK45, OdeSolver, rms

Divergence = Callable[[Tensor, Tensor], Tensor]


class LikelihoodResult(NamedTuple):
    """Log-likelihoods and what they were computed from.

    >>> import torch
    >>> result = LikelihoodResult(log_prob=torch.zeros(1), latent=torch.zeros(1, 3), nfe=20)
    >>> result.bits_per_dim()  # log2(255 / 2)
    tensor([6.9944])

    Attributes:
        log_prob: log-density of each sample ``[B]`` in nats, float64, for data in the [-1, 1] range.
        latent: the state at ``t_max`` that the flow takes each sample to, ``[B, *]``.
        nfe: number of evaluations of the model (each with its derivatives).
    """

    log_prob: Tensor
    latent: Tensor
    nfe: int

    def bits_per_dim(self, levels: int = 256) -> Tensor:
        """``metrics.likelihood_metrics.bits_per_dim`` of each sample ``[B]``.

        For images after ``dequantise`` the mean is an upper bound on the bits per dimension of a model of the levels
        themselves; without it a density on finitely many points may be arbitrarily high.

        Args:
            levels: number of levels, >= 2.

        Raises:
            ValueError: if there are fewer than two levels.
        """
        return bits_per_dim(self.log_prob, self.latent[0].numel(), levels)


def dequantise(x: Tensor, generator: torch.Generator, levels: int = 256) -> Tensor:
    """Add uniform noise one level wide, centred, to data on evenly spaced levels over [-1, 1].

    >>> import torch
    >>> x = torch.tensor([[-1.0, 0.0, 1.0]])  # three levels
    >>> noisy = dequantise(x, torch.Generator().manual_seed(0), levels=3)
    >>> bool(((noisy - x).abs() <= 0.5).all())
    True

    Args:
        x: data ``[B, *]`` with values ``-1 + 2 k / (levels - 1)``.
        generator: on the CPU, of the noise.
        levels: number of levels, >= 2.

    Raises:
        ValueError: if there are fewer than two levels.
    """
    spacing = level_spacing(levels)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    return x + spacing * (noise - 0.5)


class Likelihood:
    """Log-likelihood by the probability flow.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.diagnostics.likelihood import Likelihood
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> Likelihood(trace="exact")(model, torch.zeros(1, 2)).log_prob.round(decimals=2)  # -log(2 pi)
    tensor([-1.8400], dtype=torch.float64)

    Args:
        solver: of the flow; the default, ``RK45(1e-5, 1e-5)``, is the reference's. The log-density has the tolerance
            ``atol`` nats per step by itself, whatever the number of dimensions.
        trace: ``rademacher`` or ``gaussian`` probes, fixed along each solution (unbiased; Rademacher probes vary
            less), or ``exact`` (one backward pass per dimension: for points in the plane, not for images).
        probes: number of probes to average; one backward pass each.
        t_end: the time at which the density is taken; the schedule's ``t_min`` by default.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        solver: OdeSolver | None = None,
        trace: Literal["rademacher", "gaussian", "exact"] = "rademacher",
        probes: PositiveInt = 1,
        t_end: NonNegativeFloat | None = None,
    ) -> None:
        self.solver = solver or RK45(1e-5, 1e-5)
        self.trace = trace
        self.probes = probes
        self.t_end = t_end

    @torch.no_grad()
    def __call__(
        self,
        model: DenoiserBase,
        x: Tensor,
        *,
        streams: ImageStreams | None = None,
        cond: Tensor | None = None,
    ) -> LikelihoodResult:
        """Log-likelihood of each sample.

        Args:
            model: the denoiser, differentiable in ``x_t``; put a network into evaluation mode first.
            x: data ``[B, *]`` in the [-1, 1] range; float32 changes the log-density by about 1e-6 of its size.
            streams: one random stream per sample, for the probes; not used by the exact trace.
            cond: class labels ``[B]``, or None.

        Raises:
            ValueError: if the model has no prior (the schedule's noise level at ``t_max`` is not above that of ``t_end``,
                or is below 1, the scale of the data, so that ``N(0, prior_std^2)`` is no description of the state
                there), if it is a consistency model, if ``t_end`` is outside the schedule's range, or if random probes were
                asked for without streams.
            FloatingPointError: if the model's output is not finite.
        """
        if not model.states_posterior_mean:
            raise ValueError(
                "the model is a consistency model: it states the end of a path and not the posterior mean, so it has no "
                "flow and no likelihood; choose a model of another objective"
            )
        schedule = model.schedule
        t_end = schedule.t_min if self.t_end is None else self.t_end
        _require_prior(model, t_end)
        flow = AngularFlow(model, cond)
        (angle_end, _), (angle_max, scale_max) = flow.at(t_end), flow.at(schedule.t_max)
        divergence_of = self._divergence(x, streams)
        shape, dimensions = x.shape, x[0].numel()

        def derivative(angle: Tensor, state: Tensor) -> Tensor:
            """Of ``(y, integral of div v)``, ``[B, D + 1]``."""
            with torch.enable_grad():
                y = state[:, :-1].detach().reshape(shape).requires_grad_()
                v = flow.velocity(angle, y)
                divergence = divergence_of(v, y)
            return torch.cat([v.detach().flatten(1), divergence[:, None]], 1)

        def larger_error(error: Tensor) -> Tensor:
            return torch.maximum(rms(error[:, :-1]), error[:, -1].abs())

        y = math.cos(angle_end) * x
        start = torch.cat([y.flatten(1), torch.zeros_like(y.flatten(1)[:, :1])], 1)
        end = self.solver(derivative, start, angle_end, angle_max, norm=larger_error).y.to(torch.float64)

        latent, integral = scale_max * end[:, :-1], end[:, -1]
        std = schedule.prior_std
        log_prior = -0.5 * ((latent / std) ** 2 + math.log(2 * math.pi * std**2)).sum(1)
        # the densities of x_t, y and x differ by the scales m(t_max) and cos(phi)
        log_prob = log_prior + dimensions * math.log(scale_max * math.cos(angle_end)) + integral
        return LikelihoodResult(log_prob, latent.reshape(shape).to(x.dtype), flow.evaluations)

    def _divergence(self, x: Tensor, streams: ImageStreams | None) -> Divergence:
        """``div v`` ``[B]`` as a function of ``v [B, *]`` and the ``y`` it was computed from."""
        if self.trace == "exact":
            return _exact_divergence
        if streams is None:
            raise ValueError(
                f"trace={self.trace!r} draws random probes: pass streams, or choose trace='exact'"
            )
        probes = [streams.normal(x) for _ in range(self.probes)]
        if self.trace == "rademacher":
            probes = [torch.where(probe < 0, -torch.ones_like(x), torch.ones_like(x)) for probe in probes]

        def estimate(v: Tensor, y: Tensor) -> Tensor:
            products = [torch.autograd.grad(v, y, probe, retain_graph=True)[0] * probe for probe in probes]
            return sum_per_sample(torch.stack(products).mean(0))

        return estimate


def _exact_divergence(v: Tensor, y: Tensor) -> Tensor:
    rows = v.flatten(1)
    diagonal = []
    for i in range(rows.shape[1]):
        (row,) = torch.autograd.grad(rows[:, i].sum(), y, retain_graph=True)
        diagonal.append(row.flatten(1)[:, i])
    return torch.stack(diagonal).sum(0)


def _require_prior(model: DenoiserBase, t_end: float) -> None:
    schedule = model.schedule
    ends = torch.tensor([schedule.t_max, t_end], dtype=torch.float64)
    largest, end = schedule.noise_level(ends).tolist()
    if not (math.isfinite(schedule.prior_std) and largest >= 1 and largest > end):
        raise ValueError(
            f"the {type(schedule).__name__} schedule has no finite prior: its noise level is {largest:.6g} at t_max and "
            f"{end:.6g} at t={t_end:.6g}, but it must grow and reach 1 (units of [-1, 1]); choose a "
            "model of another schedule (vp, ve, ddpm)"
        )
