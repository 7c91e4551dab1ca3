"""Data sets that live in files: where the files are looked for, and where their prepared form is kept."""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, ClassVar

from scoreexp.core.streams import stream_seed
from scoreexp.data.cache import SUFFIX, Contents, prepared
from scoreexp.data.errors import DataError
from scoreexp.data.image_io import walk
from scoreexp.data.module import DataModule
from scoreexp.data.split import Split, SplitName
from scoreexp.system.untrusted import stays_inside

_MAX_BYTES = 64 << 20  # of a single file; FFHQ's largest have about 2 MiB


class FileCorpus(DataModule):
    """A DataModule over files below ``root``.

    >>> import tempfile
    >>> import numpy as np
    >>> from scoreexp.data.cache import Block
    >>> class Black(FileCorpus):
    ...     how_to_get = "any folder will do"
    ...     event_shape = (1, 8, 8)
    ...     def open_split(self, name):
    ...         block = Block(np.zeros((5, 1, 8, 8), np.uint8))
    ...         return self.prepared(f"black-{name}", "as published", lambda: Contents(5, iter([block])))
    >>> with tempfile.TemporaryDirectory() as root:
    ...     len(Black(root=root).split("train"))
    5

    Attributes:
        how_to_get: which files to put into ``root`` and where they come from; the end of an error message.
        downloadable: whether ``download=true`` can fetch them; ``root`` is then created if need be.
    """

    how_to_get: ClassVar[str]
    downloadable: ClassVar[bool] = False

    @property
    def folder(self) -> Path:
        """``root`` as a path.

        Raises:
            DataError: if it is not set or not a folder.
        """
        if self.root is None:
            raise DataError(f"data.root is not set: give the folder of the data set; {self.how_to_get}")
        if self.downloadable and self.download and not self.root.exists():
            self.root.mkdir(parents=True)
        if not self.root.is_dir():
            raise DataError(f"data.root={self.root} is not a folder: {self.how_to_get}")
        return self.root

    def prepared(
        self, name: str, recipe: str, contents: Callable[[], Contents], *, fingerprint: str | None = None
    ) -> Split:
        """The split of this name from its prepared file, which is made from ``contents`` if need be."""
        cache = self.cache or self.folder / ".scoreexp-cache"
        skip = self.on_bad_image == "skip"
        return prepared(
            cache / f"{name}{SUFFIX}", recipe, contents, fingerprint=fingerprint, allow_skipped=skip
        )

    def find(self, *candidates: str) -> Path | None:
        """The first of ``candidates`` (paths below ``root``) that exists."""
        if self.root is None:
            return None
        return next((self.root / name for name in candidates if (self.root / name).exists()), None)


def part_of(files: Sequence[Path], split: SplitName, val_fraction: float, test_fraction: float) -> list[Path]:
    """The files of a split, by the hash of their names; of few files validation and testing have one each, or the same one.

    >>> files = [Path(f"{n}.npy") for n in range(12)]
    >>> [len(part_of(files, name, 0.1, 0.1)) for name in ("train", "val", "test")]
    [10, 1, 1]

    Args:
        files: of the whole data set.
        split: which part.
        val_fraction: share of the files.
        test_fraction: share of the files.
    """
    ordered = sorted(files, key=lambda path: stream_seed("split", path.name))
    tests = round(test_fraction * len(files))
    vals = max(1, round(val_fraction * len(files)))
    parts = {
        "test": ordered[:tests] or ordered[:vals],
        "val": ordered[tests : tests + vals],
        "train": ordered[tests + vals :],
    }
    return parts[split]


class FileTree:
    """Files below a folder or in a zip archive, read alike.

    A top folder of the archive's or folder's own name is left out of the names, so that all give the same ones.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "faces.zip")
    ...     with zipfile.ZipFile(path, "w") as archive:
    ...         archive.writestr("faces/1.txt", "smiles")
    ...     FileTree(path).names(), FileTree(path).read("1.txt")
    (['1.txt'], b'smiles')

    Args:
        path: the folder or archive.

    Raises:
        DataError: if the archive is something else, or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        if path.is_dir():
            nested = path / path.name
            self.path = nested if nested.is_dir() else path
            return
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            with open(path, "rb") as file:
                is_page = file.read(64).lstrip().startswith(b"<")
            page = " but a web page: the host refused the download" if is_page else ""
            raise DataError(f"{path} is not a whole zip archive{page}; download it again") from error
        except Exception as error:  # zipfile raises a dozen types for a damaged directory
            raise DataError(f"{path} is not a whole zip archive; download it again") from error
        outside = next((name for name in self._archive.namelist() if not stays_inside(name)), None)
        if outside is not None:
            raise DataError(f"{path} holds {outside!r}, a path outside it: do not use it, download it again")
        files = [member for member in self._archive.namelist() if not member.endswith("/")]
        self._members = {member.removeprefix(f"{path.stem}/"): member for member in files}

    def names(self) -> list[str]:
        """Paths of all files, with forward slashes, relative to the top."""
        if self._archive is not None:
            return list(self._members)
        return [path.relative_to(self.path).as_posix() for path in walk(self.path)]

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: if it is missing, cut short or has a wrong checksum.
        """
        try:
            if not stays_inside(name):
                raise ValueError("a path outside it")
            if self._archive is None:
                return self._read(open(self.path / name, "rb"), os.stat(self.path / name).st_size)
            member = self._archive.getinfo(self._members[name])
            return self._read(self._archive.open(member), member.file_size)
        except KeyError as error:
            raise DataError(f"{name} is missing in {self.path}: download the archive again") from error
        except Exception as error:  # zipfile raises a dozen types for damage, encryption and odd compression
            raise DataError(
                f"{name} in {self.path} cannot be read ({error}): download or unpack it again"
            ) from error

    @staticmethod
    def _read(opened: IO[bytes], size: int) -> bytes:
        """``size`` bytes and no more, whatever a compressed file unpacks to."""
        with opened as file:
            if size > _MAX_BYTES:
                raise ValueError(f"{size} bytes, more than any image of a data set has")
            return file.read(size)
