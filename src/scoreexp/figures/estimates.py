"""Values with their standard errors, by noise level or number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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
) -> None:
    """Error bars of two standard errors; the vertical axis is logarithmic where positive values span more than 20.

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
    """
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
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
    if log_x:
        axis.set_xscale("log")
    if shown and min(shown) > 0 and max(shown) > _LINEAR * min(shown):
        axis.set_yscale("log")
    axis.set_xlabel(xlabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)
