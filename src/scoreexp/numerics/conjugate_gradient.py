r"""Conjugate gradients in torch for a batch of symmetric positive definite systems ``A x = b``, matrix-free.

.. math:: \alpha_k = \frac{r_k^T r_k}{p_k^T A p_k}, \quad x_{k+1} = x_k + \alpha_k p_k, \quad r_{k+1} = r_k - \alpha_k A p_k,
          \quad p_{k+1} = r_{k+1} + \frac{r_{k+1}^T r_{k+1}}{r_k^T r_k} p_k .

Each sample has steps of its own and stays as it is once it has converged. In exact arithmetic as many steps are needed as
``A`` has distinct eigenvalues: ``rank(B) + 1`` for ``I + c B``, one fewer where the first residual is in the range of ``B``.

Reference: M. R. Hestenes, E. Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
https://doi.org/10.6028/jres.049.044.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import NonNegativeFloat, PositiveInt


class Solution(NamedTuple):
    """What ``conjugate_gradient`` returns.

    Attributes:
        x: ``[B, *]``.
        iterations: steps that each sample took ``[B]``.
        residual: ``|b - A x| / |b|`` by the recurrence ``[B]``; 0 where ``b`` is 0.
    """

    x: Tensor
    iterations: Tensor
    residual: Tensor


@checked
def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    x_0: Tensor | None = None,
    *,
    max_iter: PositiveInt = 100,
    tol: NonNegativeFloat = 1e-6,
    require_convergence: bool = False,
    stop_at_curvature: bool = False,
) -> Solution:
    """Solve ``A x = b`` for each sample.

    >>> import torch
    >>> conjugate_gradient(lambda x: 4 * x, torch.ones(1, 3)).x
    tensor([[0.2500, 0.2500, 0.2500]])

    Args:
        matvec: ``A`` applied to ``[B, *]``, symmetric positive definite for each sample.
        b: right-hand sides ``[B, *]``.
        x_0: where to start ``[B, *]``; 0 by default.
        max_iter: largest number of steps.
        tol: stop a sample at ``|r| <= tol |b|``.
        require_convergence: raise where a sample has not come so far.
        stop_at_curvature: a sample whose ``p^T A p`` is not positive stays as it is, instead of the error: for an ``A`` that
            is positive definite only about.

    Raises:
        FloatingPointError: ``b`` or ``x_0`` is not finite.
        ValueError: ``b`` has no batch axis, or ``x_0`` another shape; ``A`` is not positive definite (names the step,
            the sample and the curvature); or a sample has not converged where that is required.
    """
    if b.ndim < 2:
        raise ValueError(
            f"b has shape {tuple(b.shape)}: the first axis numbers the samples, use b[None] for one"
        )
    if x_0 is not None and x_0.shape != b.shape:
        raise ValueError(f"x_0 has shape {tuple(x_0.shape)}: it must have that of b, {tuple(b.shape)}")
    x = torch.zeros_like(b) if x_0 is None else x_0
    r = b - matvec(x) if x_0 is not None else b
    p, rr = r, _dot(r, r)
    if not rr.isfinite().all():
        raise FloatingPointError(
            "conjugate gradients: the right-hand side or the start is not finite: find its origin"
        )
    goal = (tol**2) * _dot(b, b)
    iterations = torch.zeros(len(b), dtype=torch.long, device=b.device)
    going = torch.ones(len(b), dtype=torch.bool, device=b.device)
    for step in range(max_iter):
        active = (rr > goal) & going
        if not active.any():
            break
        a_p = matvec(p)
        curvature = _dot(p, a_p)
        if stop_at_curvature:
            going &= curvature > 0
            active = active & going
        if (bad := active & ~(curvature > 0)).any():
            sample = int(bad.nonzero()[0])
            raise ValueError(
                f"conjugate gradients, step {step + 1}, sample {sample}: p^T A p = {float(curvature[sample]):.3g} is not "
                "> 0, so the operator is not symmetric positive definite: check its adjoint and its weights"
            )
        length = torch.where(active, rr / curvature, 0)
        x = x + expand_to(length, x) * p
        r = r - expand_to(length, r) * a_p
        new = _dot(r, r)
        p = r + expand_to(torch.where(active, new / rr, 0), p) * p
        rr = torch.where(active, new, rr)
        iterations = iterations + active
    size = _dot(b, b).sqrt()
    residual = torch.where(size > 0, rr.sqrt() / size, 0)
    if require_convergence and not (rr <= goal).all():
        worst = int(residual.argmax())
        raise ValueError(
            f"conjugate gradients: sample {worst} has the relative residual {float(residual[worst]):.3g} after {max_iter} "
            f"steps, not {tol:g}: allow more steps or a larger tolerance"
        )
    return Solution(x, iterations, residual)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the samples, ``[B]``."""
    return (x * y).flatten(1).sum(1)
