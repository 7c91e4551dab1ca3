"""``python -m scoreexp.evaluate ckpt=FILE metrics=[ssim,frechet]``: measure a trained model's quality."""

import sys
from typing import Any

from omegaconf import DictConfig

from scoreexp.app.early_checks import require_device_name
from scoreexp.app.launch import run_app
from scoreexp.runs.checkpoint_path import require_model_path

SCHEMA = {
    "ckpt": "str",
    "metrics": "list[str] | None",
    "n": "PositiveInt",
    "first_seed": "NonNegativeInt",
    "batch_size": "PositiveInt",
    "sigma": "PositiveFloat | None",
    "split": "Literal['val', 'test']",
    "reference": "Literal['train', 'val', 'test']",
    "reference_n": "PositiveInt | None",
    "png": "bool",
    "seed": "int",
    "trust": "list[str]",
    "weights": "Literal['averaged', 'raw']",
    "device": "str",
    "out": "str | None",
    "run_dir": "str",
    "data": "Any",
    "sampler": "Any",
    "guidance": "Node | None",
    "features": "Node",
}
PROVIDED = {"guidance": {"model"}}


def run(cfg: DictConfig) -> Any:
    """``scoreexp.app.commands.evaluate.evaluate``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_model_path(cfg.ckpt)
    from scoreexp.app.commands.evaluate import evaluate

    return evaluate(cfg)


if __name__ == "__main__":
    sys.exit(run_app("evaluate", "scoreexp.evaluate:run", schema=SCHEMA, provided=PROVIDED))
