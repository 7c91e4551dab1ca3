"""One process at a time in a folder, whatever becomes of it."""

import errno
import multiprocessing
import os
import time

import pytest

from scoreexp.core.errors import UserError
from scoreexp.system import locks as folder_lock
from scoreexp.system.locks import hold

context = multiprocessing.get_context("fork")


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder and has a child of its own, like one that loads data."""
    receive, send = context.Pipe(duplex=False)

    def run() -> None:
        with hold(tmp_path):
            child = os.fork()
            if child:
                send.send(child)
            time.sleep(600)

    process = context.Process(target=run)
    process.start()
    assert receive.poll(60)
    child = receive.recv()
    yield process
    process.kill()
    os.kill(child, 9)


def test_the_holder_is_named(holder, tmp_path):
    with (
        pytest.raises(
            UserError, match=rf"^compare_dir .* is in use by process {holder.pid} on .*: wait until"
        ),
        hold(tmp_path, "compare_dir"),
    ):
        pass


def test_a_killed_holder_lets_go_though_its_child_lives(holder, tmp_path):
    holder.kill()
    holder.join()
    with hold(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_the_folder_is_free_after_the_body(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path):
        raise KeyError
    process = context.Process(target=lambda: hold(tmp_path).__enter__())
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    with hold(tmp_path):
        pass
