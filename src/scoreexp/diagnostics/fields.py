r"""A model as a field over the plane of noisy data and noise levels, free of its schedule.

Any schedule's :math:`x_t` gives :math:`u = x_t / \alpha = x_0 + r z` with the noise level :math:`r = \sigma / \alpha`, and
the law of ``u`` depends on ``r`` alone. The denoiser is :math:`D(u, r)`, the score of ``u`` is :math:`(D - u) / r^2`, and
all diagnostics are stated in these.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import DenoiserBase


def denoised(model: DenoiserBase, u: Tensor, level: float | Tensor) -> Tensor:
    """``D(u, r)`` ``[B, *]``, differentiable in ``u[B, *]``; ``r`` is one number, or ``[B]``.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> denoised(model, torch.ones(1, 2), level=1.0)  # u / (1 + r^2)
    tensor([[0.5000, 0.5000]])

    Raises:
        ValueError: the schedule has no such noise level.
    """
    t = model.schedule.t_of_sigma(torch.as_tensor(level, dtype=torch.float64).expand(len(u)))
    return model(expand_to(model.schedule.alpha(t), u) * u, t)


def score(model: DenoiserBase, u: Tensor, level: float) -> Tensor:
    """``(D(u, r) - u) / r^2`` ``[B, *]``: the gradient of the log-density of ``u``."""
    return (denoised(model, u, level) - u) / level**2


def noisy(x: Tensor, level: float, seed: int) -> Tensor:
    """``u = x + r z``; the noise is a function of the seed, the level and the shape."""
    z = torch.randn(x.shape, generator=generator(seed, "diagnosis", f"{level:g}"), dtype=torch.float64)
    return x + level * z.to(x)


def probes(like: Tensor, seed: int, purpose: str) -> Tensor:
    """Random signs ``[B, *]``: ``E[e e^T] = I``."""
    stream = generator(seed, "probe", purpose)
    return (2.0 * torch.randint(0, 2, like.shape, generator=stream) - 1).to(like)


class Products(NamedTuple):
    """``y = f(u)`` of independent samples, and products with each one's Jacobian ``J = dy/du``.

    Attributes:
        value: ``f(u)`` ``[B, *]``, detached.
        forward: ``v -> J v``.
        transposed: ``w -> J^T w``.
    """

    value: Tensor
    forward: Callable[[Tensor], Tensor]
    transposed: Callable[[Tensor], Tensor]


def products(f: Callable[[Tensor], Tensor], u: Tensor) -> Products:
    """Products with the Jacobian, by reverse mode alone: ``J v`` is the gradient of ``w -> v^T (J^T w)``.

    >>> two = products(lambda u: u * u.flip(1), torch.tensor([[2.0, 3.0]]))  # J = [[3, 2], [3, 2]]
    >>> two.forward(torch.tensor([[1.0, 0.0]])), two.transposed(torch.tensor([[1.0, 0.0]]))
    (tensor([[3., 3.]]), tensor([[3., 2.]]))
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        y = f(u)
        w = torch.zeros_like(y, requires_grad=True)
        gradient = _gradient(y, u, w, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        return _gradient(gradient, w, v).detach()

    def transposed(v: Tensor) -> Tensor:
        return _gradient(y, u, v).detach()

    return Products(y.detach(), forward, transposed)


def _gradient(y: Tensor, x: Tensor, w: Tensor, create_graph: bool = False) -> Tensor:
    """``w^T dy/dx``; 0 where ``y`` does not depend on ``x``."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(
        y, x, w, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return found
