"""A program that was started does not outlive the process that waits for it."""

import os
import select
import signal
import subprocess
import threading

import pytest

from scoreexp.system import child

# The shell and the process that it has started hold the pipe's end until both are gone.
DEAF = "trap '' TERM; sleep 60 & echo ready; sleep 60"


@pytest.mark.parametrize(
    ("signum", "raised", "script"),
    [(signal.SIGTERM, SystemExit, DEAF), (signal.SIGINT, KeyboardInterrupt, "sleep 60 & echo ready; wait")],
)
def test_a_stopped_process_ends_its_child_and_what_that_has_started(monkeypatch, signum, raised, script):
    monkeypatch.setattr(child, "_PATIENCE", 0.05)
    before = signal.getsignal(signum)
    read, write = os.pipe()

    def stop() -> None:
        assert os.read(read, 6) == b"ready\n"
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=stop)
    thread.start()
    with os.fdopen(write, "wb") as output, pytest.raises(raised) as stopped:
        child.run_child(["sh", "-c", script], output, seconds=30.0)
    thread.join()
    assert select.select([read], [], [], 10.0)[0], "a process is left that could write"
    assert os.read(read, 1) == b""
    os.close(read)
    assert getattr(stopped.value, "code", None) in (None, 128 + signum)
    assert signal.getsignal(signum) == before


def test_a_child_that_takes_too_long_is_ended(tmp_path):
    with (tmp_path / "log").open("wb") as output, pytest.raises(subprocess.TimeoutExpired):
        child.run_child(["sleep", "60"], output, seconds=0.0)
