"""Weights & Biases on request: online when logged in, otherwise offline, and never waiting for input."""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from scoreexp.app.sweep import read_sweep
from scoreexp.system.json_files import read_json, write_json

SECONDS = ("time/train", "time/total")  # logged beside the metrics, so that they can be drawn over seconds


def logged_in() -> bool:
    """Whether a W&B key is configured (environment, or the user's netrc); asks nothing and contacts no one."""
    import wandb

    return "WANDB_API_KEY" in os.environ or wandb.login(prompt=False, verify=False)


class RunLogger(WandbLogger):
    """One W&B run for one run directory.

    The run is finished when training ends, well or not, so the jobs of a process do not share one. If W&B cannot be
    reached when it starts, it is logged offline. Images are logged beside the evaluation that made them.
    """

    pictures: Path

    @property
    def experiment(self) -> Any:
        import wandb

        fresh = self._experiment is None
        try:
            run = super().experiment
        except wandb.errors.Error as error:
            print(
                f"warning: W&B cannot be reached ({first_line(error)}): this run is logged offline",
                flush=True,
            )
            self._wandb_init |= {"mode": "offline", "resume": None}
            run = super().experiment
        if fresh and self._experiment is not None:  # not on the other ranks of several
            for axis in SECONDS:
                run.define_metric(axis)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics({**metrics, **self._pictures_of(metrics, step or 0)}, step)

    def _pictures_of(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        import wandb

        files = pictures_of(self.pictures, metrics, step, first=not self._before_logged)
        self._before_logged |= "val/ssim" in metrics
        return {key: wandb.Image(str(file)) for key, file in files.items()}

    _before_logged = False

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None  # a further evaluation goes on with the same run


def pictures_of(folder: Path, metrics: Mapping[str, Any], step: int, *, first: bool) -> dict[str, Path]:
    """What was drawn with an evaluation and, with the first one, before training: files of ``folder`` by key."""
    files = {"pictures/denoised": f"step_{step:07d}.png"} if "val/ssim" in metrics else {}
    if files and first:
        files |= {"pictures/score_field": "score_field.png", "pictures/embedded": "embedded.png"}
    return {key: folder / name for key, name in files.items() if (folder / name).exists()}


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def naming(run_dir: Path, run_config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How W&B lists a run: ``group``, ``name`` and ``tags``, see ``docs/wandb.md``.

    A run whose directory ``sweep.json`` of a folder above lists belongs to that sweep.
    """
    group, label = name, f"{name}+seed_{run_config['seed']}"
    for folder in list(run_dir.parents)[:3]:
        sweep = read_sweep(folder)
        job = next((job for job in sweep.get("jobs", []) if folder / job["folder"] == run_dir), None)
        if job is not None:
            named = any(override.startswith("experiment=") for override in job["swept"])
            group, label = sweep["name"], job["name"] if named else f"{name}+{job['name']}"
            break
    tags = [f"experiment={name}"]
    for part in ("model", "data", "embedding"):
        node = run_config.get(part)
        tags.append(f"{part}={node['_target_'].rpartition('.')[2] if node else 'none'}")
    return {"group": group, "name": label, "tags": [tag[:64] for tag in tags]}


def wandb_logger(
    *,
    run_dir: str,
    run_config: dict[str, Any],
    name: str,
    project: str = "scoreexp",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
) -> RunLogger:
    """The logger behind ``logger=wandb``; the run's id is kept in its directory, so a resumed run goes on with the same one.

    Args:
        run_dir: the run's directory; W&B's own files go to its ``wandb`` folder.
        run_config: resolved configuration as plain data.
        name: of the experiment.
        project: W&B project.
        entity: W&B user or team; None is the default one.
        mode: ``auto`` is online when logged in and offline otherwise.
    """
    import wandb

    offline, run_id = _is_offline(mode), _run_id(Path(run_dir))
    logger = RunLogger(
        **naming(Path(run_dir), run_config, name),
        save_dir=run_dir,
        id=run_id,
        project=project,
        entity=entity,
        mode="offline" if offline else "online",
        config=run_config,
        resume=None if offline else "allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    logger.pictures = Path(run_dir) / "pictures"
    if offline:
        _say_offline(Path(run_dir), run_id)
    return logger


def log_report(
    folder: Path,
    name: str,
    files: Sequence[Path],
    *,
    project: str = "scoreexp",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
) -> None:
    """Log the report of a comparison as an artifact of a W&B run of its own, in the group of its runs.

    Args:
        folder: of the comparison.
        name: of the comparison, its runs' group.
        files: the report's files.
        project, entity, mode: as for ``wandb_logger``.
    """
    import wandb

    offline, run_id = _is_offline(mode), _run_id(folder)
    try:
        with wandb.init(
            dir=folder,
            id=run_id,
            name=f"report+{name}",
            group=name,
            job_type="report",
            project=project,
            entity=entity,
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
            settings=wandb.Settings(silent=True, console="off"),
        ) as run:
            artifact = wandb.Artifact(f"report-{re.sub('[^A-Za-z0-9_.-]', '_', name)}", type="report")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
    except wandb.errors.Error as error:  # the report itself is on disk
        print(f"warning: W&B cannot be reached ({first_line(error)}): the report is not logged", flush=True)
        return
    if offline:
        _say_offline(folder, run_id)


def _is_offline(mode: str) -> bool:
    told = os.environ.get("WANDB_MODE") == "offline"
    return mode == "offline" or (mode == "auto" and (told or not logged_in()))


def _run_id(folder: Path) -> str:
    """The id of a folder's W&B run, kept in it."""
    id_file = folder / "wandb_id.json"
    if stored := read_json(id_file):
        return str(stored["id"])
    run_id = secrets.token_hex(4)
    write_json(id_file, {"id": run_id})
    return run_id


def _say_offline(folder: Path, run_id: str) -> None:
    print(
        f"W&B offline    upload it later with: wandb sync {folder}/wandb/offline-run-*-{run_id}", flush=True
    )
