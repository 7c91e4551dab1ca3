"""Crops of hyperspectral cubes and of volumes."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from scoreexp.core.checked import checked
from scoreexp.core.ranges import to_model
from scoreexp.core.streams import generator
from scoreexp.core.types import PositiveInt, Probability
from scoreexp.data.corpus import FileCorpus, part_of
from scoreexp.data.errors import DataError
from scoreexp.data.image_file import ImageError
from scoreexp.data.image_io import walk
from scoreexp.data.scan_io import read_scan
from scoreexp.data.split import Split, SplitName
from scoreexp.data.suffixes import SCANS, suffix_of

_SUFFIXES = (*SCANS, ".tif", ".tiff")


class Cubes(FileCorpus):
    """``crops`` random blocks ``[bands, size, size]`` of every cube below ``root``, or of the one file that ``root`` is.

    A cube is a file with several pages: an array ``[bands, H, W]`` of numpy, a TIFF file with a page for each band, a
    NIfTI or multi-frame DICOM volume. The extremes of a file become -1 and 1, or the values of ``window``. Blocks are a
    function of the file's name and ``crop_seed``; they are cut at the resolution of the file, which reducing would
    change the noise of, and held in memory as floating point values.

    Of several files each belongs to one split, by the hash of its name. Of a single cube the lowest rows are for
    validation and testing alike: ``val_fraction + test_fraction`` of them, but at least ``size``.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as root:
    ...     np.save(f"{root}/cube.npy", np.random.default_rng(0).random((6, 40, 24), np.float32))
    ...     data = Cubes(root=root, size=16, crops=5)
    ...     data.event_shape, [len(data.split(name)) for name in ("train", "val", "test")]
    ((6, 16, 16), [5, 5, 5])

    Args:
        size: side of the blocks in pixels.
        bands: successive bands of a block; null takes all, if all cubes have equally many.
        crops: blocks of each cube.
        window: two values in the units of the files that become -1 and 1; values outside are clipped. null: the extremes
            of each file.
        crop_seed: names the blocks.
        val_fraction, test_fraction: shares of the cubes, or of the rows of a single one.
        common: the keys of ``DataModule``.

    Raises:
        DataError: there is no cube, one has a single band or is smaller than a block, or they have different bands.
    """

    how_to_get = f"set data.root to a cube or a folder with cubes ({', '.join(_SUFFIXES)})"

    @checked
    def __init__(
        self,
        *,
        size: Annotated[int, (">=", 8)] = 32,
        bands: Annotated[int, (">=", 2)] | None = None,
        crops: PositiveInt = 64,
        window: tuple[float, float] | None = None,
        crop_seed: int = 0,
        val_fraction: Probability = 0.1,
        test_fraction: Probability = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not val_fraction + test_fraction < 1:
            raise DataError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: "
                "give shares that leave something for training"
            )
        self.size, self.bands, self.crops, self.window, self.crop_seed = size, bands, crops, window, crop_seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def event_shape(self) -> tuple[int, ...]:
        if self.bands is not None:
            return (self.bands, self.size, self.size)
        return self.split("train").values.shape[1:]

    def files(self) -> list[Path]:
        """All cubes, sorted; hidden files and folders are left out."""
        if self.root is not None and self.root.is_file():
            return [self.root]
        found = sorted(path for path in walk(self.folder) if suffix_of(path) in _SUFFIXES)
        if not found:
            raise DataError(f"no cube in {self.folder}: {self.how_to_get}")
        return found

    def open_split(self, name: SplitName) -> Split:
        files = self.files()
        chosen = self._share(files, name)
        blocks = [self._blocks(path, name if len(files) == 1 else None) for path in chosen]
        depths = sorted({block.shape[1] for block in blocks})
        if len(depths) > 1:
            raise DataError(
                f"the cubes have from {depths[0]} to {depths[-1]} bands: give data.bands={depths[0]} or fewer"
            )
        return Split(
            to_model(np.concatenate(blocks)),
            names=[path.name for path in chosen for _ in range(self.crops)],
        )

    def _share(self, files: list[Path], split: SplitName) -> list[Path]:
        """The cubes of a split."""
        if len(files) == 1:
            return files
        chosen = part_of(files, split, self.val_fraction, self.test_fraction)
        if not chosen:
            raise DataError(
                f"{len(files)} cubes are too few to hold some out: add cubes, or give data.root=FILE for one"
            )
        return chosen

    def _blocks(self, path: Path, part: SplitName | None) -> np.ndarray:
        """``[crops, bands, size, size]`` in [0, 1]; of a part of the rows where ``part`` says which."""
        try:
            scan = read_scan(path, window=self.window)
        except ImageError as error:
            raise DataError(str(error)) from error
        depth, height, width, channels = scan.values.shape
        bands = self.bands or depth
        if channels != 1 or depth < 2:
            what = "colours" if channels != 1 else "one band"
            raise DataError(
                f"{path} has {what}, and a cube has several bands of one value: use data=folder for images"
            )
        held_out = max(self.size, round((self.val_fraction + self.test_fraction) * height))
        top, rows = {None: (0, height), "train": (0, height - held_out)}.get(
            part, (height - held_out, held_out)
        )
        if rows < self.size or width < self.size or depth < bands:
            of_rows = "" if part is None else f", {held_out} rows of them held out for validation"
            raise DataError(
                f"{path} has {depth} bands of {height} x {width} pixels{of_rows}: give a smaller "
                f"data.size than {self.size}, and data.bands of at most {depth}"
            )
        cube = np.stack([scan.page(number)[..., 0] for number in range(depth)])
        draws = torch.rand(self.crops, 3, generator=generator(self.crop_seed, "cubes", path.name, part or ""))
        size = self.size
        z, y, x = (
            (draws.double().numpy() * [depth - bands + 1, rows - size + 1, width - size + 1]).astype(int).T
        )
        return np.stack(
            [cube[i : i + bands, j : j + size, k : k + size] for i, j, k in zip(z, top + y, x, strict=True)]
        )
