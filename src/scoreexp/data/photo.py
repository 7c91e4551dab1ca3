"""A few photographs, or the user's own, for single-image work without a download.

The bundled images are those inside the installed scikit-image package. With one image, validation uses
the training image: it measures how well the image has been learnt (memorised), as the single-image
experiments of the score-model literature do, not generalisation.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from scoreexp.core.checked import checked
from scoreexp.core.ranges import to_model
from scoreexp.core.streams import generator
from scoreexp.core.types import PositiveInt
from scoreexp.data.errors import DataError
from scoreexp.data.image_io import few_bits
from scoreexp.data.module import DataModule
from scoreexp.data.pictures import WhiteLevel, read_picture, with_channels
from scoreexp.data.resize import centre_square, resized
from scoreexp.data.split import Split, SplitName

_COLOUR = (
    "astronaut",
    "cat",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "ihc",
    "motorcycle_left",
    "retina",
    "rocket",
)
_GREY = ("brick", "camera", "cell", "coins", "grass", "gravel", "moon", "page")


def photographs() -> dict[str, Path]:
    """The photographs in the installed scikit-image, by name.

    >>> sorted(photographs())[:3]
    ['astronaut', 'brick', 'camera']
    """
    package = importlib.util.find_spec("skimage")
    folders = package.submodule_search_locations if package is not None else None
    if not folders:
        raise DataError(
            "data=photo needs scikit-image for its images: pip install scikit-image, or set data.path"
        )
    files = sorted((Path(folders[0]) / "data").iterdir())
    return {
        file.stem: file for file in files if file.stem in _COLOUR + _GREY and file.suffix in (".png", ".jpg")
    }


class Photo(DataModule):
    """Square crops of one or more photographs, resized to ``size`` by Pillow's antialiased Lanczos filter.

    >>> data = Photo(name="camera", size=16, channels=1, crop="random", crops=4)
    >>> batch = next(iter(data.val_dataloader()))
    >>> batch.x.shape
    torch.Size([4, 1, 16, 16])

    Args:
        name: bundled photograph, or a list of them (see ``photographs``); null is the astronaut, or ``path``.
        path: the user's own image instead.
        size: side of the samples in pixels, at least 8.
        channels: 3 for colour, 1 for grey (Rec. 601 luma).
        crop: ``center`` is the central square, ``random`` draws ``crops`` squares from each image.
        crops: number of random crops per image.
        crop_side: side of a crop before resizing, in pixels of the image, at least ``size``; null is the
            whole shorter side for ``center`` and half of it (or ``size``, if larger) for ``random``.
        crop_seed: names the random crops.
        white_level: value of white in files of 16 bits; null is 65535. 4095 is right for cameras of 12 bits.

        common: the keys of ``DataModule``.

    Validation and test use the training images.

    Raises:
        DataError: if the image is unknown, unreadable or smaller than the crop.
        ValueError: if a value is outside its domain.
    """

    @checked
    def __init__(
        self,
        *,
        name: str | Sequence[str] | None = None,
        path: str | None = None,
        size: Annotated[int, (">=", 8)] = 32,
        channels: Literal[1, 3] = 3,
        crop: Literal["center", "random"] = "center",
        crops: PositiveInt = 16,
        crop_side: PositiveInt | None = None,
        crop_seed: int = 0,
        white_level: WhiteLevel | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if name is not None and path is not None:
            raise DataError(
                f"data.name={name} is a bundled image and data.path={path} your own: give one of them"
            )
        if crop_side is not None and crop_side < size:
            raise DataError(
                f"data.crop_side={crop_side} is smaller than data.size={size}: crops are never enlarged"
            )
        name = "astronaut" if name is None else name
        self.picture_names = (name,) if isinstance(name, str) else tuple(name)
        self.path = None if path is None else Path(path).expanduser()
        self.size = size
        self.channels = channels
        self.crop = crop
        self.crops = crops
        self.crop_side = crop_side
        self.crop_seed = crop_seed
        self.white_level = white_level

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.channels, self.size, self.size)

    def open_split(self, name: SplitName) -> Split:
        if name != "train":
            trained = self.split("train")
            positions = self.train_positions
            return Split(trained.values[positions], names=[trained.names[position] for position in positions])
        crops: list[np.ndarray] = []
        names: list[str] = []
        for file in self._files():
            pixels = with_channels(read_picture(file, self.white_level), self.channels)
            for number, square in enumerate(self._squares(pixels, file)):
                crops.append(resized(square, self.size, "lanczos").transpose(2, 0, 1))
                names.append(file.stem if self.crop == "center" else f"{file.stem}-{number}")
        return Split(to_model(torch.from_numpy(np.stack(crops))).numpy(), names=names)

    def warnings(self) -> list[str]:
        """Own images of 16 bits that seem to hold fewer."""
        pictures = [] if self.path is None else [read_picture(self.path, self.white_level)]
        doubts = [doubt for picture in pictures if (doubt := few_bits(picture)) is not None]
        return [f"{self.path}: {doubt} Then set data.white_level=4095" for doubt in doubts]

    def _files(self) -> list[Path]:
        if self.path is not None:
            return [self.path]
        known = photographs()
        for name in self.picture_names:
            if name not in known:
                raise DataError(
                    f"data.name={name} is not a bundled photograph: choose from {', '.join(known)}"
                )
        return [known[name] for name in self.picture_names]

    def _squares(self, pixels: np.ndarray, file: Path) -> list[np.ndarray]:
        height, width = pixels.shape[:2]
        shorter = min(height, width)
        side = self.crop_side or (shorter if self.crop == "center" else max(self.size, shorter // 2))
        if max(side, self.size) > shorter:
            key = "size" if self.size > shorter else "crop_side"
            raise DataError(
                f"{file} has {width} x {height} pixels, too few for data.{key}={max(side, self.size)}: "
                f"give at most {shorter}"
            )
        if self.crop == "center":
            return [centre_square(pixels, side)]
        stream = generator(self.crop_seed, "crop", file.stem)
        squares = []
        for _ in range(self.crops):
            top = int(torch.randint(height - side + 1, (), generator=stream))
            left = int(torch.randint(width - side + 1, (), generator=stream))
            squares.append(pixels[top : top + side, left : left + side])
        return squares
