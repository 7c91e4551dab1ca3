"""metrics.csv: one row per logged step, continued without gaps or duplicates when a run is resumed."""

import csv
from argparse import Namespace
from itertools import islice
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from scoreexp.core.errors import UserError
from scoreexp.system.atomic import atomic_write, naming


class CSVLogger(Logger):
    """Metrics over time as a table ``step, <name>, ...``; values of the same step share a row.

    Lightning's own CSV logger starts a new folder or deletes the earlier rows on resume. This one keeps the rows up
    to the step from which the run goes on and drops later ones, which the resumed run writes again. Only rank 0 writes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     logger = CSVLogger(f"{folder}/metrics.csv")
    ...     logger.log_metrics({"train/loss": 0.5}, step=10)
    ...     logger.log_metrics({"val/psnr": 20.0}, step=10)
    ...     logger.finalize("success")
    ...     logger.path.read_text().split()
    ['step,train/loss,val/psnr', '10,0.5,20.0']

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: dict[int, dict[str, float]] = {}
        self._columns: list[str] = ["step"]
        self._written = 0  # rows in the file
        self._header: list[str] = []  # columns of the file

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def rows(self) -> list[dict[str, float]]:
        """The table so far, in order of steps."""
        return [self._rows[step] for step in sorted(self._rows)]

    @rank_zero_only
    def continue_from(self, step: int) -> None:
        """Take over the rows of an existing file up to ``step``.

        Raises:
            UserError: the file is not such a table.
        """
        if not self.path.is_file():
            return
        try:
            with self.path.open(newline="") as file:
                whole = [
                    line for line in file if line.endswith("\n")
                ]  # a full disk may have cut the last one short
            for row in csv.DictReader(whole):
                if row["step"].isdigit() and int(row["step"]) <= step:
                    values = {k: float(v) for k, v in row.items() if k != "step" and v not in ("", None)}
                    self._rows[int(row["step"])] = {"step": int(row["step"]), **values}
                    self._columns += [k for k in values if k not in self._columns]
        except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"{self.path} is damaged ({reason}): mend or delete it to go on") from error
        self._rewrite()

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Configuration is stored by the run directory, not in the table."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = int(step or 0)
        if step not in self._rows and self._rows:
            self.flush()
        elif len(self._rows) == self._written:  # the row is in the file already and about to change
            self._header = []
        row = self._rows.setdefault(step, {"step": step})
        row.update({k: float(v) for k, v in metrics.items() if k != "epoch"})
        self._columns += [k for k in row if k not in self._columns]

    @rank_zero_only
    def flush(self) -> None:
        """Bring the file up to the last row; a checkpoint of that step needs it there, for a resume does not write it."""
        if self._columns != self._header or not self.path.is_file():
            self._rewrite()
        elif fresh := list(islice(reversed(self._rows.values()), len(self._rows) - self._written)):
            with naming(self.path), self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerows(reversed(fresh))
            self._written += len(fresh)

    def _rewrite(self) -> None:
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        self._written, self._header = len(self._rows), list(self._columns)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._rows:
            self._rewrite()
