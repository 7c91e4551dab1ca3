"""``python -m scoreexp.precompute experiment=NAME``: solve and store the score fields of a data set."""

import sys

from scoreexp.app.launch import run_app
from scoreexp.train import PROVIDED, SCHEMA

if __name__ == "__main__":
    sys.exit(
        run_app("precompute", "scoreexp.app.commands.precompute:precompute", schema=SCHEMA, provided=PROVIDED)
    )
