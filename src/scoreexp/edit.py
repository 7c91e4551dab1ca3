"""``python -m scoreexp.edit ckpt=FILE input=IMAGE to=3``: edit an image, to another class or on the way to another image."""

import sys
from typing import Any

from scoreexp.app.early_checks import require_device_name, require_input
from scoreexp.runs.checkpoint_path import require_model_path

SCHEMA = {
    "ckpt": "str",
    "input": "str",
    "other": "str | None",
    "label": "NonNegativeInt | Literal['none'] | None",
    "to": "NonNegativeInt | None",
    "out": "str | None",
    "trust": "list[str]",
    "weights": "Literal['averaged', 'raw']",
    "seed": "int",
    "device": "str",
    "run_dir": "str",
    "editor": "Node",
    "guidance": "Node | None",
}
PROVIDED = {"guidance": {"model"}}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.edit.edit``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_model_path(cfg.ckpt)
    for source in filter(None, (cfg.input, cfg.other)):
        require_input(source)
    from scoreexp.app.commands.edit import edit

    return edit(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("edit", "scoreexp.edit:run", schema=SCHEMA, provided=PROVIDED))
