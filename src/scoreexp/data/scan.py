"""Files of measured values, whatever library reads them: pages in their own units, to [0, 1] and back.

A page is a slice of a volume, a frame of a film or a band of a cube. Stored values ``s`` mean ``slope s + intercept`` in
the unit of the file. They become ``(s - low) / (high - low)``; on the way back results are rounded to the type of the file
and stay within ``[low, high]``. Values that are no measurement (padding, NaN) and those outside of a window that was
asked for are kept as they were; for the denoiser the nearest measured value of the page takes their place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt

from scoreexp.data.image_file import MAX_PIXELS, ImageError
from scoreexp.data.image_writing import check_place
from scoreexp.system.atomic import atomic_write

MAX_VALUES = 10 * MAX_PIXELS  # of all pages
LARGEST_UNIT = 10.0  # floating point values up to here, with a mean in [0, 1], are in [0, 1] apart from noise


@dataclass(frozen=True)
class Scan:
    """The pages of one file.

    >>> scan = Scan(Path("a.npy"), np.array([[[[-10], [30]]]], np.int16), bytes).between(-10, 30)
    >>> scan.page(0)[..., 0]
    array([[0., 1.]], dtype=float32)
    >>> scan.stored(np.float32([[[[0.26], [2.0]]]]))[..., 0]
    array([[[ 0, 30]]], dtype=int16)

    Args:
        path: of the file.
        values: ``[N, H, W, C]`` as stored, C = 1 (gray) or 3 (RGB).
        encode: the bytes of the file with other stored values ``[N, H, W, C]``.
        measured: which values are measurements, for stored ones; None: all that are finite.
        slope, intercept: of the unit, ``slope s + intercept``.
        unit: its name, empty where the file does not say.
        low, high: the stored values that become 0 and 1.
        windowed: whether values outside of ``low`` and ``high`` are kept as they were.
    """

    path: Path
    values: np.ndarray
    encode: Callable[[np.ndarray], bytes]
    measured: Callable[[np.ndarray], np.ndarray] | None = None
    slope: float = 1.0
    intercept: float = 0.0
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    windowed: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def between(self, low: float, high: float) -> "Scan":
        """The scan with other stored values that become 0 and 1."""
        return replace(self, low=float(low), high=float(high))

    def spanned(self, span: tuple[float, float] | None, window: Sequence[float] | None) -> "Scan":
        """The scan between the values of a window in its unit, or of ``span`` as stored, or else its extremes.

        Raises:
            ImageError: the window is empty, nothing lies in it, or all values are equal.
        """
        if window is not None:
            if len(window) != 2 or not window[0] < window[1]:
                raise ImageError(
                    f"window={list(window)}: give two values in {self.unit or 'the units of the file'}, the smaller first"
                )
            low, high = sorted((value - self.intercept) / self.slope for value in window)
            if self.values.dtype.kind != "f":
                low, high = np.ceil(low), np.floor(high)
            found = replace(self.between(low, high), windowed=True)
            if not (low < high and any(found.taken(page).any() for page in self.values)):
                extremes = " to ".join(f"{value:g}" for value in self.units(*self.extremes()))
                raise ImageError(f"window={list(window)} holds no value of {self.path}: it has {extremes}")
            return found
        low, high = span or self.extremes()
        if not low < high:
            raise ImageError(f"{self.path} has one value only, {low:g}: there is nothing to denoise")
        return self.between(low, high)

    def units(self, *stored: float) -> tuple[float, ...]:
        """Stored values in the unit of the file."""
        return tuple(self.slope * value + self.intercept for value in stored)

    def extremes(self) -> tuple[float, float]:
        """Least and greatest measured value, as stored.

        Raises:
            ImageError: there is none.
        """
        parts = [page[mask] for page in self.values if (mask := self._measured(page)).any()]
        if not parts:
            raise ImageError(f"{self.path} holds no measured value: all are padding or not finite")
        return min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)

    def taken(self, page: np.ndarray) -> np.ndarray:
        """Which stored values ``[H, W, C]`` are denoised; the others are kept."""
        mask = self._measured(page)
        return mask & (page >= self.low) & (page <= self.high) if self.windowed else mask

    def page(self, number: int) -> np.ndarray:
        """A page ``[H, W, C]`` in [0, 1], float32, without gaps."""
        page = self.values[number]
        mask = self._measured(page)
        if not mask.all() and mask.any():
            where = distance_transform_edt(~mask, return_distances=False, return_indices=True)
            page = page[tuple(where)]
        elif not mask.any():
            page = np.full_like(page, self.low)
        unit = (page.astype(np.float64) - self.low) / (self.high - self.low)
        return (unit.clip(0, 1) if self.windowed else unit).astype(np.float32)

    def stored(self, pages: np.ndarray) -> np.ndarray:
        """Pages ``[N, H, W, C]`` in [0, 1] as they are stored; values that are kept, and where a page is NaN, as they
        were.
        """
        made = np.empty_like(self.values)
        for page, before, after in zip(pages, self.values, made, strict=True):
            taken = self.taken(before) & ~np.isnan(page)
            value = self.low + (self.high - self.low) * page[taken].astype(np.float64).clip(0, 1)
            value = value if made.dtype.kind == "f" else np.rint(value)
            after[:] = before
            after[taken] = value.clip(self.low, self.high).astype(made.dtype)
        return made

    def write(self, path: Path, pages: np.ndarray, *, overwrite: bool = False) -> None:
        """Write pages ``[N, H, W, C]`` in [0, 1] as a file of the same format, whole or not at all.

        Raises:
            ImageError: the place is taken or cannot be written to.
        """
        check_place(path, overwrite=overwrite)
        data = self.encode(self.stored(pages))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(data)

    def _measured(self, page: np.ndarray) -> np.ndarray:
        finite = np.isfinite(page) if page.dtype.kind == "f" else np.ones(page.shape, bool)
        return finite if self.measured is None else finite & self.measured(page)


def require_size(path: Path, shape: Sequence[int]) -> None:
    """Refuse pages ``[N, H, W, C]`` for which no memory should be taken.

    Raises:
        ImageError: a side is 0, or there are too many pixels.
    """
    total = 1
    for length in shape:
        total *= int(length)
    if min(shape) < 1 or total > MAX_VALUES or shape[1] * shape[2] > MAX_PIXELS:
        raise ImageError(
            f"{path} holds {' x '.join(map(str, shape))} values (pages, rows, columns, channels); 1 to {MAX_VALUES} are "
            f"allowed, {MAX_PIXELS} pixels a page: crop it first"
        )
