"""``python -m scoreexp.diagnose ckpt=FILE``: find out what a score model knows."""

import sys
from typing import Any

from scoreexp.app.early_checks import require_device_name
from scoreexp.core.callable_module import make_callable
from scoreexp.runs.checkpoint_path import require_checkpoint

SCHEMA = {
    "ckpt": "str",
    "other": "str | None",
    "samples": "AtLeastTwo",
    "n": "AtLeastTwo",
    "diti_steps": "NonNegativeInt",
    "levels": "list[FinitePositiveFloat] | None",
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


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.diagnose.diagnose``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_checkpoint(cfg.ckpt)
    if cfg.other is not None:
        require_checkpoint(cfg.other)
    from scoreexp.app.commands.diagnose import diagnose

    return diagnose(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("diagnose", "scoreexp.diagnose:run", schema=SCHEMA))

make_callable(__name__, "scoreexp.api.diagnose.diagnose")
