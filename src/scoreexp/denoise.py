"""``python -m scoreexp.denoise input=IMAGE``: denoise images of your own."""

import sys
from typing import Any

from scoreexp.app.early_checks import require_device_name, require_input, require_model, require_output
from scoreexp.core.callable_module import make_callable

SCHEMA = {
    **dict.fromkeys(("ckpt", "output", "dead"), "str | None"),
    "input": "str",
    "sigma": "PositiveFloat | Literal['auto'] | None",
    "label": "NonNegativeInt | Literal['none'] | None",
    "white_level": "PositiveInt | None",
    "window": "list[float] | None",
    "trust": "list[str]",
    "tile": "PositiveInt | Literal['auto'] | None",
    "overlap": "NonNegativeInt",
    "weights": "Literal['averaged', 'raw']",
    "seed": "int",
    "device": "str",
    **dict.fromkeys(("volume", "strip", "residual"), "bool | None"),
    "intermediate": "NonNegativeInt",
    **dict.fromkeys(("gif", "overwrite"), "bool"),
    "run_dir": "str",
    "sampler": "Any",
    **dict.fromkeys(("restorer", "noise", "guidance"), "Node | None"),
}
PROVIDED = {"guidance": {"model"}}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.denoise.denoise``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_model(cfg.ckpt)
    require_output(require_input(cfg.input), cfg.output)
    from hydra.core.hydra_config import HydraConfig

    from scoreexp.app.commands.denoise import denoise

    return denoise(cfg, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("denoise", "scoreexp.denoise:run", schema=SCHEMA, provided=PROVIDED))

make_callable(__name__, "scoreexp.api.denoise.denoise")
