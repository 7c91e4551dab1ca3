"""What every operator is, and the test that each linear one must pass."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.core.streams import generator


class Operator(ABC):
    """``A``: what a measurement makes of clean data, sample by sample and differentiably."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """``A(x)`` of ``x [B, *]``: ``[B, *]``, of another event shape where the operator has one."""

    def output_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Event shape of ``A(x)`` for ``x`` of ``event_shape``.

        Raises:
            ValueError: if the operator does not take such data.
        """
        try:
            return tuple(self(torch.zeros(1, *event_shape)).shape[1:])
        except (RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{type(self).__name__} does not take samples of shape {tuple(event_shape)} ({reason}): "
                "make the operator for this shape"
            ) from error


class LinearOperator(Operator):
    """A linear ``A`` with its adjoint; ``require_adjoint`` tests that the two belong together."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y`` of ``y [B, *]``."""

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse ``A^+ y``, ``[B, *]``.

        Raises:
            ValueError: it is not known in closed form.
        """
        raise ValueError(
            f"{type(self).__name__} has no pseudo-inverse in closed form: use a restorer without one"
        )


class Identity(LinearOperator):
    """``A(x) = x``: denoising.

    >>> import torch
    >>> Identity()(torch.ones(1, 2))
    tensor([[1., 1.]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return y


def require_adjoint(
    operator: LinearOperator, event_shape: Sequence[int], *, tolerance: float = 1e-10
) -> None:
    """Test ``<A x, y> = <x, A^T y>`` on random ``x`` and ``y`` in float64.

    >>> require_adjoint(Identity(), (3, 8, 8))

    Args:
        operator: the operator.
        event_shape: shape ``*`` of one sample.
        tolerance: largest difference, relative to ``|A x| |y|``.

    Raises:
        ValueError: the two inner products differ; the message has both.
    """
    random = generator(0, "adjoint test")
    x = torch.randn(1, *event_shape, generator=random, dtype=torch.float64)
    forward = operator(x)
    y = torch.randn(forward.shape, generator=random, dtype=torch.float64)
    backward = operator.adjoint(y)
    if backward.shape != x.shape:
        raise ValueError(
            f"{type(operator).__name__}.adjoint gives the shape {tuple(backward.shape)} where A takes {tuple(x.shape)}: "
            "they must agree"
        )
    left, right = float((forward * y).sum()), float((x * backward).sum())
    if not abs(left - right) <= tolerance * float(forward.norm() * y.norm()):
        raise ValueError(
            f"{type(operator).__name__}: <A x, y> = {left:.10g} but <x, A^T y> = {right:.10g}, so adjoint() is not "
            "the transpose of the operator: correct it"
        )
