"""What an offline run has stored is what docs/wandb.md says."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scoreexp.app.commands.train import train
from scoreexp.app.jobs import Job
from scoreexp.app.sweep import write_sweep
from scoreexp.app.wandb_logging import log_report, naming, wandb_logger

pytestmark = pytest.mark.integration

DOCS = Path(__file__).parents[2] / "docs" / "wandb.md"
BLOCK, HEADER, COMPLETE = 32768, 7, (1, 4)  # the file is a LevelDB log after seven bytes of its own


def records(run_dir: Path) -> Iterator:
    """The records of a directory's offline W&B runs, once W&B's own process has written them out."""
    import wandb
    from wandb.proto import wandb_internal_pb2 as protocol

    wandb.teardown()
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        data, position, parts = path.read_bytes(), HEADER, b""
        while position + HEADER <= len(data):
            left = BLOCK - position % BLOCK
            if left < HEADER:
                position += left
                continue
            size, kind = struct.unpack("<HB", data[position + 4 : position + HEADER])
            parts += data[position + HEADER : position + HEADER + size]
            position += HEADER + size
            if kind in COMPLETE:
                record = protocol.Record()
                record.ParseFromString(parts)
                parts = b""
                yield record


def items(message) -> dict:
    return {item.key or item.nested_key[0]: item.value_json for item in message}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.mark.skipif(not DOCS.exists(), reason="the documentation is not part of a wheel")
def test_an_offline_run_holds_what_the_documentation_says(tiny, tmp_path):
    job = Job(
        "photo32_ours+seed_3",
        "scoreexp.train",
        ("experiment=photo32_ours", "seed=3"),
        tmp_path / "sw" / "job",
    )
    write_sweep(tmp_path / "sw", "a sweep", [job], [["experiment=photo32_ours", "seed=3"]])
    overrides = ["experiment=photo32_ours", "seed=3", "data.half=null", "callbacks.monitor.pictures=4"]
    train(tiny(*overrides, "logger=wandb", run="sw/job"))
    stored = list(records(job.folder))
    by_kind = {
        kind: [r for r in stored if r.WhichOneof("record_type") == kind] for kind in ("run", "history")
    }

    run = by_kind["run"][0].run
    assert run.run_id == json.loads((job.folder / "wandb_id.json").read_text())["id"]
    assert (run.project, run.run_group, run.display_name) == ("scoreexp", "a sweep", "photo32_ours+seed_3")
    assert set(run.tags) == {
        "experiment=photo32_ours",
        "model=ScoreEmbedding",
        "data=Photo",
        "embedding=ImageEmbedding",
    }
    config = {key: json.loads(value) for key, value in items(run.config.update).items() if key != "_wandb"}
    assert config == yaml.safe_load((job.folder / "config.yaml").read_text())

    rows = [items(r.history.item) for r in by_kind["history"]]
    logged = {key for row in rows for key in row if not key.startswith("_")}
    documented = dict(
        re.findall(r"^\| `([\w/]+)` \| ([^|]+) \|", DOCS.read_text().partition("## Keys")[2], re.M)
    )
    assert logged == set(documented)
    for key, when in documented.items():
        with_key = [row for row in rows if key in row]
        if when == "always":
            assert len(with_key) == len(rows), key
        elif when.startswith("every"):
            assert with_key == [row for row in rows if "train/loss" in row], key
        elif when == "at evaluations":
            assert with_key == [row for row in rows if "val/ssim" in row], key
        elif when.startswith("at the first evaluation"):
            assert with_key == [row for row in rows if "val/ssim" in row][:1], key
    assert [int(row["trainer/global_step"]) for row in rows] == [1, 2, 2, 3, 4, 4]
    axes = {r.metric.name for r in stored if r.WhichOneof("record_type") == "metric"}
    assert {"trainer/global_step", "time/train", "time/total"} <= axes
    assert [r.exit.exit_code for r in stored if r.WhichOneof("record_type") == "exit"] == [0]


def test_a_run_that_fails_is_finished(tiny, tmp_path):
    import wandb

    with pytest.raises(Exception, match="not finite"):
        train(tiny("logger=wandb", "optimizer.lr=1e30", "model.warmup_steps=0"))
    assert wandb.run is None
    assert [r.exit.exit_code for r in records(tmp_path / "run") if r.WhichOneof("record_type") == "exit"] == [
        1
    ]


CONFIG = {"seed": 1, "model": {"_target_": "m.Model"}, "data": {"_target_": "d.Data"}, "embedding": None}


def test_single_runs_are_grouped_by_experiment(tmp_path):
    assert naming(tmp_path / "run", CONFIG, "toy") == {
        "group": "toy",
        "name": "toy+seed_1",
        "tags": ["experiment=toy", "model=Model", "data=Data", "embedding=none"],
    }
    job = Job("lr_1e-3", "m", (), tmp_path / "lr_1e-3")
    write_sweep(tmp_path, "sweep", [job], [["optimizer.lr=1e-3"]])
    assert naming(job.folder, CONFIG, "toy")["name"] == "toy+lr_1e-3"
    assert naming(job.folder, CONFIG, "toy")["group"] == "sweep"
    assert naming(tmp_path / "another", CONFIG, "toy")["group"] == "toy", "not a job of that sweep"


def test_an_unreachable_server_does_not_stop_the_run(tmp_path, monkeypatch, capsys):
    import wandb

    start = wandb.init

    def refuse(**settings):
        if settings["mode"] == "online":
            raise wandb.errors.CommError("the server does not answer\nat all")
        return start(**settings)

    monkeypatch.setattr(wandb, "init", refuse)
    logger = wandb_logger(run_dir=str(tmp_path), run_config=CONFIG, name="toy", mode="online")
    logger.log_metrics({"val/ssim": 0.5}, 7)
    logger.finalize("success")
    assert "the server does not answer): this run is logged offline" in capsys.readouterr().out
    [row] = [items(r.history.item) for r in records(tmp_path) if r.WhichOneof("record_type") == "history"]
    assert (row["val/ssim"], row["trainer/global_step"]) == ("0.5", "7")


def test_the_report_of_a_comparison_is_an_artifact(tmp_path):
    page, table = tmp_path / "report.html", tmp_path / "results.csv"
    page.write_text("<p>a report</p>")
    table.write_text("method,seconds\n")
    log_report(tmp_path, "mine", [page, table])
    stored = list(records(tmp_path))
    run = next(r.run for r in stored if r.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, run.display_name) == ("mine", "report", "report+mine")
    requests = [r.request for r in stored if r.WhichOneof("record_type") == "request"]
    artifacts = [r.artifact for r in stored if r.WhichOneof("record_type") == "artifact"]
    artifacts += [r.log_artifact.artifact for r in requests if r.WhichOneof("request_type") == "log_artifact"]
    assert [artifact.name for artifact in artifacts] == ["report-mine"]
    assert {entry.path for entry in artifacts[0].manifest.contents} == {"report.html", "results.csv"}
