"""Figures of results: drawn from arrays, written to a file, never shown on a screen.

They do without pyplot, which would choose a backend for the whole process and keep every figure until it is closed.
"""

import contextlib
import gc
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from scoreexp.core.ranges import to_uint8
from scoreexp.metrics import psnr, ssim
from scoreexp.system.atomic import atomic_write

GRID = 64  # images in an overview
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#999999")
"""Of curves: Okabe and Ito's, which colour-blind readers tell apart, without their yellow."""
LINES = {"color": COLOURS * 2, "linestyle": ["-"] * len(COLOURS) + ["--"] * len(COLOURS)}
"""Of curves in one panel: ``axis.set_prop_cycle(**LINES)``."""

_DPI, _GAP, _LINE = 110, 8, 16  # pixels to an inch, between pictures, and of a line of text


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Write ``figure`` to ``path`` whole or not at all.

    >>> import tempfile
    >>> figure = Figure(figsize=(1, 1))
    >>> line = figure.subplots().plot([0, 1], [0, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_figure(figure, f"{folder}/pictures/line.png")
    ...     Path(folder, "pictures", "line.png").is_file()
    True
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi)


def _pixels(image: Tensor) -> np.ndarray:
    """``[C, H, W]`` in [0, 1] as ``[H, W, 3]`` or ``[H, W]`` bytes."""
    return visible(np.moveaxis(np.asarray(to_uint8(image)), 0, -1))


def visible(pixels: np.ndarray) -> np.ndarray:
    """``[H, W]`` or ``[H, W, 3]`` of pixels ``[H, W, C]``: of more bands than three the middles of the thirds, in false
    colours.

    >>> visible(np.zeros((8, 8, 1))).shape, visible(np.arange(31)[None, None])
    ((8, 8), array([[[ 5, 15, 25]]]))
    """
    bands = pixels.shape[-1]
    if bands == 3:
        return pixels
    return pixels[..., [bands // 6, bands // 2, bands * 5 // 6]] if bands > 3 else pixels[..., 0]


@contextlib.contextmanager
def freed_at_once() -> Iterator[None]:
    """Free a figure that is drawn and written inside; around a whole function, as its decorator.

    A figure is a web of cycles, which Python would leave until some 100,000 objects have gathered, a dozen evaluations
    later. Without automatic collections nothing in here leaves the youngest generations, which are quick to search.

    >>> with freed_at_once():
    ...     figure = Figure(figsize=(1, 1))
    ...     gc.isenabled()
    False
    """
    automatic = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # frees the frames that the errors of matplotlib's label parser keep, and with them
        gc.collect(1)  # the figure that these hold
        if automatic:
            gc.enable()


@freed_at_once()
def denoising_strip(
    rows: Sequence[Sequence[Tensor]],
    path: str | Path,
    title: str = "",
    labels: tuple[str, str, str] = ("clean", "noisy", "denoised"),
) -> None:
    """Rows of images ``clean, noisy, intermediate ..., denoised`` with PSNR and SSIM against the clean one.

    >>> import tempfile
    >>> import torch
    >>> clean, noisy = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     denoising_strip([[clean, noisy, clean + 0.01]], f"{folder}/strip.png", "sigma = 0.1")
    ...     Path(folder, "strip.png").is_file()
    True

    Args:
        rows: for each image its states ``[C, H, W]`` in [0, 1]; the first is the clean one.
        path: the PNG to write.
        title: shown above.
        labels: of the first two states and the last.
    """
    pictures, titles = [], []
    for states in rows:
        for k, state in enumerate(states):
            named = dict(zip((0, 1, len(states) - 1), labels, strict=True))
            label = named.get(k, f"intermediate {k - 1}")
            if k:
                pair = state[None], states[0][None]
                label += f"\n{float(psnr(*pair)):.1f} dB"
                if min(state.shape[-2:]) >= 11:
                    label += f", SSIM {float(ssim(*pair)):.3f}"
            pictures.append(_pixels(state))
            titles.append(label)
    _mosaic(pictures, titles, path, columns=len(rows[0]), side=192, heading=title)


def _mosaic(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    path: str | Path,
    *,
    columns: int,
    side: int,
    heading: str = "",
    size: float = 9,
) -> None:
    """Bytes ``[H, W]`` or ``[H, W, 3]`` in rows of ``columns``, enlarged by whole numbers, so that all pixels are equal.

    Args:
        pictures: of any sizes; of one with more than twice ``side`` pixels every k-th is shown.
        titles: one above each, of any number of lines; empty ones take no room.
        path: the PNG to write.
        columns: at most.
        side: pixels of the figure along the longer side of a picture, about.
        heading: above all.
        size: of the letters in points.
    """
    shown = []
    for picture in pictures:
        longest = max(picture.shape[:2])
        every, times = -(-longest // (2 * side)), max(1, round(side / longest))
        shown.append(picture[::every, ::every].repeat(times, 0).repeat(times, 1))
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    high, wide = (max(picture.shape[axis] for picture in shown) for axis in (0, 1))
    text = max((title.count("\n") + bool(title) for title in titles), default=0) * round(_LINE * size / 9)
    width = columns * (wide + _GAP) + _GAP
    lines = textwrap.wrap(
        heading, max(1, int(width / (0.6 * 10 * _DPI / 72)))
    )  # letters of 10 points, mostly narrower
    top = _GAP + (len(lines) + 1) * _LINE * bool(lines)
    height = rows * (high + text + _GAP) + top
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    for n, picture in enumerate(shown):
        row, column = divmod(n, columns)
        left = _GAP + column * (wide + _GAP) + (wide - picture.shape[1]) // 2
        lower = height - top - row * (high + text + _GAP) - text - high
        bottom = lower + high - picture.shape[0]
        figure.figimage(picture, left, bottom, cmap="gray", vmin=0, vmax=255)
        middle = left + picture.shape[1] / 2
        figure.text(middle / width, (lower + high + 4) / height, titles[n], ha="center", fontsize=size)
    figure.text(0.5, 1 - 0.5 * _LINE / height, "\n".join(lines), ha="center", va="top", fontsize=10)
    save_figure(figure, path, dpi=_DPI)


def save_pixels(image: Tensor, path: str | Path) -> None:
    """Write an image ``[C, H, W]`` in [0, 1] as a PNG of its own size, whole or not at all.

    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pixels(torch.full((3, 4, 6), 0.5), f"{folder}/grey.png")
    ...     with Image.open(f"{folder}/grey.png") as image:
    ...         image.size  # width and height
    (6, 4)
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        Image.fromarray(_pixels(image)).save(temporary)


@freed_at_once()
def image_grid(images: Tensor, path: str | Path, title: str = "") -> None:
    """A near-square grid of ``images[B, C, H, W]`` in [0, 1].

    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     image_grid(torch.rand(4, 3, 8, 8), f"{folder}/samples.png", "4 samples")
    ...     Path(folder, "samples.png").is_file()
    True
    """
    columns = math.ceil(math.sqrt(len(images)))
    _mosaic(
        [_pixels(image) for image in images],
        [""] * len(images),
        path,
        columns=columns,
        side=128,
        heading=title,
    )


@freed_at_once()
def curves(
    rows: Sequence[Mapping[str, float]],
    names: Sequence[str],
    path: str | Path,
    *,
    ylabel: str,
    log: bool = False,
    targets: Mapping[str, float] | None = None,
) -> bool:
    """Plot columns ``names`` of a metrics table against the step; returns whether there was anything to plot.

    >>> import tempfile
    >>> rows = [{"step": 10, "train/loss": 0.5}, {"step": 20, "train/loss": 0.25}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     curves(rows, ["train/loss", "val/psnr"], f"{folder}/loss.png", ylabel="loss", log=True)
    True

    Args:
        rows: the table, one mapping per logged step, with the key ``step``.
        names: columns to plot; absent ones are left out.
        path: the PNG to write.
        ylabel: label of the vertical axis.
        log: logarithmic vertical axis.
        targets: horizontal lines, label to value.
    """
    present = [name for name in names if any(name in row for row in rows)]
    if not present:
        return False
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_prop_cycle(**LINES)
    for name in present:
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(
            *zip(*points, strict=True), marker="o" if len(points) < 40 else None, ms=3, lw=1.2, label=name
        )
    for label, value in (targets or {}).items():
        axis.axhline(value, color="gray", lw=0.8, ls="--", label=f"{label} {value:g}")
    if log:
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel=ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)
    return True


@freed_at_once()
def comparison(
    pictures: Sequence[np.ndarray],
    titles: Sequence[str],
    path: str | Path,
    columns: int | None = None,
    side: int = 440,
) -> None:
    """Images ``[H, W, C]`` in [0, 1] side by side, in rows of at most ``columns``.

    Each is enlarged by a whole number; of one with more than twice ``side`` pixels every k-th pixel is shown.

    >>> import tempfile
    >>> noisy, clean = np.full((8, 8, 3), 0.6), np.full((8, 8, 3), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     comparison([noisy, clean], ["noisy", "clean"], f"{folder}/pair.png", side=64)
    ...     with Image.open(f"{folder}/pair.png") as image:
    ...         image.width  # two of 64 and three gaps
    152

    Args:
        pictures: of any sizes.
        titles: one for each, of any number of lines.
        path: the PNG to write.
        columns: at most; None for one row.
        side: pixels of the figure along the longer side of a picture, about.
    """
    pixels = [to_uint8(visible(np.nan_to_num(picture, nan=1.0))) for picture in pictures]
    _mosaic(pixels, titles, path, columns=columns or len(pixels), side=side, size=11 if side > 300 else 9)
