"""A program that this process starts, waits for, and does not leave behind."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from scoreexp.system.signals import stop_signals

_PATIENCE = 5.0  # seconds from SIGTERM to SIGKILL


def run_child(command: Sequence[str], output: IO[bytes], seconds: float) -> int:
    """Run a program in a session of its own until it ends; its exit code.

    Where this process is stopped, or the time is over, all processes of that session are ended first: by SIGTERM, and by
    SIGKILL after 5 seconds.

    >>> import tempfile
    >>> with tempfile.TemporaryFile() as output:
    ...     run_child(["sh", "-c", "exit 3"], output, seconds=60.0)
    3

    Args:
        command: the program and its arguments.
        output: what it says is written here.
        seconds: it may take.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it has taken longer.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: after SIGTERM or the end of the terminal, with 128 + the signal's number.
    """
    received: list[int] = []

    def hear(signum: int, frame: Any) -> None:
        received.append(signum)

    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, hear) for number in (stop_signals() if is_main else ())}
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + seconds
            while process.poll() is None and not received:
                if time.monotonic() >= end:
                    raise subprocess.TimeoutExpired(command, seconds)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        finally:
            if process.poll() is None:
                _end(process)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
