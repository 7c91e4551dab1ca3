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
    """Rows that networks have evaluated since ``counting`` began."""

    def __init__(self) -> None:
        self.rows = 0

    def per_sample(self, samples: int) -> int:
        """Evaluations for each of so many samples, rounded up where some took fewer."""
        return -(-self.rows // samples) if samples else 0


_running: ContextVar[tuple[EvaluationCount, ...]] = ContextVar("running counts", default=())


@contextmanager
def counting() -> Iterator[EvaluationCount]:
    """Count the evaluations of all networks while the body runs; counts may be nested."""
    count = EvaluationCount()
    token = _running.set((*_running.get(), count))
    try:
        yield count
    finally:
        _running.reset(token)


def counted(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A denoiser's ``call(self, x_t, t, cond)`` that counts the rows of ``x_t``."""

    @wraps(call)
    def counts(self: Any, x_t: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"{type(self).__name__}: t={t!r} must be a tensor [B], such as torch.full((len(x_t),), {t!r})"
            )
        for count in _running.get():
            count.rows += len(x_t)
        return call(self, x_t, t, *args, **kwargs)

    return counts
