"""The results of methods that may be compared: the table and its finding."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from scoreexp.runs.reporting.charts import Pen
from scoreexp.runs.reporting.summary import QUALITY, SECONDS, Column, Spread, Summary, Table
from scoreexp.runs.reporting.wording import (
    ABSENT,
    NOT_REACHED,
    label,
    listed,
    metric_name,
    parameters_text,
    quality_text,
    seconds_text,
    steps_text,
    target_text,
)

_HEADS = {  # the lines of a column's head
    Column("last", "ssim"): "SSIM\nat end",
    Column("last", "ssim_global"): "global\nSSIM",
    Column("last", "psnr"): "PSNR\ndB",
    Column("best", "ssim"): "best\nSSIM",
}


class Cell(NamedTuple):
    """A value in a table.

    Attributes:
        text: the value, or its median.
        range: below it, where there is one.
        best: whether it is the best of its column.
        missed: whether no run has got there.
    """

    text: str
    range: str = ""
    best: bool = False
    missed: bool = False


class Row(NamedTuple):
    """A method in the table of results; ``untrained`` is the exact score."""

    method: str
    colour: str
    untrained: bool
    cells: list[Cell]


class Finding(NamedTuple):
    """The result in a sentence, with the methods that it cannot tell apart from the first."""

    claim: str
    method: str
    value: str
    overlapping: str


class Results(NamedTuple):
    """One table of results that may be compared; a head may have several lines."""

    heading: str
    finding: Finding | None
    conditions: str
    heads: list[str]
    rows: list[Row]
    notes: list[str]


class _Shown(NamedTuple):
    """A column of the table of results: its head and what it shows of a method."""

    head: str
    cell: Callable[[Summary], Cell]


def results(table: Table, baseline: str | None, pens: Mapping[str, Pen], several: bool) -> Results | None:
    """The table of results; None before the first run has finished.

    Args:
        table: what is compared.
        baseline: the method that speed-ups refer to.
        pens: how each method is drawn.
        several: whether the page has other tables too.
    """
    rows = table.rows
    if not any(row.finished for row in rows):
        return None
    columns = _columns(table, baseline)
    return Results(
        heading=f"Results: {what_is_compared(table)}" if several else "Results",
        finding=find(table),
        conditions=table.device if several else f"{what_is_compared(table)} · {table.device}",
        heads=["method", *(column.head for column in columns)],
        rows=[
            Row(label(row.method), pens[row.method].colour, row.untrained, [c.cell(row) for c in columns])
            for row in rows
        ],
        notes=_notes(table, baseline),
    )


def _columns(table: Table, baseline: str | None) -> list[_Shown]:
    fastest = SECONDS.best(table.rows)
    to_target = [
        _Shown("reached\ntarget", lambda row: Cell(_of(row.reached, len(row.finished)))),
        _Shown("seconds\nto target", lambda row: _cell(row.seconds, seconds_text, row.method in fastest)),
        _Shown("speed-up", lambda row: Cell(_speed_up(table, row.method, baseline))),
        _Shown("steps\nto target", lambda row: _cell(row.steps, steps_text)),
    ]
    return [
        *([_Shown("runs", _finished)] if table.target is None else to_target),
        _Shown("pre-\ncompute s", lambda row: _cell(row.precompute, seconds_text)),
        _Shown("seconds\nspent", lambda row: _cell(row.spent, seconds_text)),
        *_quality_columns(table.rows),
        _Shown("NFE", lambda row: Cell(ABSENT if row.nfe is None else f"{row.nfe:.0f}")),
        _Shown("weights", lambda row: Cell(parameters_text(row.parameters))),
    ]


def _quality_columns(rows: Sequence[Summary]) -> list[_Shown]:
    names = [name for name in rows[0].last if any(row.last[name] for row in rows)]
    columns = [Column("last", name) for name in names]
    if "ssim" in names:
        columns.append(Column("best", "ssim"))
    return [_quality_column(column, column.best(rows)) for column in columns]


def _quality_column(column: Column, best: set[str]) -> _Shown:
    text = partial(quality_text, name=column.name)
    return _Shown(
        _HEADS.get(column, column.name), lambda row: _cell(column.of(row), text, row.method in best)
    )


def _cell(spread: Spread | None, text: Callable[[float], str], best: bool = False) -> Cell:
    """Median, with the range below it where there is one."""
    if spread is None:
        return Cell(ABSENT)
    median, low, high = map(text, spread)
    if spread.low == math.inf and low in (ABSENT, NOT_REACHED):
        return Cell(median, missed=True)
    if math.isfinite(spread.low) and high in (ABSENT, NOT_REACHED):
        high = "never"
    return Cell(median, f"{low} – {high}" if low != high else "", best)


def _of(reached: int, finished: int) -> str:
    return f"{reached} of {finished}" if finished else ABSENT


def _finished(row: Summary) -> Cell:
    n, started = len(row.finished), len(row.runs)
    return Cell(str(n) if n == started else f"{n} of {started}")


def _speed_up(table: Table, method: str, baseline: str | None) -> str:
    if method == baseline:
        return "baseline"
    ratio = table.speed_ups.get(method)
    return f"{ratio.bound} {ratio.ratio:.2g}×".strip() if ratio else ABSENT


def _notes(table: Table, baseline: str | None) -> list[str]:
    notes = [
        "Median over seeds (and images), below it the range. Bold: best median among the trained methods."
    ]
    if table.target is not None and table.speed_ups:
        notes.append(
            f"Speed-up: median seconds of {label(str(baseline))} over those of the method; > and < where one of "
            "them did not reach the target in the time it had."
        )
    if any(row.untrained for row in table.rows):
        notes.append(
            "The exact score needs no training: it is the limit of all methods on these images and is not ranked."
        )
    return notes


def what_is_compared(table: Table) -> str:
    """Data, observation and target of a table in one line."""
    values = table.conditions
    runs = [run for row in table.rows for run in row.runs]
    kind = str(values.get("data._target_", "data")).rpartition(".")[2]
    name = values.get("data.name") or values.get("data.path")
    images = {run.image for run in runs} - {None}
    what = f"{len(images)} images" if len(images) > 1 else next(iter(images), name)
    parts = [f"{kind} ({what})" if what else kind]
    if size := values.get("data.size"):
        parts.append(f"{size} × {size} pixels")
    if number := values.get("data.num_images"):
        parts.append(f"{number} training images")
    if values.get("data.validate_on") == "train":
        parts.append("measured on the training images")
    if sigma := values.get("monitor.sigma"):
        parts.append(f"noise σ = {sigma:g} of [0, 1]")
    if table.target is not None:
        again = values.get("monitor.confirm") if table.monitor.endswith("_confirmed") else None
        in_a_row = f", {again} evaluations in a row" if again and again > 1 else ""
        parts.append(f"target {target_text(table.monitor, table.target, runs)}{in_a_row}")
    return " · ".join(parts)


def find(table: Table) -> Finding | None:
    """The result of a table; None where fewer than two trained methods can be compared."""
    quality = table.at_end if table.at_end.name in QUALITY else Column("last", "ssim")
    column, best = table.ranking(quality)
    if not best:
        return None
    first = next(row for row in table.rows if row.method in best)
    spread = column.of(first)
    assert spread is not None  # it has been ranked
    overlapping = [
        label(row.method)
        for row in table.rows
        if row is not first and not row.untrained and _overlap(column.of(row), spread)
    ]
    if column == SECONDS:
        claim, value = "Fastest to the target", f"{seconds_text(spread.median)} s"
    else:
        claim, value = (
            f"Highest {metric_name(column.name)} at the end",
            quality_text(spread.median, column.name),
        )
    return Finding(claim, label(first.method), value, listed(overlapping))


def _overlap(one: Spread | None, other: Spread) -> bool:
    return one is not None and min(one.high, other.high) >= max(one.low, other.low)
