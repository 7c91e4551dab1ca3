"""``python -m scoreexp.train experiment=NAME``: train a score model and evaluate it by denoising."""

import sys

from scoreexp.core.callable_module import make_callable

SCHEMA = {
    "name": "str",
    "seed": "int",
    "run_dir": "str",
    "resume": "Literal['never', 'auto']",
    "ckpt": "str | None",
    "init_from": "str | None",
    "dry_run": "bool",
    "data": "Node",
    "embedding": "Node | None",
    "schedule": "Node",
    "precond": "Node",
    "network": "Node",
    "objective": "Node",
    "time_law": "Node",
    "optimizer": "Node",
    "model": "Node",
    "sampler": "Node",
    "callbacks": "Nodes",
    "trainer": "Node",
    "logger": "Nodes",
}
PROVIDED = {
    "network": {"event_shape", "num_classes"},
    "optimizer": {"params"},
    "model": {"denoiser", "objective", "time_law", "optimizer", "seed"},
    "trainer": {"callbacks", "logger", "plugins", "default_root_dir"},
    "logger.csv": {"path"},
    **{f"logger.{key}": {"run_dir", "run_config", "name"} for key in ("wandb", "tensorboard", "mlflow")},
}

if __name__ == "__main__":
    from scoreexp.app.launch import run_app

    sys.exit(run_app("train", "scoreexp.app.commands.train:train", schema=SCHEMA, provided=PROVIDED))

make_callable(__name__, "scoreexp.api.train.train")
