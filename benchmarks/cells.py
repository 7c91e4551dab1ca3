"""What studies share: results kept cell by cell in a file, and the interval of a mean."""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from scoreexp.system.json_files import write_json


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean, by Student's t; two values at least.

    >>> round(half_interval([0.0, 1.0, 2.0]), 3)
    2.484
    """
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


class Cells:
    """The finished cells of a study, with the settings that they were measured with.

    Args:
        path: of the JSON file, which may be there already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": {}}

    @property
    def rows(self) -> dict[str, Any]:
        return self.stored["rows"]

    def require_settings(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, choices: Collection[str]
    ) -> None:
        """Refuse a file of other settings: of ``options`` all but ``choices``, which say what to run and where."""
        settings = {key: value for key, value in vars(options).items() if key not in choices}
        if self.stored.setdefault("settings", settings) != settings:
            parser.error(f"{self.path} was made with other settings: give another file with --json")

    def measured(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell, measured and stored if it is not there; printed without its curve."""
        if key not in self.rows:
            self.rows[key] = measure()
            write_json(self.path, {"machine": describe_machine(), **self.stored})
        row = self.rows[key]
        print(f"{key}: {json.dumps({k: v for k, v in row.items() if k != 'curve'})}", flush=True)
        return row


def add_cell_options(parser: argparse.ArgumentParser, result: Path, page: str) -> None:
    """``--root``, ``--json`` and ``--table``."""
    parser.add_argument("--root", type=Path, help="folder that holds mnist/ and cifar10/")
    parser.add_argument("--json", type=Path, default=result)
    parser.add_argument("--table", action="store_true", help=f"write the table of docs/{page}, run nothing")


def cells_of(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    choices: Collection[str],
    table: tuple[str, str, Callable[[dict[str, Any]], str]],
) -> Cells | None:
    """The cells to go on with; None after ``--table``, which writes the table and ends the work.

    Args:
        parser: for its errors.
        options: parsed, with those of ``add_cell_options``.
        choices: further options that say what to run, and are no settings.
        table: page below docs/, name of the table, and what makes it of the rows.
    """
    cells = Cells(options.json)
    if options.table:
        page, name, make = table
        write_table(DOCS / page, name, make(cells.rows))
        return None
    if options.root is None:
        parser.error("--root is needed: the folder that holds mnist/ and cifar10/")
    cells.require_settings(parser, options, {"root", "json", "table", *choices})
    return cells
