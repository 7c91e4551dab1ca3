"""Running many commands from a queue, each in a process of its own, so that a sweep survives.

A job is ``python -m MODULE OVERRIDES run_dir=FOLDER resume=auto`` in its own process group. What it says goes to
``FOLDER/output.log``, how it stands to ``FOLDER/status.json``, which is written anew at its start and end. Both are all
that the next call needs: it skips what is done, waits for what still runs, and runs the rest, which goes on from its
last checkpoint. Jobs running at once share the processor's cores evenly, and each has its own GPUs where there are
enough, so that their times can be compared; ``status.json`` says what each job had.
"""

import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scoreexp.core.errors import UserError
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.signals import stop_signals

STATUS_FILE = "status.json"
LOG_FILE = "output.log"
POLL_SECONDS = 0.1
STOPPED = {
    128 + number: f"stopped by {name}"
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
}
_ERROR_LINE = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")
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
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.overrides, self.folder_override, "resume=auto"]


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


def stored_status(folder: Path) -> JobStatus:
    """The status that ``status.json`` of a job says."""
    stored = read_status(folder)
    return JobStatus(**{"status": "waiting"} | {k: stored[k] for k in JobStatus._fields if k in stored})


def forget_running(folder: Path, hostname: str) -> None:
    """Take a job for interrupted that is marked as running on another machine: for the one who knows it is not."""
    stored = read_status(folder)
    if stored.get("status") == "running" and stored.get("hostname") != hostname:
        _write_status(folder, stored | {"status": "interrupted"})


def is_done(job: Job) -> bool:
    """Whether an earlier call has finished exactly this job."""
    stored = read_status(job.folder)
    asked = (job.module, sorted(job.overrides))
    done = (stored.get("module"), sorted(map(str, stored.get("overrides") or ())))
    return stored.get("status") == "done" and done == asked


def run_jobs(
    jobs: Sequence[Job],
    *,
    n_parallel: int = 1,
    gpus: Sequence[int] | None = None,
    devices_per_job: int = 1,
    fail_fast: bool = False,
    force: bool = False,
) -> list[JobStatus]:
    """Run the jobs that are not done, ``n_parallel`` at a time, and show how they stand on stderr.

    A job that fails is shown at once and the others go on. Ctrl-C, SIGTERM and, unless it is ignored as under ``nohup``,
    SIGHUP reach the running jobs as SIGINT, on which a training saves and stops; a second one stops them without saving.

    Args:
        jobs: names and folders must differ.
        n_parallel: jobs at once; each gets an equal share of the cores.
        gpus: numbers of the GPUs to hand out; None hands out all visible ones if several jobs run at once, and
            leaves them all visible to a job that runs alone.
        devices_per_job: GPUs (or processes on the CPU) of one job.
        fail_fast: stop the others when one fails.
        force: run jobs again that are done; they go on with what their folder holds.

    Returns:
        One status per job, in their order.

    Raises:
        UserError: an impossible argument, or a job that runs on another machine.
        KeyboardInterrupt: after Ctrl-C, once the jobs have stopped.
        SystemExit: with code 143 after SIGTERM or 129 after SIGHUP, once the jobs have stopped.
    """
    _require_distinct(jobs)
    for name, value in (("n_parallel", n_parallel), ("devices_per_job", devices_per_job)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    at_once = max(1, min(n_parallel, len(jobs)))
    slots = _share_gpus(gpus, at_once, devices_per_job)
    queue = _Queue(jobs, slots, _share_threads(at_once, devices_per_job), fail_fast, force)
    with queue.listening(), queue.display:
        queue.run()
    if queue.received == signal.SIGINT:
        raise KeyboardInterrupt
    if queue.received is not None:
        raise SystemExit(128 + queue.received)
    return queue.statuses


def describe_failures(jobs: Sequence[Job], statuses: Sequence[JobStatus]) -> str | None:
    """One line that lists what is not done, or None: ``1 of 3 jobs failed: NAME``."""
    parts = []
    for state in ("failed", "interrupted", "waiting"):
        names = [job.name for job, status in zip(jobs, statuses) if status.status == state]
        if names:
            what = "not started" if state == "waiting" else state
            parts.append(f"{len(names)} of {len(jobs)} jobs {what}: {', '.join(names)}")
    return "; ".join(parts) or None


def _require_distinct(jobs: Sequence[Job]) -> None:
    for what in ("name", "folder"):
        values = [str(getattr(job, what)) for job in jobs]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UserError(f"two jobs have the same {what} {twice}; give each its own")
    for job in jobs:
        stored = read_status(job.folder)
        if stored.get("status") == "running" and stored.get("hostname") != platform.node():
            raise UserError(
                f"{job.name} is marked as running on {stored.get('hostname')} (process {stored.get('pid')}); "
                f"if it is not, delete {job.folder / STATUS_FILE}"
            )


# --------------------------------------------------------------------------------------------- resources


def _share_threads(at_once: int, devices_per_job: int) -> int | None:
    """Threads of each process when several run at once; None leaves a process that runs alone to its default."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(given) if given.isdigit() else None
    if at_once * devices_per_job == 1:
        return limit
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // (at_once * devices_per_job))
    return share if limit is None else min(share, limit)


def _share_gpus(gpus: Sequence[int] | None, at_once: int, devices_per_job: int) -> list[list[str] | None]:
    """The GPUs of each place in the queue; None leaves all of them visible."""
    if gpus is None and at_once == 1:
        return [None]
    numbers = [str(gpu) for gpu in gpus] if gpus is not None else visible_gpus()
    if not numbers:
        return [None] * at_once
    if devices_per_job > len(numbers):
        raise UserError(f"a job needs {devices_per_job} GPUs, there are {len(numbers)}: {', '.join(numbers)}")
    return [
        [numbers[(place * devices_per_job + device) % len(numbers)] for device in range(devices_per_job)]
        for place in range(at_once)
    ]


def visible_gpus() -> list[str]:
    """The GPUs of this machine that a process started now may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return re.findall(r"^GPU (\d+):", listed.stdout, flags=re.MULTILINE)


# -------------------------------------------------------------------------------------------- one process


class _Attempt:
    """One run of a job: its process, its log and its status file."""

    def __init__(self, job: Job, gpus: list[str] | None, threads: int | None, at_once: int) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("SLURM_NTASKS", None)  # the job's processes are its own, not tasks of a Slurm step
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._begun = time.monotonic()
        self._record: dict[str, Any] = {
            "name": job.name,
            "status": "running",
            "started": _now(),
            "finished": None,
            "seconds": None,
            "exit_code": None,
            "error": None,
            "command": shlex.join(job.command),
            "module": job.module,
            "overrides": list(job.overrides),
            "hostname": platform.node(),
            "gpus": gpus,
            "threads": threads,
            "jobs_at_once": at_once,
            "attempts": read_status(job.folder).get("attempts", 0) + 1,
        }
        with (job.folder / LOG_FILE).open("ab") as log:
            log.write(f"--- {self._record['started']} {self._record['command']}\n".encode())
            log.flush()
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self._record["pid"] = self._process.pid
        _write_status(job.folder, self._record)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def poll(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def send(self, signum: int) -> None:
        _signal_group(self._process.pid, signum)

    def conclude(self, asked: str | None) -> JobStatus:
        """Write the final status; ``asked``: why the queue has asked it to stop, if it has."""
        code = self._process.wait()
        code = 128 - code if code < 0 else code
        if code == 0:
            result = JobStatus("done", 0, None, self.seconds)
        elif code in STOPPED or asked is not None:
            result = JobStatus("interrupted", code, asked or STOPPED[code], self.seconds)
        else:
            result = JobStatus("failed", code, self._error(code), self.seconds)
        self._record |= {**result._asdict(), "seconds": round(self.seconds, 3), "finished": _now()}
        _write_status(self.job.folder, self._record)
        return result

    def _error(self, code: int) -> str:
        lines = log_lines(self.job.folder, self._log_start)
        said = [line for line in lines if _ERROR_LINE.match(line)] or lines
        if code > 128 and code - 128 in set(signal.Signals):
            name = signal.Signals(code - 128).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        return said[-1] if said else f"exit code {code} without a word"


class _Adopted:
    """A job that an earlier queue has started and that still runs: waited for, then run again to be sure."""

    def __init__(self, job: Job, record: Mapping[str, Any]) -> None:
        self.job = job
        self._record = dict(record)
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def poll(self) -> bool:
        return not _is_running(self.job, self._record)

    def send(self, signum: int) -> None:
        _signal_group(self._record["pid"], signum)

    def conclude(self, asked: str | None) -> JobStatus:
        result = JobStatus("interrupted", None, asked or "stopped", None)
        self._record |= {**result._asdict(), "finished": _now()}
        _write_status(self.job.folder, self._record)
        return result


def log_lines(folder: Path, start: int = 0) -> list[str]:
    """The last lines of a job's log that are not blank, from a position on."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    with path.open("rb") as log:
        log.seek(max(start, path.stat().st_size - _TAIL_BYTES))
        text = log.read().decode(errors="replace")
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def _is_running(job: Job, record: Mapping[str, Any]) -> bool:
    """Whether the process of a status file is alive and still that job's, not a later one with its number."""
    if record.get("status") != "running" or record["hostname"] != platform.node():
        return False
    arguments = Path(f"/proc/{record['pid']}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsencode(job.folder_override) in arguments.read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    return True


def _signal_group(group: int, signum: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, signum)


def _write_status(folder: Path, record: Mapping[str, Any]) -> None:
    write_json(folder / STATUS_FILE, record)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# ---------------------------------------------------------------------------------------------- the queue


class _Queue:
    def __init__(
        self,
        jobs: Sequence[Job],
        slots: list[list[str] | None],
        threads: int | None,
        fail_fast: bool,
        force: bool,
    ) -> None:
        self.jobs = jobs
        self.statuses = [JobStatus("waiting") for _ in jobs]
        self.received: int | None = None
        self.running: dict[int, _Attempt | _Adopted] = {}  # by the job's position
        self.display = _Display(self)
        self._free = deque(enumerate(slots))
        self._taken: dict[int, tuple[int, list[str] | None]] = {}
        self._slots, self._threads = len(slots), threads
        self._fail_fast, self._force = fail_fast, force
        self._stopping: str | None = None  # why
        self._asked = 0  # jobs that ran when the signal came

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Pass Ctrl-C, SIGTERM and SIGHUP on to the jobs; with a handler here, jobs start with the default one."""
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
            self.received, self._asked = signum, len(self.running)
        self._stopping = f"stopped by {signal.Signals(self.received).name}"
        for attempt in self.running.values():
            attempt.send(signal.SIGINT)

    def run(self) -> None:
        waiting = deque(range(len(self.jobs)))
        said = False
        try:
            while self.running or (waiting and not self._stopping):
                while waiting and self._free and not self._stopping:
                    self._start(waiting.popleft())
                time.sleep(POLL_SECONDS if self.running else 0)
                if self.received is not None and not said:
                    said = True
                    self.display.say(
                        f"{signal.Signals(self.received).name}: {self._asked} running jobs save and stop; "
                        "once more to stop at once"
                    )
                for position in [p for p, attempt in self.running.items() if attempt.poll()]:
                    if isinstance(self.running[position], _Adopted) and not self._stopping:
                        self._release(position)
                        self.statuses[position] = JobStatus("waiting")
                        waiting.appendleft(position)
                    else:
                        self._conclude(position)
        finally:  # left by an error: nothing goes on unwatched
            for attempt in self.running.values():
                attempt.send(signal.SIGINT)
            for position in list(self.running):
                while not self.running[position].poll():
                    time.sleep(POLL_SECONDS)
                self._stopping = self._stopping or "stopped"
                self._conclude(position)

    def _start(self, position: int) -> None:
        job = self.jobs[position]
        stored = read_status(job.folder)
        if _is_running(job, stored):
            self.running[position] = _Adopted(job, stored)
            self.display.say(f"{job.name} is running already (process {stored['pid']}): waiting for it")
        elif is_done(job) and not self._force:
            self.statuses[position] = JobStatus("skipped", 0, None, stored["seconds"])
            self.display.say(f"{job.name} is done already")
            return
        else:
            try:
                attempt = _Attempt(job, self._free[0][1], self._threads, self._slots)
            except OSError as error:
                self._end(position, JobStatus("failed", None, f"cannot be started: {error}"))
                return
            self.running[position] = attempt
            self.display.say(f"{job.name} started{' again' if stored else ''}")
        self._taken[position] = self._free.popleft()
        self.statuses[position] = JobStatus("running")
        if self._stopping:  # the signal came while it was starting
            self.running[position].send(signal.SIGINT)

    def _conclude(self, position: int) -> None:
        result = self.running[position].conclude(self._stopping)
        self._release(position)
        self._end(position, result)

    def _release(self, position: int) -> None:
        del self.running[position]
        self._free.append(self._taken.pop(position))

    def _end(self, position: int, result: JobStatus) -> None:
        self.statuses[position] = result
        after = f" after {_clock(result.seconds)}" if result.seconds is not None else ""
        why = f": {result.error}" if result.error else ""
        self.display.say(f"{self.jobs[position].name} {result.status}{after}{why}")
        if result.status == "failed" and self._fail_fast and not self._stopping:
            self._stopping = f"stopped because {self.jobs[position].name} failed"
            for attempt in self.running.values():
                attempt.send(signal.SIGINT)


# -------------------------------------------------------------------------------------------- what is shown


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class _Display:
    """A table that follows the jobs on a terminal, a line per event elsewhere."""

    STYLES: Mapping[str, str] = {
        "running": "cyan",
        "done": "green",
        "failed": "bold red",
        "interrupted": "yellow",
    }

    def __init__(self, queue: _Queue) -> None:
        self._queue = queue
        self._console = Console(stderr=True)
        self._live = (
            Live(get_renderable=self._table, console=self._console, refresh_per_second=2)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> "_Display":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        over = sum(status.status not in ("waiting", "running") for status in self._queue.statuses)
        line = f"[{over}/{len(self._queue.jobs)}] {text}"
        self._console.print(Text(line), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("job", no_wrap=True)
        table.add_column("status")
        table.add_column("time", justify="right")
        table.add_column("last line", no_wrap=True, overflow="ellipsis")
        statuses = list(self._queue.statuses)
        room = max(5, self._console.height - 5)
        hidden = len(statuses) - room
        for position, (job, status) in enumerate(zip(self._queue.jobs, statuses)):
            if hidden > 0 and status.status in ("done", "skipped", "waiting"):
                hidden -= 1
                continue
            attempt = self._queue.running.get(position)
            seconds = status.seconds if attempt is None else attempt.seconds
            last = status.error or ("" if attempt is None else (log_lines(job.folder) or [""])[-1])
            style = self.STYLES.get(status.status, "dim")
            table.add_row(Text(job.name), Text(status.status, style), _clock(seconds), Text(last))
        counts = {
            state: sum(s.status == state for s in statuses)
            for state in dict.fromkeys(s.status for s in statuses)
        }
        table.caption = ", ".join(f"{n} {state}" for state, n in counts.items())
        return table
