"""How far a sampler is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor


class StepProgress:
    """Show the steps of one sampler call after another, on stderr, while the body of ``with`` runs.

    Args:
        what: is done, such as ``sampling``.
        parts: calls of the sampler, or None where that is not known before.
        part: what a call is about, such as ``batch``.
        line_seconds: where there is no terminal (a log file, a pipe), seconds between two lines.
    """

    def __init__(
        self, what: str, parts: int | None = None, *, part: str = "batch", line_seconds: float = 10.0
    ) -> None:
        self.what, self.parts, self.part, self.line_seconds = what, parts, part, line_seconds
        self.done = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._last_line = time.monotonic()
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self.what, total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def part_done(self, done: int, parts: int) -> None:
        """``done`` of ``parts`` calls of the sampler are over."""
        self.done, self.parts = done, parts

    def step(self, i: int, n: int, x: Tensor, x0_hat: Tensor | None) -> None:
        """Step ``i`` of ``n`` of the present call is over: a ``Callback`` of samplers."""
        several = f"  {self.part} {self.done + 1}" + (f"/{self.parts}" if self.parts else "")
        self._show(i, n, self.what + (several if self.parts != 1 and (self.parts or self.done) else ""))

    def item(self, i: int, n: int, what: str) -> None:
        """Of ``n`` things to do the one after ``i`` begins, named ``what``."""
        self._show(i, n, what)

    def _show(self, i: int, n: int, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, completed=i, total=n)
        elif time.monotonic() - self._last_line >= self.line_seconds:
            self._last_line = time.monotonic()
            sys.stderr.write(f"{text}  step {i}/{n}\n")
            sys.stderr.flush()
