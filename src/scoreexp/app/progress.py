"""How far a sampler is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers import Sampler, SampleResult
from scoreexp.samplers.base import Callback
from scoreexp.schedules import Schedule


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
        text = self.what + (several if self.parts != 1 and (self.parts or self.done) else "")
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=text, completed=i, total=n)
        elif time.monotonic() - self._last_line >= self.line_seconds:
            self._last_line = time.monotonic()
            sys.stderr.write(f"{text}  step {i}/{n}\n")
            sys.stderr.flush()


class Followed(Sampler):
    """A sampler whose steps a callback follows, for callers that know of no callback."""

    def __init__(self, sampler: Sampler, callback: Callback) -> None:
        super().__init__(sampler.grid, sampler.denoise_last)
        self.sampler, self.callback = sampler, callback

    def start(self, schedule: Schedule, y: Tensor, sigma: float) -> tuple[Tensor, float]:
        return self.sampler.start(schedule, y, sigma)

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
        cond: Tensor | None,
    ) -> tuple[Tensor, Any]:
        return self.sampler.step(model, x_t, t, s, state, streams, cond)

    def __call__(self, *args: Any, **kwargs: Any) -> SampleResult:
        return self.sampler(*args, **{"callback": self.callback, **kwargs})
