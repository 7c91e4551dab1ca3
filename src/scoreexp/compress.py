"""``python -m scoreexp.compress ckpt=FILE bits=8``: store a trained model in fewer bits."""

import sys
from typing import Any

from omegaconf import DictConfig

from scoreexp.app.early_checks import require_device_name
from scoreexp.app.launch import run_app
from scoreexp.runs.checkpoint_path import require_checkpoint

SCHEMA = {
    "ckpt": "str",
    "bits": "Annotated[int, ('>=', 2), ('<=', 16)]",
    "calibration": "Literal['random', 'raw', 'forward', 'reverse']",
    "n": "AtLeastTwo",
    "measured_on": "AtLeastTwo",
    "finetune_steps": "NonNegativeInt",
    "seed": "int",
    "batch_size": "PositiveInt",
    "trust": "list[str]",
    "weights": "Literal['averaged', 'raw']",
    "device": "str",
    "out": "str | None",
    "run_dir": "str",
    "data": "Any",
    "sampler": "Any",
}


def run(cfg: DictConfig) -> Any:
    """``scoreexp.app.commands.compress.compress``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_checkpoint(cfg.ckpt)
    from scoreexp.app.commands.compress import compress

    return compress(cfg)


if __name__ == "__main__":
    sys.exit(run_app("compress", "scoreexp.compress:run", schema=SCHEMA))
