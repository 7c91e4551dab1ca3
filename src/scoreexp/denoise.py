"""``python -m scoreexp.denoise ckpt=FILE input=PICTURE sigma=0.2``: denoise the user's own pictures."""

import sys
from pathlib import Path
from typing import Any

from scoreexp.app.early_checks import require_device_name, require_input, require_output
from scoreexp.core.callable_module import make_callable
from scoreexp.runs.checkpoint_path import require_checkpoint

SCHEMA = {
    "ckpt": "str",
    "input": "str",
    "output": "str | None",
    "sigma": "PositiveFloat | Literal['auto'] | None",
    "label": "NonNegativeInt | Literal['none'] | None",
    "white_level": "PositiveInt | None",
    "trust": "list[str]",
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
    "sampler": "Any",
}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.denoise.denoise``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_checkpoint(cfg.ckpt)
    source = Path(cfg.input).expanduser()
    require_input(source)
    require_output(source, cfg.output)
    from scoreexp.app.commands.denoise import denoise

    return denoise(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("denoise", "scoreexp.denoise:run", schema=SCHEMA))

make_callable(__name__, "scoreexp.api.denoise.denoise")
