r"""What a chain that begins at a low noise level knows of the image: its own share of the first state.

``x_T = alpha_T x_0 + sigma_T z`` is noise alone only where ``sigma_T / alpha_T`` is far above the data's spread. A prior
whose largest noise level is near it, such as one trained to denoise, begins at ``alpha_T m + sigma_T z`` instead, with

.. math:: m = \arg\min_x \; |y - A x|^2 / |A|^2 + \mu |\nabla x|^2, \qquad
          \mu = \max\{\sigma_y^2 / (c |A|)^2,\, 0.01\} ,

the posterior mean of a Gaussian whose neighbouring values differ by a standard deviation of ``c``, as those of photographs
do, with the power spectrum ``1 / f^2``: smooth across holes, and without the noise that ``A^+`` of a blur raises. The
variance of what the data leave open is not drawn: it must be small against ``sigma_T^2``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.observations import LinearOperator
from scoreexp.restorers.proximal import known_svd
from scoreexp.schedules import Schedule

SPREAD = 0.5  # of images in [-1, 1]
FAR = 20 * SPREAD
STEP = 0.1  # c, of neighbouring pixels of photographs in [-1, 1]
LEAST = 0.01  # of mu, where y has no noise: conjugate gradients would not converge with much less
CG_STEPS = 100


def squared_norm(operator: LinearOperator, y: Tensor, event_shape: Sequence[int]) -> float:
    """``|A|^2``: of the decomposition where there is one, else by power iteration."""
    if (svd := known_svd(operator, y)) is not None:
        return float(svd.singular.max()) ** 2
    return operator.norm(event_shape, like=y) ** 2


def image_share(
    schedule: Schedule, operator: LinearOperator, y: Tensor, sigma_y: float, event_shape: Sequence[int]
) -> Tensor:
    """``alpha_T m`` of the module's formula ``[B, *]``; 0 where the noise level of ``t_max`` is 10 or above.

    >>> import torch
    >>> import scoreexp as se
    >>> hole = se.observations.Mask(torch.tensor([[1.0, 0.0, 1.0]]))
    >>> y = hole(torch.tensor([[[[0.2, 9.0, 0.4]]]]))
    >>> image_share(se.schedules.EDM(sigma_max=1.0), hole, y, 0.0, (1, 1, 3)).round(decimals=1)
    tensor([[[[0.2000, 0.3000, 0.4000]]]])

    Args:
        schedule: of the model.
        operator: ``A``.
        y: the data ``[B, *]``.
        sigma_y: standard deviation of their noise, 0 where it is unknown.
        event_shape: shape ``*`` of a sample of the model.
    """
    alpha, sigma = schedule.at(schedule.t_max)
    if sigma >= FAR * alpha:
        return y.new_zeros(len(y), *event_shape)
    scale = squared_norm(operator, y, event_shape)
    mu = max((sigma_y / STEP) ** 2, LEAST * scale)
    solved = conjugate_gradient(
        lambda x: operator.adjoint(operator(x)) + mu * roughness(x),
        operator.adjoint(y),
        max_iter=CG_STEPS,
        tol=1e-4,
    )
    return alpha * solved.x


def roughness(x: Tensor) -> Tensor:
    """``L x`` with ``x^T L x`` the sum of squared differences of neighbours along all axes of ``x [B, C, ...]`` but the
    first two; points ``[B, D]`` have no neighbours, and a standard deviation of 0.5."""
    if x.ndim < 3:
        return (STEP / SPREAD) ** 2 * x
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        d, n = x.diff(dim=axis), x.shape[axis] - 1
        total.narrow(axis, 1, n).add_(d)
        total.narrow(axis, 0, n).sub_(d)
    return total
