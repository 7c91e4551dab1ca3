"""The figures of a report: curves of the monitored value, denoised images, and where the time goes."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scoreexp.runs.reporting.charts import (
    STAGE_TONES,
    Bar,
    BarChart,
    Line,
    LineChart,
    Pen,
    bar_chart,
    line_chart,
)
from scoreexp.runs.reporting.runs import AFTER, Run
from scoreexp.runs.reporting.summary import QUALITY, Spread, Summary, Table, median_curve
from scoreexp.runs.reporting.wording import label, listed, metric_name, seconds_text, with_unit


class Curves(NamedTuple):
    """A monitored value against seconds and steps: the legend, and charts by the name of their axis."""

    quality: str
    legend: list[tuple[str, Pen]]
    charts: dict[str, LineChart | None]


class Picture(NamedTuple):
    """An image as a data URI."""

    kind: str
    source: str


class Strip(NamedTuple):
    """What a method was given, what it made of it, and the truth."""

    method: str
    colour: str
    pictures: list[Picture]
    caption: str


class Sampled(NamedTuple):
    """The last overview of samples that a run has drawn in training."""

    method: str
    colour: str
    source: str
    caption: str


class Stages(NamedTuple):
    """Seconds by stage: the legend, the chart, and what counts as pre-computation."""

    legend: list[tuple[str, str]]
    chart: BarChart
    precomputation: str


def curves(table: Table, pens: Mapping[str, Pen]) -> Curves | None:
    """The curves of a table's monitored value; None before the first evaluation."""
    shown = [row for row in table.rows if any(run.curve(table.metric) for run in row.runs)]
    if not shown:
        return None
    name = metric_name(table.metric)
    high = 1.0 if "ssim" in table.metric else None
    axes = {"seconds of pre-computation and training": "seconds", "training step": "step"}
    return Curves(
        name,
        [(label(row.method), pens[row.method]) for row in shown],
        {
            xlabel: line_chart(
                _lines(shown, table.metric, axis, pens),
                xlabel=xlabel,
                ylabel=name,
                target=table.target,
                high=high,
            )
            for xlabel, axis in axes.items()
        },
    )


def _lines(rows: list[Summary], metric: str, axis: str, pens: Mapping[str, Pen]) -> list[Line]:
    """One thin line per run and, above them, the median of each method; the exact score is a level."""
    thin, thick = [], []
    of_runs = {row.method: [_curve(run, metric, axis) for run in row.runs] for row in rows}
    furthest = max(x for of_row in of_runs.values() for curve in of_row for x, _ in curve)
    for row in rows:
        method, pen, of_row = label(row.method), pens[row.method], of_runs[row.method]
        if row.untrained:
            level = of_row[0][-1][1] if of_row[0] else 1.0
            thick.append(Line([(0, level), (furthest or 1, level)], pen, True, method))
            continue
        for run, curve in zip(row.runs, of_row):
            thin.append(Line(curve, Pen(pen.colour), False, f"{method}, seed {run.seed}"))
        thick.append(Line(median_curve(of_row), pen, True, f"{method}, median"))
    return [*thin, *thick]


def _curve(run: Run, metric: str, axis: str) -> list[tuple[float, float]]:
    return [(getattr(point, axis), point.value) for point in run.curve(metric)]


def strips(table: Table, pens: Mapping[str, Pen]) -> list[Strip]:
    """The images of the first run of each method that has some."""
    found = []
    for row in table.rows:
        run = next((run for run in row.runs if _picture(run, "denoised").is_file()), None)
        if run is not None:
            found.append(Strip(label(row.method), pens[row.method].colour, _pictures(run), _caption(run)))
    return found


def _picture(run: Run, kind: str) -> Path:
    return run.folder / "pictures" / "last" / f"{kind}.png"


def _pictures(run: Run) -> list[Picture]:
    files = {kind: _picture(run, kind) for kind in ("noisy", "denoised", "clean")}
    return [Picture(kind, _data_uri(path)) for kind, path in files.items() if path.is_file()]


def _caption(run: Run) -> str:
    said = [
        f"{metric_name(name)} {with_unit(value, name)}"
        for name in QUALITY
        if (value := run.last(f"val/{name}")) is not None
    ]
    state = "" if run.state == "done" else f", {run.state}"
    return f"Seed {run.seed}{state}, step {run.steps}: {', '.join(said)}"


def samples(runs: Sequence[Run], pens: Mapping[str, Pen]) -> list[Sampled]:
    """The overview of the first run of each method that has some."""
    found: dict[str, Sampled] = {}
    for run in runs:
        overviews = sorted((run.folder / "distribution").glob("step_*.png"))
        if overviews and run.method not in found:
            said = f"Seed {run.seed}, step {int(overviews[-1].stem.removeprefix('step_'))}"
            found[run.method] = Sampled(
                label(run.method), pens[run.method].colour, _data_uri(overviews[-1]), said
            )
    return list(found.values())


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def stages(table: Table, pens: Mapping[str, Pen]) -> Stages | None:
    """Median seconds by stage of the finished runs; None where there are none."""
    bars = [bar for row in table.rows if (bar := _bar(row, pens[row.method].colour)) is not None]
    if not bars:
        return None
    finished = [run for row in table.rows for run in row.finished]
    before = dict.fromkeys(stage for run in finished for stage in run.seconds if stage not in AFTER)
    return Stages(
        list(zip(("pre-computation", "training", "evaluation (not counted)"), STAGE_TONES)),
        bar_chart(bars, xlabel="median seconds per run"),
        listed([stage.replace("_", " ") for stage in before]),
    )


def _bar(row: Summary, colour: str) -> Bar | None:
    train, evaluate = (
        Spread.of([run.seconds.get(stage, 0.0) for run in row.finished]) for stage in ("train", "evaluate")
    )
    if row.precompute is None or train is None or evaluate is None:
        return None
    medians = {"pre-compute": row.precompute.median, "train": train.median, "evaluate": evaluate.median}
    note = ", ".join(f"{stage} {seconds_text(value)}" for stage, value in medians.items())
    return Bar(label(row.method), colour, list(zip(STAGE_TONES, medians.values())), note)
