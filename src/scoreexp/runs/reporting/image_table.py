"""The results of a table image by image, for the page and for the terminal."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from scoreexp.runs.reporting.summary import SECONDS, Spread, Summary, Table, by_image
from scoreexp.runs.reporting.wording import ABSENT, metric_name, quality_text, seconds_text


class ImageTable(NamedTuple):
    """The results by image: its name, method, finished runs, seconds, PSNR, quality, whether it is the best there."""

    heads: list[str]
    rows: list[list[str]]


def image_table(table: Table) -> ImageTable | None:
    """The results by image; None where there is only one."""
    seconds, column = ("seconds", table.at_end) if table.target is None else ("seconds to target", SECONDS)
    lines = []
    for image, rows in by_image(table).items():
        best = column.best(rows)
        lines += [_image_line(table, image, row, row.method in best, _median) for row in rows]
    heads = ["image", "method", "runs", seconds, "PSNR", metric_name(table.monitor), ""]
    return ImageTable(heads, lines) if lines else None


def image_text(table: Table) -> list[str]:
    """The table by method and that by image as lines of plain text; none for one image."""
    by_picture = image_table(table)
    if by_picture is None:
        return []
    _, best = table.ranking(table.at_end)
    whole = [_image_line(table, "all", row, row.method in best, _median_and_range) for row in table.rows]
    lines = [by_picture.heads, *whole, *by_picture.rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def _image_line(
    table: Table,
    image: str,
    row: Summary,
    best: bool,
    shown: Callable[[Spread | None, Callable[[float], str]], str],
) -> list[str]:
    qualities = [
        shown(row.last[name], partial(quality_text, name=name)) for name in ("psnr", table.at_end.name)
    ]
    runs = f"{len(row.finished)}/{len(row.runs)}"
    return [image, row.method, runs, shown(row.seconds, seconds_text), *qualities, "best" if best else ""]


def _median(spread: Spread | None, text: Callable[[float], str]) -> str:
    return ABSENT if spread is None else text(spread.median)


def _median_and_range(spread: Spread | None, text: Callable[[float], str]) -> str:
    if spread is None:
        return ABSENT
    median, low, high = map(text, spread)
    return median if low == high else f"{median} ({low} to {high})"
