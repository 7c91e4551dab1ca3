"""``python -m scoreexp.evaluate ckpt=FILE metrics=[ssim,frechet]``: measure a trained model."""

import sys

from scoreexp.app import run_app

SCHEMA = {
    "ckpt": "str",
    "metrics": "list[str] | None",
    "n": "PositiveInt",
    "first_seed": "NonNegativeInt",
    "batch_size": "PositiveInt",
    "sigma": "PositiveFloat",
    "split": "Literal['val', 'test']",
    "reference": "Literal['train', 'val', 'test']",
    "reference_n": "PositiveInt | None",
    "png": "bool",
    "seed": "int",
    "weights": "Literal['averaged', 'raw']",
    "device": "str",
    "out": "str | None",
    "run_dir": "str",
    "data": "Any",
    "sampler": "Node",
    "features": "Node",
}

if __name__ == "__main__":
    sys.exit(run_app("evaluate", "scoreexp.evaluating:evaluate", schema=SCHEMA))
