"""The processes of one run on several devices: which is the first, and what becomes of all when one fails.

Lightning starts the other processes itself, or torchrun or Slurm has started all of them. Each runs the same command; the
first one writes the run's files and speaks.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scoreexp.core.errors import UserError

FAILED = ".failed"  # in the run directory: written by the process that failed first
_PATIENCE_SECONDS = 10.0  # for the last words of a process that has failed


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    """Whether Slurm has started this process as a task; a shell on a node, which Slurm calls bash, is none."""
    interactive = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in environment and "SLURM_PROCID" in environment and not interactive


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the only or the first process of a run; known before Lightning is.

    >>> is_first_process({}), is_first_process({"RANK": "1", "WORLD_SIZE": "2"})
    (True, False)
    """
    if "RANK" in environment:  # torchrun
        return environment["RANK"] == "0"
    if _in_slurm_step(environment):
        return environment["SLURM_PROCID"] == "0"
    return environment.get("NODE_RANK", "0") == "0" and environment.get("LOCAL_RANK", "0") == "0"


def independent_launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """What has started several processes of this run independently of each other: torchrun, Slurm, or None.

    >>> independent_launcher({"RANK": "0", "WORLD_SIZE": "2"})
    'torchrun'
    """
    if "RANK" in environment:
        return "torchrun" if int(environment.get("WORLD_SIZE", 1)) > 1 else None
    return "Slurm" if _in_slurm_step(environment) and int(environment["SLURM_NTASKS"]) > 1 else None


def require_all_processes(world_size: int, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse processes that would each train alone, into the same folder.

    >>> require_all_processes(4, {"RANK": "0", "WORLD_SIZE": "2"})
    Traceback (most recent call last):
    scoreexp.core.errors.UserError: torchrun has started 2 processes, the run is for 4: ...

    Raises:
        UserError: the launcher has started another number of processes than ``world_size``.
    """
    launcher = independent_launcher(environment)
    if launcher is None:
        return
    started = int(environment["WORLD_SIZE" if launcher == "torchrun" else "SLURM_NTASKS"])
    if started != world_size:
        raise UserError(
            f"{launcher} has started {started} processes, the run is for {world_size}: set trainer=ddp, trainer.devices to "
            "the processes per machine and trainer.num_nodes to the number of machines"
        )


def start_time(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was: with its number, it names one process for ever.

    None where there is no such process any more, or no ``/proc`` that tells.

    >>> start_time(os.getpid()) == start_time(os.getpid())
    True
    """
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        state, *fields = stat[stat.rindex(")") + 2 :].split()
        return None if state in "ZX" else int(fields[18])  # a zombie has ended
    return None


def is_alive(pid: int, started: int | None) -> bool:
    """Whether a process runs, and is the one that was started then, not a later one with its number.

    >>> is_alive(os.getpid(), start_time(os.getpid()))
    True
    """
    if Path("/proc/self/stat").exists():
        return started is not None and start_time(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def failing_together(trainer: Any, folder: Path) -> Iterator[None]:
    """Let only the process that fails first say why, and leave no other behind.

    When one process fails, the others fail in their next exchange with it, with an error that says nothing about the cause:
    they leave silently with exit code 1.

    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> trainer = SimpleNamespace(is_global_zero=True, world_size=1)  # Lightning's has these too
    >>> with tempfile.TemporaryDirectory() as folder, failing_together(trainer, Path(folder)):
    ...     print("trained")
    trained

    Args:
        trainer: Lightning's, which starts its processes inside of this context.
        folder: the run directory, which all processes see.

    Raises:
        UserError: another process has been killed.
        SystemExit: with code 1, in the processes that did not fail first.
    """
    marker = folder / FAILED
    if trainer.is_global_zero:
        marker.unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if trainer.world_size == 1:
            raise
        started = list(getattr(trainer.strategy.launcher, "procs", ()))
        if started:  # by this process, which Lightning would kill when they end with an error
            trainer.strategy.launcher.procs.clear()
        try:
            is_first = _is_first_failure(marker)
            if not isinstance(error, Exception):  # a signal: the others stop at the same step
                _wait(started, _PATIENCE_SECONDS)
            elif not is_first:
                _wait(started, _PATIENCE_SECONDS)
                raise SystemExit(1) from None
            elif not isinstance(error, UserError):
                _wait(started, 1.0)
                _require_none_killed(started, trainer.world_size)
            raise
        finally:
            for process in started:
                process.kill()
                process.wait()
            if started:
                marker.unlink(missing_ok=True)


def _is_first_failure(marker: Path) -> bool:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # a full disk, or no folder: rather an error said twice than never
        return True
    return True


def _wait(processes: list[subprocess.Popen], seconds: float) -> None:
    end = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))


def _require_none_killed(processes: list[subprocess.Popen], world_size: int) -> None:
    for process in processes:
        if (code := process.poll()) is not None and code < 0:
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            raise UserError(
                f"one of the {world_size} processes was killed by {signal.Signals(-code).name}{hint}: "
                "repeat the command with resume=auto"
            )
