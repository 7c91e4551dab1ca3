"""Operators made of others, and of what is not ours."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreexp.core.streams import generator
from scoreexp.observations.operators.base import LinearOperator, Operator


class Compose(LinearOperator):
    """``A x = outer(inner(x))``.

    >>> import torch
    >>> from scoreexp.observations import Grayscale, SuperResolution
    >>> Compose(SuperResolution(2, size=8), Grayscale())(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 1, 4, 4])

    Args:
        outer: applied last.
        inner: applied first.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.inner.adjoint(self.outer.adjoint(y))


class PerChannel(LinearOperator):
    """An operator of its own for each channel, all of the same output shape: ``[B, C, *] -> [B, C, *]``.

    >>> import torch
    >>> from scoreexp.observations import GaussianBlur
    >>> PerChannel([GaussianBlur(1.0, size=16), GaussianBlur(1.5, size=16)])(torch.ones(1, 2, 16, 16)).shape
    torch.Size([1, 2, 16, 16])

    Args:
        operators: one per channel, each for images of one channel.

    Raises:
        ValueError: data have another number of channels.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        self.operators = tuple(operators)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([a(part) for a, part in zip(self.operators, self._parts(x), strict=True)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([a.adjoint(part) for a, part in zip(self.operators, self._parts(y), strict=True)], 1)

    def _parts(self, x: Tensor) -> list[Tensor]:
        if x.shape[1] != len(self.operators):
            raise ValueError(
                f"{x.shape[1]} channels for {len(self.operators)} operators: give one operator per channel"
            )
        return list(x.split(1, 1))


class Stack(LinearOperator):
    r"""Several measurements of the same unknown, ``A = [w_1 A_1; w_2 A_2; ...]``, as one vector ``y [B, m]``.

    ``|y - A x|^2`` is then the sum of their residuals with the weights ``w_k^2``; for independent white noise of level
    ``sigma_k`` take ``w_k = 1 / sigma_k``, which leaves noise of level 1. ``stacked`` makes ``y`` of the parts.

    >>> import torch
    >>> from scoreexp.observations import Grayscale, SuperResolution
    >>> stack = Stack([Grayscale(), SuperResolution(2, size=8)], event_shape=(3, 8, 8))
    >>> stack(torch.ones(1, 3, 8, 8)).shape
    torch.Size([1, 112])

    Args:
        operators: ``A_k``.
        event_shape: shape ``*`` of one ``x``.
        weights: ``w_k``, > 0; 1 by default.

    Raises:
        ValueError: there is not one weight for each operator, or an operator does not take such data.
    """

    def __init__(
        self,
        operators: Sequence[LinearOperator],
        event_shape: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        self.operators = tuple(operators)
        self.weights = tuple(1.0 for _ in operators) if weights is None else tuple(float(w) for w in weights)
        if len(self.weights) != len(self.operators) or not all(w > 0 for w in self.weights):
            raise ValueError(
                f"weights={list(self.weights)}: give one > 0 for each of the {len(self.operators)} operators"
            )
        self.shapes = [operator.output_shape(event_shape) for operator in self.operators]

    def __call__(self, x: Tensor) -> Tensor:
        return self.stacked([operator(x) for operator in self.operators])

    def stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """``y [B, m]`` of the measurements ``y_k [B, *]``, weighted."""
        return torch.cat([w * part.flatten(1) for w, part in zip(self.weights, parts, strict=True)], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        if y.shape[1:] != (sum(sizes),):
            raise ValueError(f"y has shape {tuple(y.shape)}, not [B, {sum(sizes)}]: make it with stacked()")
        parts = zip(self.weights, self.operators, y.split(sizes, 1), self.shapes, strict=True)
        return torch.stack([a.adjoint(w * part.unflatten(1, shape)) for w, a, part, shape in parts]).sum(0)


class Function(Operator):
    """Any differentiable function of ``[B, *]``, sample by sample, as an operator.

    >>> import torch
    >>> Function(torch.abs)(-torch.ones(1, 2))
    tensor([[1., 1.]])

    Args:
        function: ``A``.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class LinearFunction(LinearOperator):
    """A linear function whose adjoint is found by automatic differentiation.

    >>> import torch
    >>> difference = LinearFunction(lambda x: x[:, 1:] - x[:, :-1], event_shape=(3,))
    >>> difference.adjoint(torch.tensor([[1.0, 0.0]]))
    tensor([[-1.,  1.,  0.]])

    Args:
        function: ``A``, linear and differentiable, of ``[B, *]``.
        event_shape: shape ``*`` of one ``x``.

    Raises:
        ValueError: the function is not linear.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], event_shape: Sequence[int]) -> None:
        self.function, self.event_shape = function, tuple(event_shape)
        u, v = torch.randn(2, 1, *self.event_shape, generator=generator(0, "linearity"), dtype=torch.float64)
        left, right = function(u - 3 * v), function(u) - 3 * function(v)
        if not torch.allclose(left, right, rtol=1e-4, atol=1e-4 * float(left.abs().max())):
            raise ValueError(
                f"the function is not linear: f(u - 3 v) and f(u) - 3 f(v) differ by {float((left - right).abs().max()):.3g}"
                "; give a linear one, or Function(...) for a restorer that needs no adjoint"
            )

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(len(y), *self.event_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.function(x), x, y.clone())
        return gradient


class FromDeepinv(LinearOperator):
    """A linear physics of deepinv (``deepinv.physics.LinearPhysics``): its ``A`` and ``A_adjoint``, without its noise.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> physics = SimpleNamespace(A=lambda x: 2 * x, A_adjoint=lambda y: 2 * y)  # deepinv.physics.Inpainting(...)
    >>> FromDeepinv(physics)(torch.ones(1, 2))
    tensor([[2., 2.]])

    Args:
        physics: the object; it must take the dtype and device of the data.

    Raises:
        TypeError: it has no ``A_adjoint``: pass ``physics.A`` to ``Function``.
    """

    def __init__(self, physics: Any) -> None:
        if not (callable(getattr(physics, "A", None)) and callable(getattr(physics, "A_adjoint", None))):
            raise TypeError(
                f"{type(physics).__name__} has no A and A_adjoint: for a physics that is not linear use Function(physics.A)"
            )
        self.physics = physics

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.physics.A(x)
        return found

    def adjoint(self, y: Tensor) -> Tensor:
        found: Tensor = self.physics.A_adjoint(y)
        return found


class Magnitude(Operator):
    """``|z|`` of a complex image given as two channels, real and imaginary part: ``[B, 2, H, W] -> [B, 1, H, W]``.

    >>> import torch
    >>> Magnitude()(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)).flatten()
    tensor([5.])
    """

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 2:
            raise ValueError(f"Magnitude takes [B, 2, H, W], real and imaginary part, not {tuple(x.shape)}")
        return torch.linalg.vector_norm(x, dim=1, keepdim=True)
