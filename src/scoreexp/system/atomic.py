"""Files that are either the whole new content or untouched.

A crash, a full disk or Ctrl-C in the middle of writing leaves no half-written output.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from scoreexp.core.errors import UserError

_RANDOM_DIGITS = 12
_DISK_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class WriteError(OSError, UserError):
    """The disk is full, a quota or a limit on the size of files is reached, or the folder has become read-only."""

    def __str__(self) -> str:
        remedy = "make room there, or give a folder on another disk"
        if self.errno == errno.EFBIG:
            remedy = "raise the limit on the size of files (ulimit -f)"
        return f"cannot write {self.filename} ({self.strerror}): {remedy}; files that were there before are untouched"


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file that is written in the body where the disk refuses it.

    >>> try:
    ...     with naming("picture.png"):
    ...         raise OSError(errno.ENOSPC, "no space")
    ... except WriteError as error:
    ...     print(str(error)[:24])
    cannot write picture.png

    Raises:
        WriteError: instead of the body's OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_REFUSES or isinstance(error, WriteError):
            raise
        raise WriteError(error.errno, os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on leaving without an exception it becomes ``path``.

    The temporary file is hidden, lies in the same folder (a rename is atomic only within one file system) and
    keeps the suffix, for libraries that choose a format by it. Its data reach the disk before the rename. If
    the body raises, the temporary file is removed and whatever was at ``path`` stays as it was.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(Path(folder, "note.txt")) as temporary:
    ...         _ = temporary.write_text("whole or not at all")
    ...     os.listdir(folder)
    ['note.txt']

    Args:
        path: the file to write; its folder must exist. A symbolic link is followed: its target is replaced.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist, or the body wrote nothing.
        FileExistsError: ``path`` exists and is not a file, such as a folder or a device.
        WriteError: the disk is full or read-only.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(f"cannot write {path}: it exists and is not a file; give the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {path}: its folder does not exist; create {target.parent} first"
        )
    # The stem is shortened so that the temporary name stays below the usual limit of 255 bytes.
    temporary = target.with_name(
        f".{target.stem[:40]}.{secrets.token_hex(_RANDOM_DIGITS // 2)}{target.suffix}"
    )
    try:
        with naming(path):
            yield temporary
            if not temporary.exists():
                raise FileNotFoundError(f"cannot write {path}: nothing was written to the temporary file")
            _sync(temporary)
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened for syncing
        _sync(target.parent)


def clear_orphans(folder: Path, name: str = "*") -> None:
    """Remove what ``atomic_write`` left of files called ``name`` in ``folder`` when its process was killed.

    For the only process that writes these files; it would take another's file away from under its hands.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".note.0123456789ab.txt").touch()
    ...     clear_orphans(Path(folder), "note.txt")
    ...     os.listdir(folder)
    []
    """
    stem, suffix = os.path.splitext(name)
    for orphan in folder.glob(f".{stem[:40]}.{'[0-9a-f]' * _RANDOM_DIGITS}{suffix or '.*'}"):
        orphan.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    # Windows refuses to sync a descriptor that is open for reading only.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
