"""Any folder of images.

Whatever ``scoreexp.data.image_io`` reads: grey, palette, RGB, with or without transparency, 8 and 16 bits,
turned upright by their camera data. Transparent images are put on white; deeper ones are rounded to 8
bits, the depth of the prepared file.
"""

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from scoreexp.core.checked import checked
from scoreexp.core.ranges import to_uint8
from scoreexp.core.streams import stream_seed
from scoreexp.core.types import Probability
from scoreexp.data.cache import Contents
from scoreexp.data.corpus import FileCorpus
from scoreexp.data.errors import DataError
from scoreexp.data.image_io import READABLE, ImageError, few_bits, read_image, read_kind, walk
from scoreexp.data.pictures import (
    WhiteLevel,
    fingerprint,
    picture_blocks,
    read_picture,
    with_channels,
)
from scoreexp.data.resize import centre_square, resized
from scoreexp.data.split import Split, SplitName

_LOOKED_AT = 64  # images of 16 bits that are decoded for a warning


class Survey(NamedTuple):
    """How often each size (width, height), each of Pillow's modes and each number of colour channels occurs."""

    sizes: Counter[tuple[int, int]]
    modes: Counter[str]
    channels: Counter[int]


class Folder(FileCorpus):
    """Images below ``root``, at any depth: their central square, resized by Pillow's antialiased Lanczos
    filter.

    Splits go by the hash of a file's path below ``root``, so an image keeps its split when others are
    added. The prepared file belongs to the files' names, sizes and times: a changed folder is prepared
    anew.

    >>> import tempfile
    >>> from scoreexp.data.image_io import write_image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for i in range(10):
    ...         write_image(f"{root}/{i}.png", np.full((12, 16, 3), i / 9))
    ...     data = Folder(root=root, size=8)
    ...     data.event_shape, [len(data.split(name)) for name in ("train", "val", "test")]
    ((3, 8, 8), [7, 2, 1])

    Args:
        size: side of the images in pixels; null takes the images as they are, if they all have the same
            size.
        channels: 1 (grey) or 3 (colour); null is 1 if all images are grey, otherwise 3.
        val_fraction: share of the images for validation, at least one image; 0 validates on training
            images.
        test_fraction: share for testing, at least one image; 0 tests on the validation images.
        white_level: value of white in files of 16 bits; null is 65535. 4095 is right for cameras of 12 bits.
        common: the keys of ``DataModule``.

    Raises:
        DataError: if the folder has too few images, or they have several sizes and ``size`` is null.
    """

    how_to_get = f"set data.root to a folder with images ({', '.join(READABLE)}), nested as you like"

    @checked
    def __init__(
        self,
        *,
        size: Annotated[int, (">=", 8)] | None = None,
        channels: Literal[1, 3] | None = None,
        val_fraction: Probability = 0.1,
        test_fraction: Probability = 0.1,
        white_level: WhiteLevel | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not val_fraction + test_fraction < 1:
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: "
                "give shares that leave some images for training"
            )
        self.size = size
        self.channels = channels
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.white_level = white_level
        self._files: list[str] | None = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        if self.size is not None and self.channels is not None:
            return (self.channels, self.size, self.size)
        return self.split("train").values.shape[1:]

    def open_split(self, name: SplitName) -> Split:
        files = self.files()
        names = self._share(files, name)
        wanted = self._wanted()
        sources = [(self.folder / file).stat() for file in files]
        state = fingerprint((file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, sources))
        shares = f"{self.val_fraction:g} and {self.test_fraction:g}"
        key = fingerprint([self.folder.resolve(), state, wanted, shares])
        return self.prepared(
            f"folder-{key}-{name}",
            f"{wanted}, antialiased lanczos; shares {shares}",
            lambda: self._contents(names, files),
            fingerprint=state,
        )

    def _wanted(self) -> str:
        """What is taken of an image, in words that name the prepared file."""
        white = "" if self.white_level is None else f", white at {self.white_level}"
        return f"central square of size and channels {self.size or 'own'}x{self.channels or 'own'}{white}"

    def files(self) -> list[str]:
        """Paths of all images below ``root``, sorted; hidden files and folders are left out."""
        if self._files is None:
            pictures = (path for path in walk(self.folder) if path.suffix.lower() in READABLE)
            self._files = sorted(path.relative_to(self.folder).as_posix() for path in pictures)
            if not self._files:
                raise DataError(f"no image in {self.folder}: {self.how_to_get}")
        return self._files

    def _share(self, files: list[str], split: SplitName) -> list[str]:
        place = {file: stream_seed("split", file) / 2**63 for file in files}
        ordered = sorted(files, key=lambda file: place[file])
        tests = _count(sum(place[file] < self.test_fraction for file in files), self.test_fraction)
        held_out = sum(place[file] < self.test_fraction + self.val_fraction for file in files)
        vals = _count(held_out - tests, self.val_fraction)
        if tests + vals >= len(files):
            raise DataError(
                f"{len(files)} image(s) in {self.folder} are too few to hold some out: add images, "
                "or set data.val_fraction=0 data.test_fraction=0 (or data=photo data.path=FILE for one only)"
            )
        shares = {
            "test": ordered[:tests],
            "val": ordered[tests : tests + vals],
            "train": ordered[tests + vals :],
        }
        if split == "test" and not tests:
            return self._share(files, "val")
        return sorted(shares[split] or shares["train"])

    def _contents(self, names: list[str], files: list[str]) -> Contents:
        size, channels = self.size, self.channels
        if size is None or channels is None:
            survey = self.survey()
            channels = channels or (3 if survey.channels[3] else 1)
            if size is None and len(survey.sizes) > 1:
                (common, count), *_ = survey.sizes.most_common(1)
                raise DataError(
                    f"the images in {self.folder} have {len(survey.sizes)} sizes "
                    f"({count} of {len(files)} are {common[0]} x {common[1]}): give data.size"
                )
        blocks = picture_blocks(
            names,
            lambda name: _decode(self.folder / name, size, channels, self.white_level),
            skip_bad=self.on_bad_image == "skip",
        )
        return Contents(len(names), blocks)

    def survey(self) -> Survey:
        """Sizes and colour modes of all images, from their headers alone; unreadable files are left out."""
        survey = Survey(Counter(), Counter(), Counter())
        for file in self.files():
            with suppress(ImageError):
                kind = read_kind(self.folder / file)
                survey.sizes[kind.width, kind.height] += 1
                survey.modes[kind.mode] += 1
                survey.channels[kind.channels] += 1
        return survey

    def warnings(self) -> list[str]:
        """Of the first images of 16 bits, those that seem to hold fewer."""
        found, looked_at = [], 0
        for file in self.files():
            with suppress(ImageError):
                if looked_at < _LOOKED_AT and read_kind(self.folder / file).bit_depth == 16:
                    looked_at += 1
                    doubt = few_bits(read_image(self.folder / file, white_level=self.white_level))
                    found += [] if doubt is None else [f"{file}: {doubt} Then set data.white_level=4095"]
        return found


def _count(hashed: int, fraction: float) -> int:
    return max(1, hashed) if fraction > 0 else 0


def _decode(path: Path, size: int | None, channels: int, white_level: int | None) -> np.ndarray:
    pixels = to_uint8(with_channels(read_picture(path, white_level), channels))
    if size is not None:
        shorter = min(pixels.shape[:2])
        if shorter < size:
            raise DataError(
                f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, too few for data.size={size}: "
                f"give at most {shorter}"
            )
        pixels = resized(centre_square(pixels), size, "lanczos")
    return pixels.transpose(2, 0, 1)
