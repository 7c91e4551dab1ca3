"""``python -m scoreexp.convert in=MODEL out=FILE``: convert models of other libraries, or checkpoints for them."""

import sys
from typing import Any

SCHEMA = {
    "in": "str | None",
    "ckpt": "str | None",
    "to": "Literal['scoreexp', 'diffusers', 'onnx', 'torch_export']",
    "out": "str | None",
    "weights": "Literal['averaged', 'raw']",
    "trust": "list[str]",
    "overwrite": "bool",
    "run_dir": "str",
}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.convert.convert``, after what can be refused without torch."""
    from scoreexp.app.early_checks import require_one_model

    require_one_model(cfg)
    from scoreexp.app.commands.convert import convert

    return convert(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("convert", "scoreexp.convert:run", schema=SCHEMA))
