"""The one loop that runs jobs: it starts them, watches them, passes signals on, and says how each ends.

How a job is started and watched is an ``Executor``'s part: a process on this machine, or a job of a cluster.
"""

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from scoreexp.app.jobs import Job, JobStatus, is_done, stored_status
from scoreexp.app.queue_display import QueueDisplay, clock
from scoreexp.core.errors import UserError
from scoreexp.system.signals import stop_signals

POLL_SECONDS = 0.1  # in which a signal is noticed


class Attempt(ABC):
    """One run of a job, begun now or earlier.

    Args:
        job: what runs.
        news: what has happened to it, such as ``started``.

    Attributes:
        again: its end does not tell how it went, so the job is run once more.
    """

    again: bool = False

    def __init__(self, job: Job, news: str) -> None:
        self.job, self.news = job, news
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was begun, or found."""
        return time.monotonic() - self._begun

    @abstractmethod
    def has_ended(self) -> bool: ...

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and stop; asked a second time, it stops at once."""

    @abstractmethod
    def conclude(self, asked: str | None) -> JobStatus:
        """How it has ended; ``asked``: why the queue has asked it to stop, if it has."""


class Executor(ABC):
    """How jobs are started.

    Attributes:
        places: jobs at once, or None for all.
        watch_seconds: between two looks at the running jobs.
    """

    places: int | None
    watch_seconds: float = POLL_SECONDS

    @abstractmethod
    def find(self, job: Job) -> Attempt | None:
        """An attempt of the job that an earlier call has begun and that goes on."""

    def ready(self) -> bool:
        """Whether a job can be started now."""
        return True

    @abstractmethod
    def start(self, job: Job, place: int) -> Attempt:
        """Begin an attempt in one of the places, numbered from 0.

        Raises:
            OSError: it cannot be started.
        """

    def parting(self, running: Sequence[Attempt]) -> str | None:
        """What is said when a signal ends the queue but not the jobs; None where they are asked to stop."""
        return None


def run_queue(
    jobs: Sequence[Job], executor: Executor, *, fail_fast: bool = False, force: bool = False
) -> list[JobStatus]:
    """Run the jobs that are not done, and show how they stand on stderr.

    A job that fails is shown at once and the others go on. After Ctrl-C, SIGTERM and, unless it is ignored as under
    ``nohup``, SIGHUP the jobs are asked to save and stop, or left to themselves (``Executor.parting``).

    Args:
        jobs: names and folders must differ.
        executor: starts them.
        fail_fast: stop the others when one fails.
        force: run jobs again that are done; they go on with what their folder holds.

    Returns:
        One status per job, in their order.

    Raises:
        UserError: two jobs are alike.
        KeyboardInterrupt: after Ctrl-C, once the jobs have stopped.
        SystemExit: with code 143 after SIGTERM or 129 after SIGHUP, once the jobs have stopped.
    """
    _require_distinct(jobs)
    queue = _Queue(jobs, executor, fail_fast, force)
    with queue.listening(), queue.display:
        queue.run()
    if queue.received == signal.SIGINT:
        raise KeyboardInterrupt
    if queue.received is not None:
        raise SystemExit(128 + queue.received)
    return queue.statuses


def _require_distinct(jobs: Sequence[Job]) -> None:
    for what in ("name", "folder"):
        values = [str(getattr(job, what)) for job in jobs]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"two jobs have the same {what} {twice}; give each its own")


class _Queue:
    def __init__(self, jobs: Sequence[Job], executor: Executor, fail_fast: bool, force: bool) -> None:
        self.jobs = jobs
        self.statuses = [JobStatus("waiting") for _ in jobs]
        self.received: int | None = None
        self.running: dict[int, Attempt] = {}  # by the job's position
        self.display = QueueDisplay(jobs, self.statuses, self.running)
        self._executor, self._fail_fast, self._force = executor, fail_fast, force
        self._free = deque(range(len(jobs) if executor.places is None else executor.places))
        self._taken: dict[int, int] = {}
        self._stopping: str | None = None  # why

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear Ctrl-C, SIGTERM and SIGHUP; with a handler here, jobs start with the default one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {signum: signal.signal(signum, self._receive) for signum in stop_signals()}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signum
        self._stopping = f"stopped by {signal.Signals(self.received).name}"
        if self._parting() is None:
            self._stop_all()

    def _parting(self) -> str | None:
        return self._executor.parting(list(self.running.values()))

    def _stop_all(self) -> None:
        for attempt in list(self.running.values()):
            attempt.stop()

    def run(self) -> None:
        waiting = deque(range(len(self.jobs)))
        said = False
        try:
            while self.running or (waiting and not self._stopping):
                while waiting and self._free and not self._stopping and self._executor.ready():
                    self._start(waiting.popleft())
                self._watch()
                if self.received is not None and not said:
                    said = True
                    parting = self._parting()
                    self.display.say(f"{signal.Signals(self.received).name}: {parting or self._stops()}")
                    if parting is not None:
                        return
                for position in [p for p, attempt in self.running.items() if attempt.has_ended()]:
                    if self.running[position].again and not self._stopping:
                        self._release(position)
                        self.statuses[position] = JobStatus("waiting")
                        waiting.appendleft(position)
                    else:
                        self._conclude(position)
        finally:  # left by an error: nothing goes on unwatched
            if self._parting() is None:
                self._stop_all()
                for position in list(self.running):
                    while not self.running[position].has_ended():
                        time.sleep(POLL_SECONDS)
                    self._stopping = self._stopping or "stopped"
                    self._conclude(position)

    def _stops(self) -> str:
        return f"{len(self.running)} running jobs save and stop; once more to stop at once"

    def _watch(self) -> None:
        """Wait until it is time to look at the running jobs, or a signal has come."""
        before, end = self.received, time.monotonic() + self._executor.watch_seconds
        while self.received == before and (left := end - time.monotonic()) > 0:
            if not self.running and self._executor.ready():
                return
            time.sleep(min(left, POLL_SECONDS))

    def _start(self, position: int) -> None:
        job = self.jobs[position]
        if is_done(job) and not self._force:
            self.statuses[position] = stored_status(job.folder)._replace(status="skipped")
            self.display.say(f"{job.name} is done already")
            return
        try:
            attempt = self._executor.find(job) or self._executor.start(job, self._free[0])
        except OSError as error:
            self._end(position, JobStatus("failed", None, f"cannot be started: {error}"))
            return
        self.running[position] = attempt
        self.display.say(f"{job.name} {attempt.news}")
        self._taken[position] = self._free.popleft()
        self.statuses[position] = JobStatus("running")
        if self._stopping and self._parting() is None:  # the signal came while it was starting
            attempt.stop()

    def _conclude(self, position: int) -> None:
        result = self.running[position].conclude(self._stopping)
        self._release(position)
        self._end(position, result)

    def _release(self, position: int) -> None:
        del self.running[position]
        self._free.append(self._taken.pop(position))

    def _end(self, position: int, result: JobStatus) -> None:
        self.statuses[position] = result
        after = f" after {clock(result.seconds)}" if result.seconds is not None else ""
        why = f": {result.error}" if result.error else ""
        self.display.say(f"{self.jobs[position].name} {result.status}{after}{why}")
        if result.status == "failed" and self._fail_fast and not self._stopping:
            self._stopping = f"stopped because {self.jobs[position].name} failed"
            self._stop_all()
