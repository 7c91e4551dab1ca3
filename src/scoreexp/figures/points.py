"""The figure of a score model of points in the plane, drawn from arrays.

All panels are in the units of the clean data: a noisy point is shown as ``x_t / alpha = x_0 + level z`` with the noise
level ``sigma / alpha``, so that figures of different schedules can be compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from scoreexp.figures.images import COLOURS, freed_at_once, save_figure

_SIDE = 3.0  # inches of a panel
DECADES = 8.0
"""How far below its maximum a log-density is still told from nothing."""


class ScoreMap(NamedTuple):
    """The score at one noise level on a square grid of ``n * n`` points ``u = x_t / alpha``.

    >>> import torch
    >>> points = torch.cartesian_prod(*[torch.linspace(-1, 1, 3)] * 2)
    >>> exact = -points / 2  # of standard normal data: u has the variance 1 + level^2
    >>> ScoreMap(level=1.0, points=points, learned=0.9 * exact, exact=exact).shown is None  # an arrow each
    True

    Attributes:
        level: ``sigma / alpha`` in data units.
        points: ``[n * n, 2]``.
        learned: gradient of the log-density of u ``[n * n, 2]``, from the model.
        exact: the same, exactly; None where it is not known.
        log_density: exact log-density of u on a finer grid ``[m, m]``, first axis upwards; None where it is not known.
        shown: which points ``[n * n]`` get an arrow: those where u can be; None for all.
    """

    level: float
    points: Tensor
    learned: Tensor
    exact: Tensor | None = None
    log_density: Tensor | None = None
    shown: Tensor | None = None


@freed_at_once()
def points_picture(
    path: str | Path,
    *,
    title: str,
    half_width: float,
    data: Tensor,
    log_density: Tensor | None,
    samples: Tensor,
    maps: Sequence[ScoreMap],
    trajectories: Tensor,
    score_error: Mapping[float, float],
) -> None:
    """Data over samples; exact beside learned score at several noise levels; error of the score; sampler's trajectories.

    What needs the exact distribution is left out where it is not known.

    >>> import tempfile
    >>> import torch
    >>> grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 3)] * 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     points_picture(
    ...         f"{folder}/gaussian.png",
    ...         title="a standard normal distribution",
    ...         half_width=1.25,
    ...         data=torch.randn(20, 2),
    ...         log_density=None,
    ...         samples=torch.randn(20, 2),
    ...         maps=[ScoreMap(1.0, grid, learned=-grid / 2, exact=-grid / 2)],
    ...         trajectories=torch.randn(1, 20, 2).expand(5, 20, 2),
    ...         score_error={0.1: 0.01, 1.0: 0.02},
    ...     )
    ...     Path(folder, "gaussian.png").is_file()
    True

    Args:
        path: the PNG to write.
        title: shown above.
        half_width: the panels show the square [-half_width, half_width]^2.
        data: clean points ``[N, 2]``.
        log_density: exact log-density of the data ``[m, m]``, first axis upwards, or None.
        samples: drawn points ``[N, 2]``.
        maps: one per noise level; one row each. None for a model without a score.
        trajectories: states ``x_t / sqrt(alpha^2 + sigma^2)`` of some samples, ``[K, B, 2]``, noise first.
        score_error: relative squared error of the score by noise level; empty where it is not known.
    """
    exact = bool(maps) and all(m.exact is not None for m in maps)
    rows, columns = max(2, len(maps)), 2 + bool(maps) + exact
    figure = Figure(figsize=(_SIDE * columns, _SIDE * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    _clean_data(axes[0, 0], data, log_density, half_width)
    _samples(axes[1, 0], samples, trajectories, half_width)
    for row, score_map in enumerate(maps):
        norm = (score_map.learned if score_map.exact is None else score_map.exact).norm(dim=1)
        longest = float((norm if score_map.shown is None else norm[score_map.shown]).max())
        level = f"noise {score_map.level:g}"
        if score_map.exact is not None:
            _arrows(axes[row, 1], score_map, score_map.exact, longest, half_width)
            axes[row, 1].set_title(f"exact score, {level}")
        _arrows(axes[row, 1 + exact], score_map, score_map.learned, longest, half_width)
        axes[row, 1 + exact].set_title(f"learned score, {level}")
    _trajectories(axes[1, -1], trajectories)
    if score_error:
        _score_error(axes[0, -1], score_error)
    figure.suptitle(title)
    save_figure(figure, path, dpi=90)


@freed_at_once()
def scatter(points: Tensor, path: str | Path, title: str = "") -> None:
    """Points of the plane ``[N, 2]``, on equal axes.

    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scatter(torch.randn(20, 2), f"{folder}/samples.png", "20 samples")
    ...     Path(folder, "samples.png").is_file()
    True
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*points.T, s=4, lw=0, color=COLOURS[0])
    axis.set(title=title, aspect="equal")
    axis.grid(alpha=0.3)
    save_figure(figure, path)


@freed_at_once()
def pairs_plot(pairs: Tensor, path: str | Path, *, names: tuple[str, str]) -> None:
    """Points of the plane, each joined to another one, ``[N, 2, 2]``, on equal axes.

    >>> import tempfile
    >>> import torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pairs_plot(torch.randn(20, 2, 2), f"{folder}/pairs.png", names=("drawn", "nearest"))
    ...     Path(folder, "pairs.png").is_file()
    True

    Args:
        pairs: coordinates of the first and the second point of each pair.
        path: the PNG to write.
        names: what the first and the second points are.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.add_collection(LineCollection(pairs.numpy(), colors="0.6", lw=0.8, zorder=1))
    for k, (name, marker) in enumerate(zip(names, "o+", strict=True)):
        axis.scatter(
            *pairs[:, k].T, s=(14, 26)[k], lw=1 if k else 0, marker=marker, color=COLOURS[k], label=name
        )
    axis.set_aspect("equal")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def _frame(axis: Axes, half_width: float) -> None:
    axis.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), aspect="equal")


def _density(axis: Axes, log_density: Tensor, half_width: float) -> None:
    values = np.asarray(log_density)
    extent = (-half_width, half_width, -half_width, half_width)
    top = values.max()
    axis.imshow(  # paler than the map's darkest end, for the arrows to be seen
        values, origin="lower", extent=extent, cmap="Blues", vmin=top - DECADES, vmax=top + DECADES / 2,
        interpolation="bilinear",
    )  # fmt: skip


def _clean_data(axis: Axes, data: Tensor, log_density: Tensor | None, half_width: float) -> None:
    if log_density is None:
        axis.scatter(*data.T, s=2, color="0.3", lw=0)
    else:
        _density(axis, log_density, half_width)
    axis.set_title("data" if log_density is None else "data: exact log-density")
    _frame(axis, half_width)


def _hues(trajectories: Tensor) -> np.ndarray:
    """A colour for the direction of the noise that each trajectory starts from, ``[B, 3]``."""
    angle = np.asarray(trajectories[0, :, 1].atan2(trajectories[0, :, 0]))
    hue = angle / (2 * np.pi) + 0.5
    return hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.85), np.full_like(hue, 0.8)], axis=1))


def _samples(axis: Axes, samples: Tensor, trajectories: Tensor, half_width: float) -> None:
    axis.scatter(*samples.T, s=3, color=_hues(trajectories), lw=0)
    axis.set_title(f"{len(samples)} samples")
    _frame(axis, half_width)


def _arrows(axis: Axes, score_map: ScoreMap, score: Tensor, longest: float, half_width: float) -> None:
    """Arrows uphill; their length grows with the root of the score's, so that both its ends are seen."""
    if score_map.log_density is not None:
        _density(axis, score_map.log_density, half_width)
    points, score = np.asarray(score_map.points), np.asarray(score)
    spacing = 2 * half_width / round(len(points) ** 0.5)
    if score_map.shown is not None:
        points, score = points[np.asarray(score_map.shown)], score[np.asarray(score_map.shown)]
    norm = np.maximum(np.linalg.norm(score, axis=1, keepdims=True), 1e-12)
    arrows = score / norm * np.sqrt(np.minimum(norm / longest, 1)) * spacing * 1.3
    axis.quiver(*points.T, *arrows.T, angles="xy", scale_units="xy", scale=1, width=0.005, color="0.1")
    _frame(axis, half_width)


def _trajectories(axis: Axes, trajectories: Tensor, shown: int = 150) -> None:
    paths = np.asarray(trajectories[:, :shown])
    colours = _hues(trajectories)[:shown]
    for b, colour in enumerate(colours):
        axis.plot(paths[:, b, 0], paths[:, b, 1], color=colour, lw=0.6, alpha=0.7)
    axis.scatter(*paths[-1].T, s=6, color=colours, lw=0, zorder=3)
    axis.set_title(f"from noise to data: {len(colours)} paths")
    _frame(axis, float(np.abs(paths).max()) * 1.02)


def _score_error(axis: Axes, score_error: Mapping[float, float]) -> None:
    axis.set_axis_on()
    axis.set_box_aspect(1)
    axis.loglog(list(score_error), list(score_error.values()), marker="o", ms=4, color=COLOURS[1])
    axis.set(
        xlabel="noise level", ylim=(min(1e-5, *score_error.values()) / 2, max(1.0, *score_error.values()) * 2)
    )
    axis.set_title("relative squared error of the score", fontsize="medium")
    axis.grid(alpha=0.3)
