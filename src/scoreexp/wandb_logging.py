"""Weights & Biases on request: online when logged in, otherwise offline, and never waiting for input."""

import json
import os
import secrets
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger

from scoreexp.atomic import atomic_write


def logged_in() -> bool:
    """Whether a W&B key is configured (environment, or the user's netrc); asks nothing and contacts no one."""
    import wandb

    return "WANDB_API_KEY" in os.environ or wandb.login(prompt=False, verify=False)


class RunLogger(WandbLogger):
    """One W&B run for one run directory.

    The run's id is kept in the directory (``wandb_id.json``), so a resumed run goes on with the same W&B run; the run is
    finished when training ends, so that the jobs of a sweep do not share one.
    """

    def finalize(self, status: str) -> None:
        super().finalize(status)
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def wandb_logger(
    *,
    run_dir: str,
    run_config: dict[str, Any],
    name: str,
    project: str = "scoreexp",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
) -> RunLogger:
    """The logger behind ``logger=wandb``.

    Args:
        run_dir: the run's directory; W&B's own files go to its ``wandb`` folder.
        run_config: resolved configuration as plain data.
        name: of the experiment.
        project: W&B project.
        entity: W&B user or team; None is the default one.
        mode: ``auto`` is online when logged in and offline otherwise.
    """
    import wandb

    offline = mode == "offline" or (mode == "auto" and not logged_in())
    id_file = Path(run_dir) / "wandb_id.json"
    if id_file.exists():
        run_id = json.loads(id_file.read_text())["id"]
    else:
        run_id = secrets.token_hex(4)
        with atomic_write(id_file) as temporary:
            temporary.write_text(json.dumps({"id": run_id}))
    logger = RunLogger(
        name=f"{name}-{run_config['seed']}",
        save_dir=run_dir,
        id=run_id,
        project=project,
        entity=entity,
        mode="offline" if offline else "online",
        config=run_config,
        group=name,
        resume=None if offline else "allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    if offline:
        print(
            f"W&B offline    send it later with: wandb sync {run_dir}/wandb/offline-run-*-{run_id}",
            flush=True,
        )
    return logger
