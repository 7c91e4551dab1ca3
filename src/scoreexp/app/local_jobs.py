"""Jobs as processes of this machine, so that a sweep survives each of them.

A job is a process in a session of its own: started anew, or forked from a server that has imported everything, where that is
possible and saves time. Jobs running at once share the processor's cores evenly, and each has its own GPUs
where there are enough, so that their times can be compared; ``status.json`` says what each job had.
"""

import contextlib
import os
import platform
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scoreexp.app.jobs import (
    LOG_FILE,
    STATUS_FILE,
    Job,
    JobStatus,
    is_done,
    log_lines,
    read_status,
    write_status,
)
from scoreexp.app.queue import Attempt, Executor, run_queue
from scoreexp.core.errors import UserError
from scoreexp.system.fork_server import ForkedProcess, ForkServer, can_fork
from scoreexp.system.processes import is_alive, start_time

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
    fork: bool = True,
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
        fork: import once for all jobs and fork each; on Linux, for several jobs of one process each, without GPUs. Anything
            else, and what is not forked, imports for itself.

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
    missing = jobs if force else [job for job in jobs if not is_done(job)]
    forks = fork and can_fork() and len(missing) > 1 and devices_per_job == 1 and slots == [None] * at_once
    preload = _preload(missing) if forks and not visible_gpus() else None
    processes = _Processes(slots, _share_threads(at_once, devices_per_job), preload)
    with contextlib.closing(processes):
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


def _preload(jobs: Sequence[Job]) -> list[str]:
    """What the jobs would import each for itself; nothing for commands of others."""
    own = {job.module.removeprefix("scoreexp.") for job in jobs if job.module.startswith("scoreexp.")}
    return ["scoreexp.app.preload", *(f"scoreexp.app.commands.{name}" for name in sorted(own))] if own else []


class _Processes(Executor):
    """Starts processes.

    Args:
        slots: the GPUs of each place, None for all.
        threads: of each process, None for its default.
        preload: what a server imports that forks them; None starts each anew.
    """

    def __init__(
        self, slots: Sequence[list[str] | None], threads: int | None, preload: Sequence[str] | None
    ) -> None:
        self.places = len(slots)
        self._slots, self._threads = slots, threads
        self._server = None if preload is None else ForkServer(preload, _environment(None, threads))

    def ready(self) -> bool:
        return self._server is None or self._server.ready

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def find(self, job: Job) -> Attempt | None:
        stored = read_status(job.folder)
        return _Adopted(job, stored) if _is_running(job, stored) else None

    def start(self, job: Job, place: int) -> Attempt:
        return _Process(job, self._slots[place], self._threads, self.places or 1, self._server)


def _environment(gpus: list[str] | None, threads: int | None) -> dict[str, str]:
    """The environment variables of a job."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.pop("SLURM_NTASKS", None)  # the job's processes are its own, not tasks of a Slurm step
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment


class _Process(Attempt):
    """A process, its log and its status file."""

    def __init__(
        self,
        job: Job,
        gpus: list[str] | None,
        threads: int | None,
        at_once: int,
        server: ForkServer | None,
    ) -> None:
        stored = read_status(job.folder)
        super().__init__(job, f"started{' again' if stored else ''}")
        job.folder.mkdir(parents=True, exist_ok=True)
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
            forked = (
                None if server is None else server.start(job.module, job.arguments, job.folder / LOG_FILE)
            )
            self._process = forked or subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(gpus, threads),
                start_new_session=True,
            )
        self._record |= {
            "forked": forked is not None,
            "pid": self._process.pid,
            "process_started": start_time(self._process.pid),
        }
        write_status(job.folder, self._record)

    def has_ended(self) -> bool:
        code = self._process.poll()
        self.again = isinstance(self._process, ForkedProcess) and self._process.is_lost
        return code is not None or self.again

    def stop(self) -> None:
        _interrupt(self._process.pid)

    def conclude(self, asked: str | None) -> JobStatus:
        code = self._process.poll()
        code = 128 - code if code is not None and code < 0 else code
        if code == 0:
            result = JobStatus("done", 0, None, self.seconds)
        elif code is None or code in STOPPED or asked is not None:
            result = JobStatus("interrupted", code, asked or STOPPED.get(code or 0, "stopped"), self.seconds)
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
    return is_alive(record["pid"], record.get("process_started"))


def _interrupt(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, signal.SIGINT)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
