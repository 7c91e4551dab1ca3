"""Figures of results: drawn from arrays, written to a file, never shown on a screen.

They do without pyplot, which would choose a backend for the whole process and keep every figure until it is closed.
"""

import contextlib
import gc
import math
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
def denoising_strip(rows: Sequence[Sequence[Tensor]], path: str | Path, title: str = "") -> None:
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
    """
    count, side, gap, line = len(rows[0]), 1.8, 0.08, 0.42  # inches
    width, height = count * (side + gap) + gap, len(rows) * (side + line) + 0.35
    figure = Figure(figsize=(width, height))
    for r, states in enumerate(rows):
        for k, state in enumerate(states):
            left, bottom = gap + k * (side + gap), height - 0.35 - (r + 1) * (side + line) + gap
            axis = figure.add_axes((left / width, bottom / height, side / width, side / height))
            axis.imshow(_pixels(state), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_axis_off()
            label = {0: "clean", 1: "noisy", count - 1: "denoised"}.get(k, f"intermediate {k - 1}")
            if k:
                pair = state[None], states[0][None]
                label += f"\n{float(psnr(*pair)):.1f} dB"
                if min(state.shape[-2:]) >= 11:
                    label += f", SSIM {float(ssim(*pair)):.3f}"
            figure.text(
                (left + side / 2) / width, (bottom + side + 0.05) / height, label, ha="center", fontsize=9
            )
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", fontsize=10)
    save_figure(figure, path)


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
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.3 * columns, 1.3 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(_pixels(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


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
    pictures: Sequence[np.ndarray], titles: Sequence[str], path: str | Path, columns: int | None = None
) -> None:
    """Images ``[H, W, C]`` in [0, 1] side by side, in rows of at most ``columns``.

    >>> import tempfile
    >>> noisy, clean = np.full((8, 8, 3), 0.6), np.full((8, 8, 3), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     comparison([noisy, clean], ["noisy", "clean"], f"{folder}/pair.png")
    ...     Path(folder, "pair.png").is_file()
    True
    """
    wide = min(len(pictures), columns or len(pictures))
    tall = -(-len(pictures) // wide)
    figure = Figure(figsize=(4.2 * wide, 4.5 * tall), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False).flat
    for axis in axes[len(pictures) :]:
        axis.set_axis_off()
    for axis, picture, title in zip(axes[: len(pictures)], pictures, titles, strict=True):
        axis.imshow(np.clip(visible(picture), 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    save_figure(figure, path)
