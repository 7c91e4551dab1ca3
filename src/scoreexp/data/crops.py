"""Random crops of a folder of photographs."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from scoreexp.core.checked import checked
from scoreexp.core.ranges import to_uint8
from scoreexp.core.streams import generator
from scoreexp.core.types import PositiveInt, Probability
from scoreexp.data.cache import Block, Contents
from scoreexp.data.errors import DataError
from scoreexp.data.folder import Folder
from scoreexp.data.pictures import WhiteLevel, read_picture, with_channels
from scoreexp.data.resize import resized


class Crops(Folder):
    """``crops`` random squares of every image below ``root``, reduced to ``size`` by Pillow's antialiased Lanczos
    filter.

    The side of a square is ``size 2^u`` pixels, ``u`` uniform between ``log2`` of the two values of ``reduction``: one
    photograph shows its textures at many scales, and the traces of its compression and of its sensor are reduced away.
    Where an image is too small the reduction is limited to what it allows. Squares are a function of the file's name and
    ``crop_seed``; images, not squares, are shared out among the splits.

    >>> import tempfile
    >>> from scoreexp.data.image_io import write_image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for i in range(10):
    ...         write_image(f"{root}/{i}.png", np.full((40, 60, 3), i / 9))
    ...     data = Crops(root=root, size=8, crops=5)
    ...     data.event_shape, [len(data.split(name)) for name in ("train", "val", "test")]
    ((3, 8, 8), [35, 10, 5])

    Args:
        size: side of the samples in pixels.
        channels: 3 for colour, 1 for grey (Rec. 601 luma).
        crops: squares of each image.
        reduction: smallest and largest reduction, each at least 1.
        crop_seed: names the squares.
        val_fraction, test_fraction, white_level: as for ``Folder``.
        common: the keys of ``DataModule``.

    Raises:
        DataError: if an image is smaller than ``size``, or the folder has too few images.
        ValueError: if a value is outside its domain.
    """

    size: int
    channels: Literal[1, 3]

    @checked
    def __init__(
        self,
        *,
        size: Annotated[int, (">=", 8)] = 64,
        channels: Literal[1, 3] = 3,
        crops: PositiveInt = 256,
        reduction: tuple[Annotated[float, (">=", 1)], Annotated[float, (">=", 1)]] = (1.5, 4.0),
        crop_seed: int = 0,
        val_fraction: Probability = 0.1,
        test_fraction: Probability = 0.1,
        white_level: WhiteLevel | None = None,
        **common: Any,
    ) -> None:
        if reduction[0] > reduction[1]:
            raise ValueError(f"reduction={list(reduction)}: give the smaller of the two first")
        super().__init__(
            size=size,
            channels=channels,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            white_level=white_level,
            **common,
        )
        self.crops, self.reduction, self.crop_seed = crops, reduction, crop_seed

    def _wanted(self) -> str:
        low, high = self.reduction
        squares = f"{self.crops} squares (seed {self.crop_seed}) reduced by {low:g} to {high:g}"
        return f"{super()._wanted()}, {squares}"

    def _contents(self, names: list[str], files: list[str]) -> Contents:
        return Contents(len(names) * self.crops, (self._block(name) for name in names))

    def _block(self, name: str) -> Block:
        try:
            return Block(self._squares(name), names=(name,) * self.crops)
        except DataError as error:
            if self.on_bad_image != "skip":
                raise DataError(f"{error}; or set data.on_bad_image=skip") from error
            return Block(np.empty((0, 1, 1, 1), np.uint8), skipped=(str(error),))

    def _squares(self, name: str) -> np.ndarray:
        """The samples of one image, uint8 ``[crops, C, size, size]``."""
        path, size, channels = Path(self.folder, name), self.size, self.channels
        pixels = to_uint8(with_channels(read_picture(path, self.white_level), channels))
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        if shorter < size:
            raise DataError(
                f"{path} has {width} x {height} pixels, too few for data.size={size}: take it out"
            )
        low, high = (min(size * bound, shorter) for bound in self.reduction)
        stream = generator(self.crop_seed, "crops", name)
        squares = []
        for u, v, w in torch.rand(self.crops, 3, generator=stream, dtype=torch.float64).tolist():
            side = round(low * math.exp(u * math.log(high / low)))
            top, left = int(v * (height - side + 1)), int(w * (width - side + 1))
            squares.append(resized(pixels[top : top + side, left : left + side], size, "lanczos"))
        return np.stack(squares).transpose(0, 3, 1, 2)
