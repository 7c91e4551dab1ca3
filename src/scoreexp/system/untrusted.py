"""Files that others wrote, or that were damaged: sizes and names are checked before anything is believed.

What a file claims costs nothing to write, so nothing is unpacked or allocated on its word alone.
"""

import json
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from scoreexp.core.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none.

    Raises:
        UserError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): delete the damaged file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object: delete the damaged file")
    return content


def stays_inside(name: str) -> bool:
    """Whether a name in an archive or list stays below the folder it belongs to: neither absolute nor with ``..``."""
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def require_stored(path: Path) -> None:
    """Refuse a zip archive whose records take more room than the file itself.

    ``torch.save`` and ``numpy.savez`` store their records as they are, so a compressed record, or several of the
    same bytes, come from elsewhere and may unpack to any size.

    Raises:
        ValueError: records are compressed or overlap.
        zipfile.BadZipFile: it is no whole zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are compressed or overlap")
