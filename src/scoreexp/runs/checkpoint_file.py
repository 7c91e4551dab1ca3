"""Checkpoint files: written whole or not at all, read only if intact, plain data inside.

A checkpoint is Lightning's dictionary plus the entry ``"scoreexp"``: the format version and the plain configuration
from which the model is rebuilt. ``torch.save`` writes a zip archive with a CRC-32 of every record, which the reader here
verifies (``torch.load`` does not), so a torn or altered file is reported instead of being trained on.
"""

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from scoreexp.core.moves import with_current_names
from scoreexp.runs.checkpoint_path import NAMES, CheckpointError, neighbours, require_checkpoint
from scoreexp.system.atomic import atomic_write
from scoreexp.system.untrusted import require_stored

FORMAT = 1
_PROBE = 2**20  # bytes


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` so that ``path`` is either the whole new file or what it was before.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "checkpoints", "last.ckpt")
    ...     write_checkpoint({"state_dict": {}, "scoreexp": {"format": FORMAT, "config": {}}}, path)
    ...     read_checkpoint(path)["scoreexp"]["format"] == FORMAT
    True
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # torch does not say which error of the file system it met
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            refused = _refusal(temporary)
            raise OSError(refused, os.strerror(refused), str(path)) from error


def _refusal(path: Path) -> int:
    """The error that the file system has for writing more to ``path``; no space, where it has room again."""
    try:
        with path.open("ab") as file:
            file.write(bytes(_PROBE))
    except OSError as error:
        return error.errno or errno.ENOSPC
    return errno.ENOSPC


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read and verify a checkpoint, on the CPU, admitting tensors and plain data only.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"weights": torch.zeros(2)}, f"{folder}/other.ckpt")
    ...     read_checkpoint(f"{folder}/other.ckpt")
    Traceback (most recent call last):
    scoreexp.runs.checkpoint_path.CheckpointError: ...other.ckpt was not written by scoreexp: ...

    Raises:
        CheckpointError: the file is missing, torn, altered, holds foreign objects, or was not written by scoreexp.
    """
    path = require_checkpoint(path)
    try:
        require_stored(path)
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            pickles = [archive.read(info) for info in archive.infolist() if info.filename.endswith(".pkl")]
        if damaged is not None:
            raise CheckpointError(
                f"{path} is damaged (record {damaged} fails its checksum): {neighbours(path)}"
            )
        if any(
            b"\nbytearray\n" in text for text in pickles
        ):  # torch makes one of any size that it is asked for
            raise CheckpointError(
                f"{path} holds a bytearray, which no checkpoint of scoreexp does: do not use it"
            )
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile raise a dozen types for a bad file
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}): {neighbours(path)}"
        ) from error
    if (
        not isinstance(checkpoint, dict)
        or "scoreexp" not in checkpoint
        or not isinstance(checkpoint.get("state_dict"), dict)
    ):
        raise CheckpointError(f"{path} was not written by scoreexp: give a .ckpt file from a run directory")
    found = checkpoint["scoreexp"].get("format") if isinstance(checkpoint["scoreexp"], dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}: this version reads format {FORMAT}; upgrade scoreexp"
        )
    if not isinstance(checkpoint["scoreexp"].get("config"), dict):
        raise CheckpointError(f"{path} holds no configuration: give a .ckpt file from a run directory")
    try:
        checkpoint["scoreexp"]["config"] = with_current_names(checkpoint["scoreexp"]["config"])
    except RecursionError as error:
        raise CheckpointError(
            f"{path} holds a configuration that is nested too deep: do not use it"
        ) from error
    return checkpoint


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run in ``folder``, and what was wrong with those that were passed over.

    ``best.ckpt`` counts only where others are damaged: a run that was killed before its first ``last.ckpt`` begins anew.

    >>> import tempfile
    >>> checkpoint = {"state_dict": {}, "scoreexp": {"format": FORMAT, "config": {}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_checkpoint(checkpoint, Path(folder, "previous.ckpt"))
    ...     Path(folder, "last.ckpt").touch()  # of a run that was killed
    ...     found, problems = newest_intact(Path(folder))
    >>> found.name, len(problems)
    ('previous.ckpt', 1)
    """
    problems: list[str] = []
    for name in NAMES:
        if (folder / name).exists() and (name != "best.ckpt" or problems):
            try:
                read_checkpoint(folder / name)
            except CheckpointError as error:
                problems.append(str(error))
            else:
                return folder / name, problems
    return None, problems
