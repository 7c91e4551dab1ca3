r"""Does a learned score belong to one diffusing density? The residual of its Fokker-Planck equation.

The density of :math:`u = x_0 + r z` follows the heat equation in :math:`\tau = r^2`, and with it the score
:math:`s = \nabla \log p` of every distribution of data satisfies

.. math:: \partial_\tau s = \tfrac12 \nabla \left( \operatorname{div} s + |s|^2 \right) ,

whatever the schedule. Denoising score matching at each level by itself does not enforce it. The
residual
:math:`q = \partial_\tau s - \frac12 \nabla (\operatorname{div} s + |s|^2)` says how far a model is from any diffusion,
without any data; that it is 0 does not say that the data are the right ones.

Reference: C.-H. Lai, Y. Takida, N. Murata, T. Uesaka, Y. Mitsufuji, S. Ermon, "FP-Diffusion: Improving Score-based Diffusion
Models by Enforcing the Underlying Score Fokker-Planck Equation", 2023, https://arxiv.org/abs/2210.04296.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, ratio_of
from scoreexp.diagnostics.fields import probes, score

STEP = 0.05  # of log r, in the differences
EXACT = 16  # numbers of a sample up to which the divergence is not estimated
MARGIN = math.exp(2.5 * STEP)  # how far inside the schedule's range a level must be


@checked
def fokker_planck_residual(
    model: DenoiserBase, u: Tensor, level: FinitePositiveFloat, *, seed: int = 0, batch: PositiveInt = 32
) -> Estimate:
    r"""``E |q|^2 / E |ds/dtau|^2`` over noisy data: 0 for every exact score, 1 for a residual as large as the change itself.

    The change with the level is a difference of fourth order. The divergence is exact for samples of up to 16
    numbers. For larger ones its gradient is estimated by a random probe, without bias, and two independent probes make
    the squared residual unbiased as their product, :math:`E\langle q_1, q_2 \rangle = |q|^2`; an estimate may be below 0.
    In float32 rounding is most of it at small levels, where scores are small differences: give float64.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.tensor([1.0, 3.0])), VP())
    >>> fokker_planck_residual(model, torch.ones(2, 2, dtype=torch.float64), 0.5).value < 1e-9
    True

    Args:
        model: the denoiser, differentiable twice.
        u: noisy data ``[B, *]`` at this level, in the units of the data; float64 where the model takes it.
        level: ``r``, in the units of the data.
        seed: names the probes.
        batch: samples at once.

    Raises:
        ValueError: the level is not inside the schedule's range by 13 percent.
    """
    low, high = model.schedule.sigma_range
    if not low * MARGIN <= level <= high / MARGIN:
        raise ValueError(
            f"level={level:g} for a schedule of {low:.4g} to {high:.4g}: the change of the score with the level needs "
            f"levels inside it by a factor of {MARGIN:.2f}"
        )
    size = u[0].numel()
    if size <= EXACT:
        axes = torch.eye(size, dtype=u.dtype, device=u.device).reshape(size, 1, *u.shape[1:])
        halves = [[axis.expand_as(u) for axis in axes]]
    else:
        halves = [[probes(u, seed, f"divergence {level:g} {draw}")] for draw in (0, 1)]
    found = []
    for rows in torch.arange(len(u), device=u.device).split(batch):
        found.append(_residuals(model, u[rows], level, [[e[rows] for e in half] for half in halves]))
    residual, change = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ratio_of(residual, change)


def _residuals(
    model: DenoiserBase, u: Tensor, level: float, halves: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """``<q_1, q_2>`` and ``|ds/dtau|^2`` of each sample, ``[B]``."""
    with torch.no_grad():
        near, far = (
            score(model, u, level * math.exp(k * STEP)) - score(model, u, level * math.exp(-k * STEP))
            for k in (1, 2)
        )
    change = (8 * near - far) / (12 * STEP) / (2 * level**2)  # d/dtau = d/dlog r / (2 r^2)
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        s = score(model, u, level)
        residuals = []
        for signs in halves:
            potential = sum_per_sample(s.square())
            for e in signs:
                (row,) = torch.autograd.grad(s, u, e, create_graph=True)
                potential = potential + sum_per_sample(row * e)
            (gradient,) = torch.autograd.grad(potential.sum(), u, retain_graph=True)
            residuals.append((change - gradient / 2).detach())
    return sum_per_sample(residuals[0] * residuals[-1]), sum_per_sample(change.square())
