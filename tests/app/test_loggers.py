"""TensorBoard and MLflow hold what metrics.csv holds, under the keys of W&B, read back by their own readers."""

import csv
import sys

import pytest

from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError

pytestmark = pytest.mark.integration

PICTURES = ["callbacks.monitor.pictures=1", "trainer.val_check_interval=2"]


def table(folder) -> dict[tuple[str, int], float]:
    """The values of metrics.csv by key and step."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (key, int(row["step"])): float(value)
        for row in rows
        for key, value in row.items()
        if key != "step" and value
    }


def test_tensorboard_has_the_table_and_the_pictures_once_also_after_a_resume(tiny, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (4, 8):
        train(tiny("logger=tensorboard", *PICTURES, f"trainer.max_steps={steps}", "resume=auto"))
    events = reader.EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    found = {(key, e.step): e.value for key in events.Tags()["scalars"] for e in events.Scalars(key)}
    wanted = table(tmp_path / "run")
    assert set(found) == set(wanted)
    assert found == pytest.approx(wanted, rel=1e-6)
    assert [e.step for e in events.Scalars("val/ssim")] == [2, 4, 6, 8]
    assert [e.step for e in events.Images("pictures/denoised")] == [2, 4, 6, 8]


def test_mlflow_has_the_table_and_the_pictures_in_one_run_also_after_a_resume(tiny, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for steps in (4, 8):
        overrides = ["logger=mlflow", f"logger.mlflow.tracking_uri={uri}", f"trainer.max_steps={steps}"]
        train(tiny(*overrides, *PICTURES, "resume=auto"))
    client = mlflow.MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("scoreexp").experiment_id])
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    wanted = table(tmp_path / "run")
    assert {(key, m.step) for key in history for m in history[key]} == set(wanted)
    assert {(key, m.step): m.value for key in history for m in history[key]} == pytest.approx(wanted)
    assert run.info.status == "FINISHED"
    assert (run.info.run_name, run.data.tags["group"]) == ("train+seed_0", "train")
    assert run.data.params["data/size"] == "16"
    pictures = client.list_artifacts(run.info.run_id, "pictures/denoised")
    assert [file.path.rpartition("/")[2] for file in pictures] == [f"step_{k:07d}.png" for k in (2, 4, 6, 8)]


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_without_the_package_the_remedy_is_named(tiny, monkeypatch, logger):
    import pytorch_lightning.loggers.mlflow
    import pytorch_lightning.loggers.tensorboard

    (tensorboard,) = (
        sys.modules[base.__module__]
        for base in pytorch_lightning.loggers.tensorboard.TensorBoardLogger.__bases__
        if base is not pytorch_lightning.loggers.logger.Logger
    )
    for module, flag in (
        (tensorboard, "_TENSORBOARD_AVAILABLE"),
        (tensorboard, "_TENSORBOARDX_AVAILABLE"),
        (pytorch_lightning.loggers.mlflow, "_MLFLOW_AVAILABLE"),
    ):
        monkeypatch.setattr(module, flag, False)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        UserError, match=rf"logger={logger} needs {logger}: pip install 'scoreexp\[{logger}\]'"
    ):
        train(tiny(f"logger={logger}"))
