"""Flickr-Faces-HQ: 70,000 aligned photographs of faces.

Numbers 0 to 59,999 are for training, the rest for validation and testing, as usual.

Reference: A style-based generator architecture for generative adversarial networks, T. Karras, S. Laine,
T. Aila, 2019, https://arxiv.org/abs/1812.04948
"""

import re
from typing import Any, Literal

import numpy as np

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.data.cache import Contents
from scoreexp.data.corpus import FileCorpus, FileTree
from scoreexp.data.errors import DataError
from scoreexp.data.pictures import decode_rgb, fingerprint, picture_blocks
from scoreexp.data.resize import resized
from scoreexp.data.split import Split, SplitName

_TRAINING = 60_000
_SIDES = {"thumbnails128x128": 128, "images1024x1024": 1024}
_GIGABYTES = {"thumbnails128x128": 2, "images1024x1024": 90}


class FFHQ(FileCorpus):
    """FFHQ from a folder or zip archive of numbered PNG files, resized by Pillow's Lanczos filter.

    >>> FFHQ(root="data/ffhq", size=256, source="images1024x1024").event_shape
    (3, 256, 256)

    Args:
        size: side of the images after resizing, in pixels; at most that of the source.
        source: which of the published versions to start from; ``<root>/<source>``, ``<root>/<source>.zip`` or
            ``<root>`` itself holds the files.
        common: the keys of ``DataModule``.
    """

    @checked
    def __init__(
        self,
        *,
        size: PositiveInt = 64,
        source: Literal["thumbnails128x128", "images1024x1024"] = "thumbnails128x128",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 8 <= size <= _SIDES[source]:
            larger = next((name for name, side in _SIDES.items() if 8 <= size <= side), None)
            instead = "" if larger is None else f", or set data.source={larger}"
            raise DataError(f"data.size={size}: give 8..{_SIDES[source]} with data.source={source}{instead}")
        self.size = size
        self.source = source

    @property
    def how_to_get(self) -> str:  # type: ignore[override]
        """What ``root`` must hold, and the other version if it has enough pixels too."""
        others = [name for name, side in _SIDES.items() if name != self.source and side >= self.size]
        also = "".join(f"; or set data.source={name}, {_GIGABYTES[name]} GB" for name in others)
        return (
            f"it must hold the folder or zip archive {self.source} ({_GIGABYTES[self.source]} GB{also}) from "
            "https://github.com/NVlabs/ffhq-dataset, whose host needs a browser or that page's own script"
        )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def open_split(self, name: SplitName) -> Split:
        part = "train" if name == "train" else "test"
        path = self.find(self.source, f"{self.source}.zip")
        if path is None and self.root is not None and self.root.name == self.source:
            path = self.root
        tree = None if path is None else FileTree(path)
        names = [] if tree is None else _numbered(tree, part)
        return self.prepared(
            f"ffhq{self.size}-{self.source}-{part}",
            f"{self.source}; antialiased lanczos to {self.size}",
            lambda: self._contents(tree, names, part),
            fingerprint=fingerprint(names) if names else None,
        )

    def _contents(self, tree: FileTree | None, names: list[str], part: str) -> Contents:
        if tree is None:
            raise DataError(f"no {self.source} in {self.folder}: {self.how_to_get}")
        if not names:
            raise DataError(f"{tree.path} holds no PNG file of the {part} numbers: {self.how_to_get}")
        blocks = picture_blocks(
            names, lambda name: self._picture(tree, name), skip_bad=self.on_bad_image == "skip"
        )
        return Contents(len(names), blocks)

    def _picture(self, tree: FileTree, name: str) -> np.ndarray:
        pixels = decode_rgb(tree.read(name), f"{name} in {tree.path}")
        side = _SIDES[self.source]
        if pixels.shape != (side, side, 3):
            raise DataError(
                f"{name} in {tree.path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, "
                f"not {side} x {side}: set data.source to the version that is there"
            )
        return resized(pixels, self.size, "lanczos").transpose(2, 0, 1)


def _numbered(tree: FileTree, part: str) -> list[str]:
    """PNG files of a split, by the number at the end of their name."""
    numbers = {name: re.search(r"(\d+)\.png$", name) for name in tree.names()}
    numbered = sorted((int(match[1]), name) for name, match in numbers.items() if match)
    return [name for number, name in numbered if (number < _TRAINING) == (part == "train")]
