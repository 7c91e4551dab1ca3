"""TensorBoard and MLflow on request: Lightning's own loggers, with the keys and pictures of W&B.

One run directory is one run of theirs, which a resumed run goes on with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from scoreexp.app.wandb_logging import naming, pictures_of
from scoreexp.core.errors import UserError
from scoreexp.system.json_files import read_json, write_json


class _TensorBoard(TensorBoardLogger):
    """Event files in the folder ``tensorboard`` of a run, of which a reader drops what a resumed run logs again."""

    def __init__(self, run_dir: Path, run_config: dict[str, Any]) -> None:
        super().__init__(run_dir, name="", version="tensorboard", default_hp_metric=False)
        self._pictures, self._config = run_dir / "pictures", run_config
        self._began = self._evaluated = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        import numpy as np
        from PIL import Image

        if not self._began and Path(self.log_dir).is_dir():
            self._kwargs["purge_step"] = step
        if not self._began:
            self.experiment.add_text("config", f"```yaml\n{yaml.safe_dump(self._config, sort_keys=False)}```")
            self._kwargs.pop("purge_step", None)
        super().log_metrics({key: value for key, value in metrics.items() if key != "epoch"}, step)
        for key, file in pictures_of(self._pictures, metrics, step or 0, first=not self._evaluated).items():
            with Image.open(file) as picture:
                self.experiment.add_image(key, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
        self._began, self._evaluated = True, self._evaluated or "val/ssim" in metrics

    @rank_zero_only
    def save(self) -> None:
        """The configuration is in ``config.yaml`` of the run."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        self._experiment = None  # a further evaluation opens a further event file


class _MLflow(MLFlowLogger):
    """A run of MLflow whose pictures are artifacts."""

    pictures: Path
    _evaluated = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics({key: value for key, value in metrics.items() if key != "epoch"}, step)
        for key, file in pictures_of(self.pictures, metrics, step or 0, first=not self._evaluated).items():
            self.experiment.log_artifact(self.run_id, str(file), key)
        self._evaluated |= "val/ssim" in metrics


def tensorboard_logger(*, run_dir: str, run_config: dict[str, Any], name: str) -> TensorBoardLogger:
    """The logger behind ``logger=tensorboard``: ``tensorboard --logdir outputs`` shows all runs below a folder.

    Args:
        run_dir: the run's directory; the event files go to its ``tensorboard`` folder.
        run_config: resolved configuration as plain data.
        name: of the experiment; TensorBoard lists a run by its folder.

    Raises:
        UserError: neither tensorboard nor tensorboardX is installed.
    """
    try:
        return _TensorBoard(Path(run_dir), run_config)
    except ModuleNotFoundError as error:
        raise UserError(
            "logger=tensorboard needs tensorboard: pip install 'scoreexp[tensorboard]'"
        ) from error


def mlflow_logger(
    *,
    run_dir: str,
    run_config: dict[str, Any],
    name: str,
    project: str = "scoreexp",
    tracking_uri: str = "sqlite:///mlflow.db",
) -> MLFlowLogger:
    """The logger behind ``logger=mlflow``; the run's id is kept in its directory, as for W&B.

    Args:
        run_dir: the run's directory.
        run_config: resolved configuration as plain data; its values are the parameters of the run.
        name: of the experiment, a tag; runs are named as those of W&B, see ``naming``.
        project: MLflow's experiment.
        tracking_uri: address of a server, or a database file. Pictures of the latter go to ``mlflow`` beside it.

    Raises:
        UserError: mlflow is not installed, or the store cannot be used.
    """
    named, id_file = naming(Path(run_dir), run_config, name), Path(run_dir) / "mlflow_id.json"
    stored = (read_json(id_file) or {}).get("id")
    file = tracking_uri.removeprefix("sqlite:///") if tracking_uri.startswith("sqlite:///") else None
    try:
        import mlflow

        logger = _MLflow(
            experiment_name=project,
            run_name=named["name"],
            tracking_uri=tracking_uri,
            tags={"group": named["group"], **dict(tag.split("=", 1) for tag in named["tags"])},
            artifact_location=None if file is None else (Path(file).absolute().parent / "mlflow").as_uri(),
            run_id=stored,
        )
        run_id = logger.run_id
    except ModuleNotFoundError as error:
        raise UserError("logger=mlflow needs mlflow: pip install 'scoreexp[mlflow]'") from error
    except mlflow.exceptions.MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"logger.mlflow.tracking_uri={tracking_uri} cannot be used ({reason})") from error
    logger.pictures = Path(run_dir) / "pictures"
    if stored is None:  # parameters of a run do not change
        write_json(id_file, {"id": run_id})
        logger.log_hyperparams(run_config)
    return logger
