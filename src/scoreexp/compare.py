"""``python -m scoreexp.compare sweep=NAME``: compare methods under equal conditions and write a report."""

import sys

from scoreexp.app.launch import run_app

SCHEMA = {
    "methods": "list[str] | None",
    "overrides": "list[str]",
    "n_parallel": "PositiveInt",
    "gpus": "list[int] | None",
    "devices_per_job": "PositiveInt",
    "fail_fast": "bool",
    "report_only": "bool",
    "run_dir": "str",
    "sweep.name": "str",
    "sweep.title": "str",
    "sweep.mode": "Literal['target', 'budget']",
    "sweep.monitor": "str",
    "sweep.target": "float | None",
    "sweep.seconds": "PositiveFloat | None",
    "sweep.seeds": "list[int]",
    "sweep.baseline": "str | None",
    "sweep.common": "list[str]",
    "sweep.methods": "dict[str, list[str]]",
}

if __name__ == "__main__":
    sys.exit(run_app("compare", "scoreexp.app.commands.compare:compare", schema=SCHEMA))
