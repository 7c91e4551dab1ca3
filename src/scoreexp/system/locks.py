"""One process at a time in a folder.

The lock is the operating system's, on a file ``.lock`` in the folder, so it ends with its process, however that ends. It is
the kind that forked children do not inherit (``fcntl.lockf``): a process that loads data may outlive the run by seconds.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from scoreexp.core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: folders are not guarded there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path, key: str = "run_dir") -> Iterator[None]:
    """Keep other processes out of ``folder`` while the body runs.

    Where the file system has no locks the body runs without.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with hold(Path(folder)):
    ...         os.listdir(folder)
    ['.lock']

    Args:
        folder: an existing folder.
        key: the setting that names the folder, for the message.

    Raises:
        UserError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{key} {folder} is in use by {holder}: wait until it has ended, or give another {key}"
            ) from None
        except OSError:
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
