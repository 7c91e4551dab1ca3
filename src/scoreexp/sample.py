"""``python -m scoreexp.sample ckpt=FILE n=16``: draw new samples from a trained model."""

import sys
from typing import Any

from scoreexp.app.early_checks import require_device_name, seeds_of
from scoreexp.core.callable_module import make_callable
from scoreexp.runs.checkpoint_path import require_model_path

SCHEMA = {
    "ckpt": "str",
    "n": "PositiveInt | None",
    "seeds": "int | list[int] | None",
    "label": "NonNegativeInt | Literal['none'] | None",
    "trust": "list[str]",
    "batch_size": "PositiveInt",
    "weights": "Literal['averaged', 'raw']",
    "device": "str",
    "out": "str | None",
    "run_dir": "str",
    "sampler": "Node",
    "guidance": "Node | None",
}
PROVIDED = {"guidance": {"model"}}


def run(cfg: Any) -> Any:
    """``scoreexp.app.commands.sample.sample``, after what can be refused without torch."""
    require_device_name(cfg.device)
    require_model_path(cfg.ckpt)
    seeds_of(cfg.n, cfg.seeds)
    from scoreexp.app.commands.sample import sample

    return sample(cfg)


if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("sample", "scoreexp.sample:run", schema=SCHEMA, provided=PROVIDED))

make_callable(__name__, "scoreexp.api.sample.sample")
