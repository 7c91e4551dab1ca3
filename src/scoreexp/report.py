"""``python -m scoreexp.report runs=[DIR,DIR]``: write a report about any run folders."""

import sys

from scoreexp.app.launch import run_app

SCHEMA = {
    "runs": "list[str]",
    "out": "str | None",
    "title": "str | None",
    "baseline": "str | None",
    "run_dir": "str",
}

if __name__ == "__main__":
    sys.exit(run_app("report", "scoreexp.app.commands.compare:report", schema=SCHEMA))
