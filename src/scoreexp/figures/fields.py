"""Figures of score fields and of the images embedded along them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from scoreexp.figures.images import COLOURS, freed_at_once, save_figure
from scoreexp.numerics.fokker_planck import ScoreField

_SHOWN = 5  # times in a figure
_ARROWS = 16  # arrows along each axis at most


@freed_at_once()
def field_over_time(field: ScoreField, path: str | Path) -> None:
    """Log-density (colour) and image-plane score (arrows) of one image at some of the kept times.

    A field with one density per channel shows the channels below each other. Arrows point uphill; their length is
    relative to the longest of their panel, which the title gives.

    >>> import tempfile
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> field = solve_log_density(np.random.default_rng(0).random((8, 8)), g=0.5, times=np.linspace(0, 1, 5))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     field_over_time(field, f"{folder}/field.png")
    ...     Path(folder, "field.png").is_file()
    True

    Args:
        field: of one image, leading axes ``[]`` or ``[C]``.
        path: the PNG to write.
    """
    chosen = np.unique(np.linspace(0, len(field.times) - 1, _SHOWN).round().astype(int))
    shape = field.log_p.shape[-2:]
    log_p = field.log_p.reshape(len(field.times), -1, *shape)
    score = field.score.reshape(len(field.times), -1, 2, *shape)
    rows = log_p.shape[1]
    figure = Figure(figsize=(2.3 * len(chosen), 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, len(chosen), squeeze=False)
    figure.get_layout_engine().set(h_pad=0.08)
    stride = max(1, -(-max(shape) // _ARROWS))
    i, j = (np.arange(stride // 2, n, stride) for n in shape)
    for r in range(rows):
        for axis, k in zip(axes[r], chosen):
            low, high = log_p[k, r].min(), log_p[k, r].max()
            # paler than the map's ends, for the arrows to be seen
            axis.imshow(log_p[k, r], cmap="YlGnBu", vmin=low, vmax=high + 0.6 * (high - low))
            down, right = score[k, r][:, i][:, :, j]
            axis.quiver(j, i, right, down, angles="xy", color="0.1", width=0.006)
            longest = np.hypot(*score[k, r]).max()
            axis.set_title(f"t = {field.times[k]:.3g}\n|score| up to {longest:.3g}", fontsize=9)
            axis.set_axis_off()
    save_figure(figure, path, dpi=90)


@freed_at_once()
def embedded_strip(times: Sequence[float], images: Tensor, path: str | Path) -> None:
    """The images of one path side by side, and how far each has moved from the first.

    >>> import tempfile
    >>> import torch
    >>> path = torch.linspace(0, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)  # from black to white
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     embedded_strip([0.0, 0.5, 1.0], path, f"{folder}/path.png")
    ...     Path(folder, "path.png").is_file()
    True

    Args:
        times: K of them.
        images: ``[K, C, H, W]`` in [0, 1].
        path: the PNG to write.
    """
    chosen = np.unique(np.linspace(0, len(times) - 1, 6).round().astype(int))
    figure = Figure(figsize=(1.6 * len(chosen), 3.4), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    moved = (images - images[0]).mean(1).numpy()
    largest = max(float(np.abs(moved).max()), 1e-12)
    for (top, bottom), k in zip(axes.T, chosen):
        picture = np.moveaxis(images[k].clamp(0, 1).numpy(), 0, -1)
        top.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
        top.set_title(f"t = {times[k]:.3g}", fontsize=9)
        shift = bottom.imshow(moved[k], cmap="coolwarm", vmin=-largest, vmax=largest)
        bottom.set_title(f"rms {np.sqrt((moved[k] ** 2).mean()):.3f}", fontsize=9)
        top.set_axis_off()
        bottom.set_axis_off()
    figure.colorbar(shift, ax=axes[1], shrink=0.8, label="x(t) - x(0)\nchannel mean")
    save_figure(figure, path, dpi=90)


@freed_at_once()
def residual_curves(field: ScoreField, path: str | Path) -> bool:
    """Relative change of each fixed-point iteration over time, with the tolerance; False for an exact solver.

    >>> import tempfile
    >>> from scoreexp.numerics.fokker_planck import solve_log_density
    >>> times = np.linspace(0, 1, 5)
    >>> field = solve_log_density(np.random.default_rng(0).random((8, 8)), g=0.5, times=times, solver="direct")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     residual_curves(field, f"{folder}/residuals.png")
    True

    Args:
        field: of one image, leading axes ``[]`` or ``[C]``.
        path: the PNG to write.
    """
    allowed = field.residuals.shape[1]
    if not allowed:
        return False
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.set_prop_cycle(color=COLOURS)
    residuals = field.residuals.reshape(*field.residuals.shape[:2], -1)
    for iteration in range(allowed):
        axis.plot(
            np.repeat(field.step_times, residuals.shape[2]), residuals[:, iteration].ravel(), ".", ms=4,
            label=f"iteration {iteration + 1}",
        )  # fmt: skip
    axis.axhline(field.tol, color="gray", lw=0.8, ls="--", label=f"tolerance {field.tol:g}")
    axis.set_yscale("log")
    axis.set(xlabel="time of the step", ylabel="relative change of the log-density")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    save_figure(figure, path, dpi=90)
    return True
