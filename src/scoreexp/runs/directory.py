"""The directory of a run: what was asked, on what it ran, what came out."""

import contextlib
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from scoreexp.core.errors import UserError
from scoreexp.system.atomic import atomic_write, clear_orphans
from scoreexp.system.json_files import read_json, write_json
from scoreexp.system.locks import LOCK, hold
from scoreexp.system.processes import is_first_process

CONFIG, MANIFEST = "config.yaml", "manifest.json"
ANOTHER = "give another with out=DIR"
PACKAGES = ("scoreexp", "torch", "pytorch-lightning", "hydra-core", "torchmetrics", "numpy", "scipy")


def shown(path: Path) -> str:
    """``path`` as a user would type it: relative to the current folder where it lies below it.

    >>> shown(Path.cwd() / "best.ckpt")
    'best.ckpt'
    """
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


@contextlib.contextmanager
def new_folder(folder: Path, remedy: str) -> Iterator[None]:
    """Make a folder for what the body writes, and remove it again where the body fails or is stopped before it does.

    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with contextlib.suppress(KeyError), new_folder(Path(parent, "new"), "give another folder"):
    ...         raise KeyError("nothing to write")
    ...     list(Path(parent).iterdir())
    []

    Raises:
        UserError: it cannot be made; the message ends with ``remedy``.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): {remedy}") from error
    try:
        yield
    except BaseException:
        for path in absent:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()
        raise


def home_of(ckpt: str | Path) -> Path:
    """The folder of the run that a checkpoint is of, or else the one that it lies in.

    >>> home_of("/runs/7/checkpoints/best.ckpt")
    PosixPath('/runs/7')
    """
    beside = Path(ckpt).expanduser().resolve().parent
    return beside.parent if beside.name == "checkpoints" else beside


@contextlib.contextmanager
def empty_folder(out: str | Path) -> Iterator[Path]:
    """The folder ``out`` for the results of one call, which is new or empty; as with ``new_folder``, a new one that stays
    empty goes again.

    >>> with tempfile.TemporaryDirectory() as out, empty_folder(out) as folder:
    ...     list(folder.iterdir())
    []

    Raises:
        UserError: it holds something, or cannot be made.
    """
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out={out} is not an empty folder: give a new one with out=DIR")
    with new_folder(folder, ANOTHER):
        yield folder


@contextlib.contextmanager
def dated_folder(home: Path) -> Iterator[Path]:
    """A folder below ``home`` for the results of one call, named by the time, and numbered where a call of the same second
    has that name; what stays empty goes again.

    >>> with tempfile.TemporaryDirectory() as home:
    ...     with dated_folder(Path(home)) as first, dated_folder(Path(home)) as second:
    ...         first != second
    True

    Raises:
        UserError: it cannot be made.
    """
    with new_folder(home, ANOTHER):
        folder = _dated(home)
        try:
            yield folder
        except BaseException:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
            raise


def _dated(home: Path) -> Path:
    stamp, calls = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = home / (stamp if calls == 1 else f"{stamp}_{calls}")
        try:
            folder.mkdir()
        except FileExistsError:
            calls += 1
        except OSError as error:
            raise UserError(f"{folder} cannot be written to ({error.strerror}): {ANOTHER}") from error
        else:
            return folder


def own_folder(out: str | None, home: Path) -> contextlib.AbstractContextManager[Path]:
    """``empty_folder(out)``, or ``dated_folder(home)`` where ``out`` is None."""
    return dated_folder(home) if out is None else empty_folder(out)


def git_revision() -> str | None:
    """Revision of the checkout that the package runs from, with ``-dirty`` if it has changes; None outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        inside = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10
        )
        if inside.returncode:
            return None
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """A name that makes timings comparable: the GPU's, or the processor's with its thread count.

    >>> device_name(torch.device("cpu"))
    '..., ... threads'
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


class RunDirectory:
    """A run's directory; nothing is written before ``opened``.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunDirectory(f"{folder}/run", resume="never")
    ...     with run.opened():
    ...         run.describe("seed: 7", torch.device("cpu"), seed=7)
    ...     sorted(path.name for path in run.path.iterdir())
    ['.lock', 'checkpoints', 'config.yaml', 'manifest.json', 'pictures']

    Args:
        path: the directory.
        resume: ``never`` refuses a directory that holds a run; ``auto`` goes on with it.

    Raises:
        UserError: the directory holds a run and ``resume`` is ``never``.
    """

    def __init__(self, path: str | Path, resume: str) -> None:
        self.path = Path(path)
        if resume not in ("never", "auto"):
            raise UserError(f"resume is {resume!r}: allowed are never and auto")
        self._resume = resume
        self.continued = self._holds_a_run()
        self.begun = False  # set by the run before its first step

    def _holds_a_run(self) -> bool:
        there = (self.path / MANIFEST).exists()
        if (
            there and self._resume == "never" and is_first_process()
        ):  # the others see what it has just written
            raise UserError(
                f"run_dir {self.path} already holds a run: add resume=auto to resume it, or give another run_dir"
            )
        return there

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Make the folders, and keep other runs out of them while the body runs.

        Raises:
            UserError: they cannot be made or written to, or another run uses them.
        """
        created = self._create()
        if not is_first_process():
            yield
            return
        with hold(self.path):
            self.continued = self._holds_a_run()  # another one may have ended in the meantime
            try:
                yield
            except BaseException as error:
                refused = isinstance(error, ValueError) and self._only_described()
                if not self.continued and (refused or not self.begun):
                    self._remove(created)
                raise

    def _only_described(self) -> bool:
        """Whether the folder holds nothing but what describes the run: its first step was refused."""
        files = {path.name for path in self.path.rglob("*") if not path.is_dir()}
        return files <= {CONFIG, MANIFEST, LOCK}

    def _remove(self, created: Sequence[Path]) -> None:
        """Leave nothing of a run that has not begun."""
        for name in (CONFIG, MANIFEST, LOCK):
            (self.path / name).unlink(missing_ok=True)
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def _create(self) -> list[Path]:
        """Make the folders; returns those that were missing, outermost first."""
        folders = [*reversed(self.path.parents), self.path, self.checkpoints, self.pictures]
        missing = [folder for folder in folders if not folder.exists()]
        try:
            for folder in (self.path, self.checkpoints, self.pictures):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"can be written to")
            return missing
        except OSError as error:
            raise UserError(
                f"run_dir {self.path} cannot be written to ({error.strerror}): give another with run_dir=DIR"
            ) from error

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def describe(self, config: str, device: torch.device, seed: int) -> None:
        """Write ``config.yaml`` and ``manifest.json``; a resumed run adds to its manifest.

        Args:
            config: the resolved configuration as YAML.
            device: what it trains on.
            seed: of the run.
        """
        manifest_path = self.path / MANIFEST
        now, command = time.strftime("%Y-%m-%dT%H:%M:%S%z"), ["python", *sys.orig_argv[1:]]
        if self.continued:
            self._clear_orphans()
            manifest = read_json(manifest_path)
            resumed = {"at": now, "command": command, "revision": git_revision()}
            manifest.setdefault("resumed", []).append(resumed)
        else:
            manifest = {
                "started": now,
                "command": command,
                "revision": git_revision(),
                "versions": {name: package_version(name) for name in PACKAGES}
                | {"python": platform.python_version()},
                "platform": platform.platform(),
                "device": device_name(device),
                "seed": seed,
            }
            with atomic_write(self.path / CONFIG) as temporary:
                temporary.write_text(config)
        write_json(manifest_path, manifest)

    def _clear_orphans(self) -> None:
        """Remove what was being written when the run was killed."""
        for name in (CONFIG, MANIFEST, "metrics.csv", "metrics.json"):
            clear_orphans(self.path, name)
        for folder in (self.checkpoints, self.pictures, self.pictures / "last"):
            clear_orphans(folder)


def package_version(package: str) -> str | None:
    """Installed version of a package, or None.

    >>> package_version("torch") is None, package_version("no such package")
    (False, None)
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
