"""Values with their standard errors, by noise level or number."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scoreexp.figures.images import LINES, freed_at_once, save_figure

_LINEAR = 20.0  # ratio of the largest to the smallest value up to which the axis is linear


@freed_at_once()
def estimates_plot(
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    path: str | Path,
    *,
    xlabel: str,
    log_x: bool = True,
    exact: float | None = None,
    units: Mapping[str, str] | None = None,
    linear: Container[str] = (),
) -> None:
    """Error bars of two standard errors, one panel for each unit.

    A vertical axis is logarithmic where the values are positive and span a factor of more than 20.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     estimates_plot({"error": [(0.1, 0.5, 0.1), (1.0, 0.4, 0.1)]}, f"{folder}/error.png", xlabel="noise level")
    ...     Path(folder, "error.png").is_file()
    True

    Args:
        series: by name ``(x, value, standard error)``; values that are not finite are left out.
        path: the PNG to write.
        xlabel: of the horizontal axis.
        log_x: whether it is logarithmic.
        exact: the value of an exact model, a dashed line.
        units: what the values are in, by the name of their series: the label of the panel's vertical axis.
        linear: units whose axis is never logarithmic.
    """
    panels: dict[str, dict[str, Sequence[tuple[float, float, float]]]] = {}
    for name, rows in series.items():
        panels.setdefault((units or {}).get(name, ""), {})[name] = rows
    figure = Figure(figsize=(6, 3.4 if len(panels) < 2 else 2.7 * len(panels)), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), sharex=True, squeeze=False)[:, 0]
    for axis, (unit, shown) in zip(axes, panels.items(), strict=False):
        _panel(axis, shown, exact, log=unit not in linear)
        axis.set_ylabel(unit)
    if log_x:
        axes[-1].set_xscale("log")
    else:
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel(xlabel)
    save_figure(figure, path)


def _panel(
    axis: Axes, series: Mapping[str, Sequence[tuple[float, float, float]]], exact: float | None, *, log: bool
) -> None:
    axis.set_prop_cycle(**LINES)
    shown = []
    for name, rows in series.items():
        x, value, error = np.asarray(rows, dtype=float).reshape(-1, 3).T
        finite = np.isfinite(value)
        bars = np.nan_to_num(2 * error[finite])
        axis.errorbar(x[finite], value[finite], yerr=bars, marker="o", ms=4, lw=1, capsize=2, label=name)
        shown += value[finite].tolist()
    if exact is not None:
        axis.axhline(exact, color="0.3", lw=1, ls="--")
    if log and shown and min(shown) > 0 and max(shown) > _LINEAR * min(shown):
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
