"""What a queue of jobs shows on stderr."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scoreexp.app.jobs import Job, JobStatus, log_lines

STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "interrupted": "yellow"}


class Running(Protocol):
    """A job under way."""

    @property
    def seconds(self) -> float: ...


def clock(seconds: float | None) -> str:
    """``9.5 s``, ``42 s`` or ``1:02:03``; empty where there is none."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class QueueDisplay:
    """A table that follows the jobs on a terminal while the body of ``with`` runs, a line per event elsewhere.

    Args:
        jobs: all jobs.
        statuses: one per job, which the queue keeps up to date.
        running: those under way, by position, which the queue keeps up to date.
    """

    def __init__(
        self, jobs: Sequence[Job], statuses: Sequence[JobStatus], running: Mapping[int, Running]
    ) -> None:
        self._jobs, self._statuses, self._running = jobs, statuses, running
        self._console = Console(stderr=True)
        self._live = (
            Live(get_renderable=self._table, console=self._console, refresh_per_second=2)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> "QueueDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line about what has happened, headed by how many jobs are over."""
        over = sum(status.status not in ("waiting", "running") for status in self._statuses)
        self._console.print(Text(f"[{over}/{len(self._jobs)}] {text}"), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("job", no_wrap=True)
        table.add_column("status")
        table.add_column("time", justify="right")
        table.add_column("last line", no_wrap=True, overflow="ellipsis")
        statuses = list(self._statuses)
        room = max(5, self._console.height - 5)
        hidden = len(statuses) - room
        for position, (job, status) in enumerate(zip(self._jobs, statuses)):
            if hidden > 0 and status.status in ("done", "skipped", "waiting"):
                hidden -= 1
                continue
            attempt = self._running.get(position)
            seconds = status.seconds if attempt is None else attempt.seconds
            last = status.error or ("" if attempt is None else (log_lines(job.folder) or [""])[-1])
            style = STYLES.get(status.status, "dim")
            table.add_row(Text(job.name), Text(status.status, style), clock(seconds), Text(last))
        counts = {
            state: sum(s.status == state for s in statuses)
            for state in dict.fromkeys(s.status for s in statuses)
        }
        table.caption = ", ".join(f"{n} {state}" for state, n in counts.items())
        return table
