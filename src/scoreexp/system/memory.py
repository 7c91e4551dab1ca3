"""The garbage collector, where it costs more than it frees."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without garbage collection.

    For imports, which make millions of objects that stay: the collector looks through them again and again, a sixth of the
    time of importing Lightning.

    >>> with uncollected():
    ...     gc.isenabled()
    False
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def collected() -> Iterator[None]:
    """With garbage collection, inside of ``uncollected``, of what is made from now on: what there is, stays.

    >>> with uncollected(), collected():
    ...     gc.isenabled()
    True
    """
    gc.freeze()
    gc.enable()
    try:
        yield
    finally:
        gc.disable()
