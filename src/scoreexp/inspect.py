"""``python -m scoreexp.inspect data=NAME``: show what is in a data set."""

import sys

from scoreexp.app.launch import run_app

SCHEMA = {"name": "str", "seed": "int", "run_dir": "str", "data": "Node"}

if __name__ == "__main__":
    sys.exit(run_app("inspect", "scoreexp.app.commands.inspect:inspect_data", schema=SCHEMA))
