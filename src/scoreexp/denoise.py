"""``python -m scoreexp.denoise ckpt=FILE input=PICTURE sigma=0.2``: denoise the user's own pictures."""

import sys

from scoreexp.app import run_app

SCHEMA = {
    "ckpt": "str",
    "input": "str",
    "output": "str | None",
    "sigma": "PositiveFloat | Literal['auto']",
    "tile": "PositiveInt | Literal['auto'] | None",
    "overlap": "NonNegativeInt",
    "weights": "Literal['averaged', 'raw']",
    "seed": "int",
    "device": "str",
    "strip": "bool",
    "intermediate": "NonNegativeInt",
    "gif": "bool",
    "overwrite": "bool",
    "run_dir": "str",
    "sampler": "Node",
}

if __name__ == "__main__":
    sys.exit(run_app("denoise", "scoreexp.denoising:denoise", schema=SCHEMA))
