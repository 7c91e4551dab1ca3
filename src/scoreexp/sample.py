"""``python -m scoreexp.sample ckpt=FILE n=16``: draw pictures from a trained model."""

import sys

from scoreexp.app import run_app

SCHEMA = {
    "ckpt": "str",
    "n": "PositiveInt",
    "seeds": "int | list[int] | None",
    "label": "NonNegativeInt | None",
    "batch_size": "PositiveInt",
    "weights": "Literal['averaged', 'raw']",
    "device": "str",
    "out": "str | None",
    "run_dir": "str",
    "sampler": "Node",
}

if __name__ == "__main__":
    sys.exit(run_app("sample", "scoreexp.sampling:sample", schema=SCHEMA))
