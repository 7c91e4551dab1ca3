"""Where a checkpoint lies: what can be said of a path in no time, before torch is imported."""

import zipfile
from pathlib import Path

from scoreexp.bridge.recognise import recognised
from scoreexp.core.errors import UserError

NAMES = ("last.ckpt", "previous.ckpt", "best.ckpt")  # in a run's checkpoints/, in the order of trust
_ZIP = b"PK\x03\x04"  # how a zip archive begins


class CheckpointError(UserError, ValueError):
    """A checkpoint is missing, damaged, or not one of ours.

    >>> require_checkpoint("run/checkpoints/none.ckpt")
    Traceback (most recent call last):
    scoreexp.runs.checkpoint_path.CheckpointError: no checkpoint at run/checkpoints/none.ckpt: give a .ckpt file, ...
    """


def require_model_path(path: str | Path) -> Path:
    """``path``, if what lies there is a checkpoint of ours or a model that another library wrote.

    Raises:
        CheckpointError: as of ``require_checkpoint``.
        ForeignModelError: the file beside it that says what it is cannot be read.
    """
    return Path(path) if recognised(path) is not None else require_checkpoint(path)


def require_checkpoint(path: str | Path) -> Path:
    """``path``, if a file lies there that is a zip archive to its end.

    >>> require_checkpoint("https://host/best.ckpt")
    Traceback (most recent call last):
    scoreexp.runs.checkpoint_path.CheckpointError: https://host/best.ckpt is an address: download the checkpoint ...

    Raises:
        CheckpointError: it is an address, a folder, nothing or no archive; the message names checkpoints nearby.
    """
    if "://" in str(path):
        raise CheckpointError(f"{path} is an address: download the checkpoint and give the name of the file")
    path = Path(path)
    if path.is_dir():
        found = _in(path) or _in(path / "checkpoints")
        there = f"give one of its files: {', '.join(found)}" if found else "it holds no .ckpt file, give one"
        raise CheckpointError(f"{path} is a folder: {there}")
    if not path.is_file():
        found = _in(path.parent) if path.parent.is_dir() else []
        there = f"there are {', '.join(found)}" if found else "such as RUN_DIR/checkpoints/best.ckpt"
        raise CheckpointError(f"no checkpoint at {path}: give a .ckpt file, {there}")
    try:
        with path.open("rb") as file:
            begun = file.read(len(_ZIP)) == _ZIP
            if not zipfile.is_zipfile(file):
                what = (
                    "is truncated or damaged" if begun or not path.stat().st_size else "is not a checkpoint"
                )
                raise CheckpointError(
                    f"{path} cannot be read as a checkpoint (it {what}): {neighbours(path)}"
                )
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error.strerror})") from error
    return path


def neighbours(path: Path) -> str:
    """What to use instead of a checkpoint that cannot be read: others of the same run, if there are any.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "best.ckpt").touch()
    ...     neighbours(Path(folder, "last.ckpt"))
    'use best.ckpt beside it'
    """
    found = [name for name in NAMES if name != path.name and (path.parent / name).is_file()]
    return f"use {' or '.join(found)} beside it" if found else "use another checkpoint"


def _in(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.glob("*.ckpt") if file.is_file())[:4]
