"""What every operator is, and the test that each linear one must pass."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.streams import generator


class Operator(ABC):
    """``A``: what a measurement makes of clean data, sample by sample and differentiably.

    >>> import torch
    >>> import scoreexp as se
    >>> class Clip(se.observations.Operator):
    ...     '''A sensor that saturates.'''
    ...     def __call__(self, x):
    ...         return x.clamp(-0.5, 0.5)
    >>> Clip()(torch.tensor([[-1.0, 0.25]])), Clip().output_shape((3, 8, 8))
    (tensor([[-0.5000,  0.2500]]), (3, 8, 8))
    """

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


class SVD(NamedTuple):
    """``A = U S V^T`` as functions; the coefficients ``V^T x`` have the shape of ``x``, whatever that of ``y``.

    The coefficients of real data may be complex (those of a Fourier transform); ``v`` gives real data again.

    >>> import torch
    >>> import scoreexp as se
    >>> x = torch.tensor([[[[3.0, 4.0]]]])
    >>> svd = se.observations.Mask(torch.tensor([[1.0, 0.0]])).svd(x)
    >>> svd.measured, svd.v(svd.singular * svd.vt(x))
    (tensor([[ True, False]]), tensor([[[[3., 0.]]]]))

    Attributes:
        singular: ``S``, which broadcasts against ``[B, *]``; 0 where nothing is measured.
        vt: ``x [B, *] -> V^T x [B, *]``.
        v: ``V c`` of coefficients ``c [B, *]``.
        ut: ``y -> U^T y [B, *]``, 0 where nothing is measured.
    """

    singular: Tensor
    vt: Callable[[Tensor], Tensor]
    v: Callable[[Tensor], Tensor]
    ut: Callable[[Tensor], Tensor]

    @property
    def measured(self) -> Tensor:
        """True where a singular value is above rounding, which tells what of ``x`` the data determine."""
        singular = self.singular
        return singular > singular.max() * max(singular.shape) * torch.finfo(singular.dtype).eps


class LinearOperator(Operator):
    """A linear ``A`` with its adjoint; ``require_adjoint`` tests that the two belong together.

    >>> import torch
    >>> import scoreexp as se
    >>> class EveryOther(se.observations.LinearOperator):
    ...     '''Every other column.'''
    ...     def __call__(self, x):
    ...         return x[..., ::2]
    ...     def adjoint(self, y):
    ...         return torch.stack([y, torch.zeros_like(y)], -1).flatten(-2)
    >>> se.observations.require_adjoint(EveryOther(), (3, 8, 8))
    >>> EveryOther().output_shape((3, 8, 8)), round(EveryOther().norm((3, 8, 8)), 6)
    ((3, 8, 4), 1.0)
    """

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """``A^T y`` of ``y [B, *]``."""

    def svd(self, like: Tensor) -> SVD:
        """The singular value decomposition, in the dtype and on the device of ``like``.

        Raises:
            ValueError: it is not known in closed form.
        """
        raise ValueError(
            f"{type(self).__name__} has no singular value decomposition in closed form, and so no pseudo-inverse: use a "
            "restorer without them"
        )

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse ``A^+ y``, ``[B, *]``; singular values below rounding count as 0.

        Raises:
            ValueError: it is not known in closed form.
        """
        svd = self.svd(y)
        return svd.v(torch.where(svd.measured, svd.ut(y) / torch.where(svd.measured, svd.singular, 1), 0))

    def norm(self, event_shape: Sequence[int], *, iterations: int = 50, like: Tensor | None = None) -> float:
        """The largest singular value, by power iteration on ``A^T A``: a lower bound, close after 50 steps.

        Args:
            event_shape: shape ``*`` of one sample.
            iterations: steps of the iteration.
            like: whose dtype and device are those of the iteration; float64 on the CPU by default.
        """
        x = torch.randn(1, *event_shape, generator=generator(0, "operator norm"), dtype=torch.float64)
        x = x if like is None else x.to(like)
        for _ in range(iterations):
            x = x / x.norm()
            x = self.adjoint(self(x))
        return float(x.norm().sqrt())


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

    def svd(self, like: Tensor) -> SVD:
        return SVD(torch.ones(1, dtype=like.dtype, device=like.device), same, same, same)


def same(x: Tensor) -> Tensor:
    """``x`` itself, a factor of a singular value decomposition."""
    return x


def require_adjoint(
    operator: LinearOperator,
    event_shape: Sequence[int],
    *,
    tolerance: float = 1e-10,
    like: Tensor | None = None,
) -> None:
    """Test ``<A x, y> = <x, A^T y>`` on random ``x`` and ``y``.

    >>> require_adjoint(Identity(), (3, 8, 8))

    Args:
        operator: the operator.
        event_shape: shape ``*`` of one sample.
        tolerance: largest difference, relative to ``|A x| |y|``.
        like: whose dtype and device are those of ``x`` and ``y``; float64 on the CPU by default.

    Raises:
        ValueError: the two inner products differ; the message has both.
    """
    random = generator(0, "adjoint test")
    x = torch.randn(1, *event_shape, generator=random, dtype=torch.float64)
    x = x if like is None else x.to(like)
    forward = operator(x)
    y = torch.randn(forward.shape, generator=random, dtype=torch.float64).to(forward)
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
