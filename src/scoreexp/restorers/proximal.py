r"""The proximal step of a linear least-squares term.

.. math:: \arg\min_x \; |y - A x|^2 + \rho |x - z|^2 = (A^T A + \rho I)^{-1} (A^T y + \rho z) .
"""

from torch import Tensor

from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.observations.operators import SVD, LinearOperator


def known_svd(operator: LinearOperator, like: Tensor) -> SVD | None:
    """The decomposition of an operator that has one in closed form."""
    try:
        return operator.svd(like)
    except ValueError:
        return None


def data_proximal(
    operator: LinearOperator, y: Tensor, z: Tensor, rho: float, svd: SVD | None, *, cg_steps: int = 50
) -> Tensor:
    """The minimiser ``[B, *]``: exact with a decomposition, else by conjugate gradients from ``z``.

    >>> import torch
    >>> from scoreexp.observations import Identity
    >>> data_proximal(Identity(), torch.ones(1, 2), torch.zeros(1, 2), 1.0, None)
    tensor([[0.5000, 0.5000]])

    Args:
        operator: ``A``.
        y: data ``[B, *]``.
        z: ``[B, *]``.
        rho: weight of ``z``, > 0.
        svd: of the operator, or None.
        cg_steps: most steps of conjugate gradients; they stop at a relative residual of 1e-6.
    """
    if svd is not None:
        c = svd.vt(z)
        return svd.v((svd.singular * svd.ut(y) + rho * c) / (svd.singular**2 + rho))
    return conjugate_gradient(
        lambda x: operator.adjoint(operator(x)) + rho * x,
        operator.adjoint(y) + rho * z,
        z,
        max_iter=cg_steps,
        tol=1e-6,
    ).x
