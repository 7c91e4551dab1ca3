"""CelebA: 202,599 aligned photographs of faces, 178 x 218.

Papers crop them differently, and their FID values differ for that reason alone, so a crop is named after a
paper that uses it. All are followed by antialiased bilinear resizing, as in those papers.

Reference: Deep learning face attributes in the wild, Z. Liu, P. Luo, X. Wang, X. Tang, 2015,
https://arxiv.org/abs/1411.7766
"""

from pathlib import Path
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

_WIDTH, _HEIGHT = 178, 218
_PARTITION = {"train": "0", "val": "1", "test": "2"}
# recipe: side of the square, its first row and column
_CROPS = {
    "score_sde_crop140": (140, 39, 19),
    "vae_crop148": (148, 35, 15),
    "dcgan_crop108": (108, 55, 35),
    "ddim_crop128": (128, 57, 25),
}


class CelebA(FileCorpus):
    """CelebA from ``img_align_celeba.zip`` or its folder, with ``list_eval_partition.txt``.

    >>> CelebA(root="data/celeba", size=32, recipe="ddim_crop128").event_shape
    (3, 32, 32)

    Args:
        size: side of the images after resizing, in pixels; at most the side of the crop.
        recipe: ``score_sde_crop140`` is the central 140 x 140 (NCSN, https://arxiv.org/abs/1907.05600;
            score_sde, https://arxiv.org/abs/2011.13456), ``vae_crop148`` the central 148 x 148 (the usual
            crop of autoencoder papers), ``dcgan_crop108`` the central 108 x 108 (DCGAN,
            https://arxiv.org/abs/1511.06434), ``ddim_crop128`` the 128 x 128 round row 121, column 89
            (progressive GAN, https://arxiv.org/abs/1710.10196; DDIM, https://arxiv.org/abs/2010.02502).
        common: the keys of ``DataModule``.
    """

    how_to_get = (
        "it must hold img_align_celeba.zip (or that folder unpacked) and list_eval_partition.txt; get both "
        "with a browser from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (no program can fetch them)"
    )

    @checked
    def __init__(
        self,
        *,
        size: PositiveInt = 64,
        recipe: Literal[
            "score_sde_crop140", "vae_crop148", "dcgan_crop108", "ddim_crop128"
        ] = "score_sde_crop140",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 8 <= size <= _CROPS[recipe][0]:
            raise DataError(f"data.size={size}: give 8..{_CROPS[recipe][0]} with data.recipe={recipe}")
        self.size = size
        self.recipe = recipe

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, self.size, self.size)

    def open_split(self, name: SplitName) -> Split:
        partition = self.find(*(f"{folder}list_eval_partition.txt" for folder in ("", "Eval/", "celeba/")))
        names = None if partition is None else _partition(partition, name)
        side, top, left = _CROPS[self.recipe]
        return self.prepared(
            f"celeba{self.size}-{self.recipe}-{name}",
            f"{side} x {side} from row {top}, column {left}; antialiased bilinear to {self.size}",
            lambda: self._contents(names),
            fingerprint=None if names is None else fingerprint(names),
        )

    def _contents(self, names: list[str] | None) -> Contents:
        source = self.find(
            *(f"{folder}img_align_celeba{end}" for end in ("", ".zip") for folder in ("", "Img/", "celeba/"))
        )
        if names is None or source is None:
            what = "list_eval_partition.txt" if names is None else "img_align_celeba.zip"
            raise DataError(f"no {what} in {self.folder}: {self.how_to_get}")
        tree = FileTree(source)
        blocks = picture_blocks(
            names, lambda name: self._picture(tree, name), skip_bad=self.on_bad_image == "skip"
        )
        return Contents(len(names), blocks)

    def _picture(self, tree: FileTree, name: str) -> np.ndarray:
        where = f"{name} in {tree.path}"
        pixels = decode_rgb(tree.read(name), where)
        if pixels.shape != (_HEIGHT, _WIDTH, 3):
            raise DataError(
                f"{where} has {pixels.shape[1]} x {pixels.shape[0]} pixels instead of {_WIDTH} x {_HEIGHT}: "
                "use the aligned and cropped images, img_align_celeba.zip"
            )
        side, top, left = _CROPS[self.recipe]
        square = pixels[top : top + side, left : left + side]
        return resized(square, self.size, "bilinear").transpose(2, 0, 1)


def _partition(path: Path, split: SplitName) -> list[str]:
    """File names of a split, from lines ``000001.jpg 0``."""
    names = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in _PARTITION.values():
            raise DataError(
                f"line {number} of {path} is {line[:40]!r}, not a file name and 0, 1 or 2: download it again"
            )
        if fields[1] == _PARTITION[split]:
            names.append(fields[0])
    if not names:
        raise DataError(f"{path} lists no image of the {split} split: download it again")
    return names
