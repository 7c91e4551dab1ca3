"""A job: one command with a folder of its own, and the two files in that folder that say how it stands.

A job is ``python -m MODULE OVERRIDES run_dir=FOLDER resume=auto``. What it says goes to ``FOLDER/output.log``, how it
stands to ``FOLDER/status.json``, which is written anew at its start and end. Both are all that the next call needs: it
skips what is done, waits for what still runs, and runs the rest, which goes on from its last checkpoint.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scoreexp.system.json_files import read_json, write_json

STATUS_FILE = "status.json"
LOG_FILE = "output.log"
_TAIL_BYTES = 16384

State = Literal["waiting", "running", "done", "failed", "interrupted", "skipped"]


@dataclass(frozen=True)
class Job:
    """One command of a queue.

    Args:
        name: how it is called in tables and messages.
        module: what is run, such as ``scoreexp.train``.
        overrides: its command line, without ``run_dir`` and ``resume``.
        folder: its run directory, an absolute path of its own.
    """

    name: str
    module: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def folder_override(self) -> str:
        return f"run_dir={quoted(str(self.folder))}"

    @property
    def arguments(self) -> list[str]:
        return [*self.overrides, self.folder_override, "resume=auto"]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]


class JobStatus(NamedTuple):
    """How a job stands.

    Attributes:
        status: ``skipped`` is a job that an earlier call has done; ``waiting`` one that was never started.
        exit_code: as a shell gives it: 128 + signal for a job ended by one.
        error: last line of the error of a failed job.
        seconds: wall-clock time of its last run, from the start of the process to its end.
    """

    status: State
    exit_code: int | None = None
    error: str | None = None
    seconds: float | None = None


def quoted(value: str) -> str:
    """``value`` as it stands in an override on Hydra's command line."""
    if re.fullmatch(r"[\w./:@+-]+", value, flags=re.ASCII):
        return value
    return "'" + re.sub(r"\\(?=\\*(?:'|$))", r"\\\\", value).replace("'", "\\'") + "'"


def read_status(folder: Path) -> dict[str, Any]:
    """What ``status.json`` of a job says; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_json(folder / STATUS_FILE)


def write_status(folder: Path, record: Mapping[str, Any]) -> None:
    """Write ``status.json`` of a job."""
    write_json(folder / STATUS_FILE, record)


def stored_status(folder: Path) -> JobStatus:
    """The status that ``status.json`` of a job says."""
    stored = read_status(folder)
    return JobStatus(**{"status": "waiting"} | {k: stored[k] for k in JobStatus._fields if k in stored})


def forget_running(folder: Path, hostname: str) -> None:
    """Take a job for interrupted that is marked as running on another machine: for the one who knows it is not."""
    stored = read_status(folder)
    if stored.get("status") == "running" and stored.get("hostname") != hostname:
        write_status(folder, stored | {"status": "interrupted"})


def is_done(job: Job) -> bool:
    """Whether an earlier call has finished exactly this job."""
    stored = read_status(job.folder)
    asked = (job.module, sorted(job.overrides))
    done = (stored.get("module"), sorted(map(str, stored.get("overrides") or ())))
    return stored.get("status") == "done" and done == asked


def log_lines(folder: Path, start: int = 0) -> list[str]:
    """The last lines of a job's log that are not blank, from a position on."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    with path.open("rb") as log:
        log.seek(max(start, path.stat().st_size - _TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def describe_failures(jobs: Sequence[Job], statuses: Sequence[JobStatus]) -> str | None:
    """One line that lists what is not done, or None: ``1 of 3 jobs failed: NAME``."""
    parts = []
    for state in ("failed", "interrupted", "waiting"):
        names = [job.name for job, status in zip(jobs, statuses) if status.status == state]
        if names:
            what = "not started" if state == "waiting" else state
            parts.append(f"{len(names)} of {len(jobs)} jobs {what}: {', '.join(names)}")
    return "; ".join(parts) or None
