"""``python -m scoreexp.restore input=IMAGE task=deblur``: restore damaged images of your own."""

import sys
from typing import Any

from scoreexp.app import early_checks as check
from scoreexp.core.callable_module import make_callable

SCHEMA = {
    "ckpt": "str | None",
    "input": "str",
    "output": "str | None",
    "simulate": "bool",
    **dict.fromkeys(("reference", "mask", "kernel"), "str | None"),
    "sigma": "NonNegativeFloat | None",
    "label": "NonNegativeInt | Literal['none'] | None",
    "tile": "PositiveInt | Literal['auto'] | None",
    "overlap": "NonNegativeInt",
    "white_level": "PositiveInt | None",
    "trust": "list[str]",
    "weights": "Literal['averaged', 'raw']",
    "seed": "int",
    "device": "str",
    **dict.fromkeys(("strip", "overwrite"), "bool"),
    "run_dir": "str",
    **dict.fromkeys(("task.operator", "task.noise"), "Node"),
    **dict.fromkeys(("restorer", "guidance"), "Node | None"),
}
PROVIDED = {"guidance": {"model"}, "task.operator": {"size"}}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.restore.restore``, after what can be refused without torch."""
    check.require_task(cfg)
    check.require_device_name(cfg.device)
    check.require_model(cfg.ckpt)
    check.require_output(check.require_input(cfg.input), cfg.output)
    check.require_files(cfg, "reference", "mask", "kernel")
    from scoreexp.app.commands.restore import restore

    return restore(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("restore", "scoreexp.restore:run", schema=SCHEMA, provided=PROVIDED))

make_callable(__name__, "scoreexp.api.restore.restore")
