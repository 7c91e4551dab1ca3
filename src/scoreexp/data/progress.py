"""Progress of slow preparations: a bar on a terminal, two log lines elsewhere."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def preparation(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of samples done since its last call.

    >>> with preparation("photographs", total=2) as advance:
    ...     for _ in range(2):
    ...         advance(1)
    """
    if not sys.stderr.isatty():
        _log.info("preparing %s: %d samples", what, total)
        yield lambda done: None
        _log.info("prepared %s", what)
        return
    columns = (
        TextColumn("preparing {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
