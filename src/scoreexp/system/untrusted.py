"""Files that others wrote, or that were damaged: sizes and names are checked before anything is believed.

What a file claims costs nothing to write, so nothing is unpacked or allocated on its word alone.
"""

import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath


def stays_inside(name: str) -> bool:
    """Whether a name in an archive or list stays below the folder it belongs to: neither absolute nor with ``..``.

    >>> stays_inside("faces/1.png"), stays_inside("../1.png"), stays_inside("/faces/1.png")
    (True, False, False)
    """
    return not any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))


def require_stored(path: Path) -> None:
    """Refuse a zip archive whose records take more room than the file itself.

    ``torch.save`` and ``numpy.savez`` store their records as they are, so a compressed record, or several of the
    same bytes, come from elsewhere and may unpack to any size.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with zipfile.ZipFile(Path(folder, "a.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
    ...         archive.writestr("zeros", bytes(10**6))
    ...     require_stored(Path(folder, "a.zip"))
    Traceback (most recent call last):
    ValueError: its records are compressed or overlap

    Raises:
        ValueError: records are compressed or overlap.
        zipfile.BadZipFile: it is no whole zip archive.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError("its records are compressed or overlap")
