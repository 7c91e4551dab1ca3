"""A process that has imported what many programs need, and forks each of them: an import of seconds is paid once.

``multiprocessing`` has such a server too. Its children are functions of the program that started it: they import that
program's main module, end without ``atexit``, and are lost to a closed terminal, which ends the server. Here a child is a
command, ``python -m MODULE ARGUMENTS``, in a session of its own, with its own output and the usual end of an interpreter.

The server refuses to fork with more than one thread, so that no lock in a child is held by a thread that it does not have.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scoreexp.system.memory import uncollected
from scoreexp.system.processes import is_alive, start_time


def can_fork() -> bool:
    """Whether this system has what the server needs; macOS's own libraries do not survive a fork.

    >>> can_fork() == (sys.platform == "linux")
    True
    """
    return sys.platform == "linux"


class ForkServer:
    """The server, as its owner sees it. It ends with its owner; what it has forked does not.

    >>> import time
    >>> with contextlib.closing(ForkServer(["json"], os.environ)) as server:
    ...     while can_fork() and not server.ready:
    ...         time.sleep(0.01)
    ...     isinstance(server.ready, bool)
    True

    Args:
        preload: modules that it imports; without those that cannot be imported.
        environment: its environment variables, and those of what it forks.
    """

    def __init__(self, preload: Sequence[str], environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno()), *preload],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # a command that fails like its imports says so in its own output
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # out of reach of Ctrl-C and of the end of the terminal
            )
        self._received = b""
        self._ready = self._lost = False
        self._answer: dict[str, Any] | None = None
        self._codes: dict[int, int] = {}

    @property
    def lost(self) -> bool:
        """Whether the server has ended."""
        self._receive(0)
        return self._lost

    @property
    def ready(self) -> bool:
        """Whether it has imported everything, or has ended."""
        return self.lost or self._ready

    def start(self, module: str, arguments: Sequence[str], output: Path) -> "ForkedProcess | None":
        """Fork ``python -m MODULE ARGUMENTS``; None where the server is lost.

        Args:
            module: a dotted name.
            arguments: what follows it.
            output: an existing file, to which its output is appended.
        """
        request = {"module": module, "arguments": list(arguments), "output": str(output)}
        self._answer = None
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            self._lost = True
        while self._answer is None and not self._lost:
            self._receive(None)
        return None if self._answer is None else ForkedProcess(self, self._answer["pid"])

    def code(self, pid: int) -> int | None:
        """The exit code of a forked process that has ended, negative for a signal."""
        self._receive(0)
        return self._codes.get(pid)

    def close(self) -> None:
        """End the server; what it has forked and still runs goes on."""
        self._socket.close()
        self._lost = True
        self._process.kill()
        self._process.wait()

    def _receive(self, seconds: float | None) -> None:
        """Take note of what the server has said, waiting so long for its next word; None waits for ever."""
        while not self._lost and select.select([self._socket], [], [], seconds)[0]:
            try:
                said = self._socket.recv(65536)
            except OSError:
                said = b""
            self._lost = not said
            *lines, self._received = (self._received + said).split(b"\n")
            for word in map(json.loads, lines):
                if word["what"] == "ended":
                    self._codes[word["pid"]] = word["code"]
                elif word["what"] == "started":
                    self._answer = word
                else:
                    self._ready = True
            seconds = 0


class ForkedProcess:
    """What a server has forked, with as much of ``subprocess.Popen`` as one needs.

    >>> class Ended:  # a server that is gone and knew no exit codes
    ...     lost = True
    ...     def code(self, pid):
    ...         return None
    >>> ForkedProcess(Ended(), os.getpid()).poll() is None  # alive
    True

    Args:
        server: has forked it.
        pid: its number, and that of its process group.

    Attributes:
        is_lost: it has ended, and the server with it, so that nobody knows how.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self._started = start_time(pid)
        self.is_lost = False

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None as long as it runs, and where it is lost."""
        code = self._server.code(self.pid)
        self.is_lost = code is None and self._server.lost and not is_alive(self.pid, self._started)
        return code


# ---------------------------------------------------------------------------------------------- in the server


class _Command(NamedTuple):
    module: str
    arguments: Sequence[str]
    output: str


def main() -> None:
    """Import, then fork until the owner is gone; in a child, run its command."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _import(sys.argv[2:])
    _require_forkable()
    command = _serve(connection)
    connection.close()
    if command is not None:
        sys.orig_argv = [sys.executable, "-m", command.module, *command.arguments]
        sys.argv = sys.orig_argv[2:]  # the first is replaced by the module's file
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def _import(modules: Sequence[str]) -> None:
    with uncollected(), contextlib.suppress(ImportError):  # of a command, which will say so itself
        for module in modules:
            importlib.import_module(module)
    gc.freeze()  # a collection in a child would write to, and so copy, all memory that it shares with the others


def _require_forkable() -> None:
    """Leave where a fork would not be clean: with threads, but for those that end when forking, as OpenBLAS's do."""
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.close(os.pidfd_open(pid))  # an old kernel has none: better known now than with a child
    os.waitpid(pid, 0)
    if (threads := len(os.listdir("/proc/self/task"))) > 1:
        raise SystemExit(f"{threads} threads")


def _serve(connection: socket.socket) -> _Command | None:
    """Fork what is asked for. Returns in each child, with its command, and with None when the owner is gone."""
    children: dict[int, int] = {}  # by the descriptor that tells of a child's end
    _say(connection, what="ready")
    for line in _lines(connection, children):
        command = _Command(**json.loads(line))
        inside, outside = os.pipe()
        if (pid := os.fork()) == 0:
            for descriptor in (inside, *children):
                os.close(descriptor)
            _stand_alone(command.output)
            os.close(outside)
            return command
        os.close(outside)
        os.read(inside, 1)  # until it leads a group of its own, which signals can be sent to
        os.close(inside)
        children[os.pidfd_open(pid)] = pid
        _say(connection, what="started", pid=pid)
    return None


def _lines(connection: socket.socket, children: dict[int, int]) -> Iterator[bytes]:
    """The owner's requests; meanwhile the ends of the children are reported."""
    received = b""
    while True:
        for descriptor in select.select([connection.fileno(), *children], [], [])[0]:
            if descriptor != connection.fileno():
                pid = children.pop(descriptor)
                os.close(descriptor)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _say(connection, what="ended", pid=pid, code=code)
                continue
            if not (said := connection.recv(65536)):
                return
            *lines, received = (received + said).split(b"\n")
            yield from lines


def _say(connection: socket.socket, **word: Any) -> None:
    with contextlib.suppress(OSError):  # the owner is gone, as the next look at it tells
        connection.sendall(json.dumps(word).encode() + b"\n")


def _stand_alone(output: str) -> None:
    """Make of a forked process what a new one would be."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator seeds itself after a fork


if __name__ == "__main__":
    main()
