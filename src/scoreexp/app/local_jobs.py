"""Jobs as processes of this machine, so that a sweep survives each of them.

A job runs in its own process group. Jobs running at once share the processor's cores evenly, and each has its own GPUs
where there are enough, so that their times can be compared; ``status.json`` says what each job had.
"""

import os
import platform
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scoreexp.app.jobs import LOG_FILE, STATUS_FILE, Job, JobStatus, log_lines, read_status, write_status
from scoreexp.app.queue import Attempt, Executor, run_queue
from scoreexp.core.errors import UserError

STOPPED = {
    128 + number: f"stopped by {name}"
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
}
_ERROR_LINE = re.compile(r"error: |[\w.]*(Error|Exception|Interrupt)\b")


def run_jobs(
    jobs: Sequence[Job],
    *,
    n_parallel: int = 1,
    gpus: Sequence[int] | None = None,
    devices_per_job: int = 1,
    fail_fast: bool = False,
    force: bool = False,
) -> list[JobStatus]:
    """Run the jobs that are not done on this machine, ``n_parallel`` at a time, see ``run_queue``.

    Signals that stop the queue reach the running jobs as SIGINT, on which a training saves and stops; a second one
    stops them without saving.

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
        KeyboardInterrupt, SystemExit: after a signal, see ``run_queue``.
    """
    for name, value in (("n_parallel", n_parallel), ("devices_per_job", devices_per_job)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    _require_here(jobs)
    at_once = max(1, min(n_parallel, len(jobs)))
    slots = _share_gpus(gpus, at_once, devices_per_job)
    processes = _Processes(slots, _share_threads(at_once, devices_per_job))
    return run_queue(jobs, processes, fail_fast=fail_fast, force=force)


def _require_here(jobs: Sequence[Job]) -> None:
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


# ---------------------------------------------------------------------------------------------- processes


class _Processes(Executor):
    """Starts processes.

    Args:
        slots: the GPUs of each place, None for all.
        threads: of each process, None for its default.
    """

    def __init__(self, slots: Sequence[list[str] | None], threads: int | None) -> None:
        self.places = len(slots)
        self._slots, self._threads = slots, threads

    def find(self, job: Job) -> Attempt | None:
        stored = read_status(job.folder)
        return _Adopted(job, stored) if _is_running(job, stored) else None

    def start(self, job: Job, place: int) -> Attempt:
        return _Process(job, self._slots[place], self._threads, self.places or 1)


class _Process(Attempt):
    """A process, its log and its status file."""

    def __init__(self, job: Job, gpus: list[str] | None, threads: int | None, at_once: int) -> None:
        stored = read_status(job.folder)
        super().__init__(job, f"started{' again' if stored else ''}")
        job.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("SLURM_NTASKS", None)  # the job's processes are its own, not tasks of a Slurm step
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
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
            "attempts": stored.get("attempts", 0) + 1,
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
        write_status(job.folder, self._record)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        _interrupt(self._process.pid)

    def conclude(self, asked: str | None) -> JobStatus:
        code = self._process.wait()
        code = 128 - code if code < 0 else code
        if code == 0:
            result = JobStatus("done", 0, None, self.seconds)
        elif code in STOPPED or asked is not None:
            result = JobStatus("interrupted", code, asked or STOPPED[code], self.seconds)
        else:
            result = JobStatus("failed", code, self._error(code), self.seconds)
        self._record |= {**result._asdict(), "seconds": round(self.seconds, 3), "finished": _now()}
        write_status(self.job.folder, self._record)
        return result

    def _error(self, code: int) -> str:
        lines = log_lines(self.job.folder, self._log_start)
        said = [line for line in lines if _ERROR_LINE.match(line)] or lines
        if code > 128 and code - 128 in set(signal.Signals):
            name = signal.Signals(code - 128).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"killed by {name}{hint}"
        return said[-1] if said else f"exit code {code} without a word"


class _Adopted(Attempt):
    """A process that an earlier queue has started and that still runs: waited for, then the job is run again."""

    again = True

    def __init__(self, job: Job, record: Mapping[str, Any]) -> None:
        super().__init__(job, f"is running already (process {record['pid']}): waiting for it")
        self._record = dict(record)

    def has_ended(self) -> bool:
        return not _is_running(self.job, self._record)

    def stop(self) -> None:
        _interrupt(self._record["pid"])

    def conclude(self, asked: str | None) -> JobStatus:
        result = JobStatus("interrupted", None, asked or "stopped", None)
        self._record |= {**result._asdict(), "finished": _now()}
        write_status(self.job.folder, self._record)
        return result


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


def _interrupt(group: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, signal.SIGINT)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
