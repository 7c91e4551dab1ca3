"""Evaluations of a network are counted where it runs, whatever wraps it.

A guidance that asks its model twice per step, or once for a batch of twice the size, costs two evaluations per sample and is
reported so: every row that reaches a network counts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from torch import Tensor


class EvaluationCount:
    """Rows that networks have evaluated since ``counting`` began.

    >>> count = EvaluationCount()
    >>> count.rows = 9
    >>> count.per_sample(4)
    3
    """

    def __init__(self) -> None:
        self.rows = 0

    def per_sample(self, samples: int) -> int:
        """Evaluations for each of so many samples, rounded up where some took fewer."""
        return -(-self.rows // samples) if samples else 0


_running: ContextVar[tuple[EvaluationCount, ...]] = ContextVar("running counts", default=())


@contextmanager
def counting() -> Iterator[EvaluationCount]:
    """Count the evaluations of all networks while the body runs; counts may be nested.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> with counting() as count:
    ...     x0_hat = model(torch.zeros(3, 2), torch.full((3,), 0.5))
    >>> count.rows, count.per_sample(3)
    (3, 1)
    """
    count = EvaluationCount()
    token = _running.set((*_running.get(), count))
    try:
        yield count
    finally:
        _running.reset(token)


def counted(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A denoiser's ``call(self, x_t, t, cond)`` that counts the rows of ``x_t``.

    >>> import torch
    >>> class Zero:
    ...     @counted
    ...     def __call__(self, x_t, t, cond=None):
    ...         return 0 * x_t
    >>> with counting() as count:
    ...     x0_hat = Zero()(torch.ones(3, 2), torch.ones(3))
    >>> count.rows
    3
    """

    @wraps(call)
    def counts(self: Any, x_t: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"{type(self).__name__}: t={t!r} must be a tensor [B], such as torch.full((len(x_t),), {t!r})"
            )
        if not isinstance(x_t, Tensor):
            raise TypeError(
                f"{type(self).__name__}: x_t is a {type(x_t).__name__}: give a tensor [B, *], such as torch.as_tensor(x_t)"
            )
        if t.numel() != 1 and t.shape != x_t.shape[:1]:
            raise ValueError(
                f"{type(self).__name__}: t has shape {tuple(t.shape)} and x_t {tuple(x_t.shape)}: give x_t [B, *] and one "
                "time per sample, t [B]"
            )
        for count in _running.get():
            count.rows += len(x_t)
        return call(self, x_t, t, *args, **kwargs)

    return counts
