"""Going on from another run's checkpoint, and beginning with its weights."""

import csv
import json
import os
import shutil

import pytest
import torch
from conftest import TINY, composed

from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.lit.checkpoint import CheckpointError, read_checkpoint

SIX = [
    "trainer.max_steps=6",
    "trainer.val_check_interval=2",
    "network.dropout=0.1",
    "data.crop=random",
    "callbacks.monitor.pictures=0",
]


def saved(run, name="last.ckpt"):
    return read_checkpoint(run / "checkpoints" / name)


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def run_of_four(tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "four"
    train(composed("train", *TINY, *SIX, "trainer.max_steps=4", f"run_dir={run}"))
    return run


@pytest.fixture
def four(run_of_four, tmp_path):
    """The last checkpoint of a run of 4 steps."""
    shutil.copytree(run_of_four, tmp_path / "four")
    return tmp_path / "four" / "checkpoints" / "last.ckpt"


def test_another_folder_goes_on_as_the_run_itself_would(four, tiny, tmp_path, capsys):
    train(tiny(*SIX, run="whole"))
    before = {path: path.read_bytes() for path in (tmp_path / "four").rglob("*") if path.is_file()}
    train(tiny(*SIX, f"ckpt={four}", run="on"))
    assert f"resumed        from step 4, {four}" in capsys.readouterr().out
    assert same(saved(tmp_path / "on")["state_dict"], saved(tmp_path / "whole")["state_dict"])
    assert rows(tmp_path / "on") == rows(tmp_path / "whole")
    metrics = [
        json.loads((tmp_path / run / "metrics.json").read_text())["metrics"] for run in ("on", "whole")
    ]
    assert metrics[0]["best/ssim"] == metrics[1]["best/ssim"]
    assert saved(tmp_path / "on", "best.ckpt")["global_step"] == metrics[0]["best/step"]
    assert {path: path.read_bytes() for path in before} == before, "the other run is as it was"
    with pytest.raises(UserError, match="already holds a run"):
        train(tiny(*SIX, f"ckpt={four}", run="on"))
    os.remove(four)
    train(tiny(*SIX, "trainer.max_steps=7", f"ckpt={four}", "resume=auto", run="on"))
    assert saved(tmp_path / "on")["global_step"] == 7, "from its own checkpoint, repeated after a kill"


def test_a_checkpoint_alone_is_enough(four, tiny, tmp_path):
    alone = tmp_path / "copy.ckpt"
    os.replace(four, alone)
    train(tiny(*SIX, f"ckpt={alone}", run="on"))
    assert saved(tmp_path / "on")["global_step"] == 6
    assert [row["step"] for row in rows(tmp_path / "on")] == ["5", "6"]
    metrics = json.loads((tmp_path / "on" / "metrics.json").read_text())["metrics"]
    assert metrics["best/step"] == 6, "no better checkpoint is left"
    assert saved(tmp_path / "on", "best.ckpt")["global_step"] == 6


def test_a_later_best_checkpoint_stays_behind(four, tiny, tmp_path):
    early = tmp_path / "four" / "checkpoints" / "early.ckpt"
    os.replace(tmp_path / "four" / "checkpoints" / "previous.ckpt", early)
    assert read_checkpoint(early)["global_step"] == 2
    (tmp_path / "four" / "checkpoints" / "best.ckpt").write_bytes(four.read_bytes())
    train(tiny(*SIX, "trainer.max_steps=3", "trainer.val_check_interval=9", f"ckpt={early}", run="on"))
    assert saved(tmp_path / "on", "best.ckpt")["global_step"] == 3
    assert [row["step"] for row in rows(tmp_path / "on")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["network.channels=32"], "another network: repeat the configuration beside it .* init_from instead of ckpt"),
        (["optimizer.lr=0.5"], "another optimizer"),
        (["data.size=32"], r"samples of shape \[3, 16, 16\], the data now have \[3, 32, 32\]"),
        (["trainer.max_steps=4"], "has trained 4 steps: set trainer.max_steps above that"),
        (["init_from=x.ckpt"], "ckpt and init_from are both set"),
    ],
)  # fmt: skip
def test_what_cannot_go_on_is_refused_without_a_trace(overrides, match, four, tiny, tmp_path):
    with pytest.raises(UserError, match=match):
        train(tiny(*SIX, f"ckpt={four}", *overrides, run="on"))
    assert not (tmp_path / "on").exists()


def test_weights_are_taken_and_the_rest_begins_anew(four, tiny, tmp_path, capsys):
    taken = {
        k.removeprefix("averaged."): v
        for k, v in saved(tmp_path / "four")["state_dict"].items()
        if "averaged" in k
    }
    frozen = ["optimizer.lr=1e-30", "network.dropout=0", "schedule=vp", "trainer.max_steps=1"]
    train(tiny(*frozen, f"init_from={four}", run="tuned"))
    assert "warning" not in capsys.readouterr().out
    found = saved(tmp_path / "tuned")
    assert found["global_step"] == 1
    for prefix in ("denoiser.", "averaged."):
        state = {k.removeprefix(prefix): v for k, v in found["state_dict"].items() if k.startswith(prefix)}
        for name, value in taken.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=0)


def test_weights_for_another_output_are_taken_with_a_warning(four, tiny, capsys):
    train(tiny("precond=v", "trainer.max_steps=1", f"init_from={four}", run="tuned"))
    assert "its network was trained for EpsPrediction, this run has VPrediction" in capsys.readouterr().out


def test_weights_of_another_network_are_refused(four, tiny, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"init_from .* does not fit this run's network \(size mismatch"
    ):
        train(tiny("network.channels=32", f"init_from={four}", run="tuned"))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        train(tiny("init_from=nowhere.ckpt", run="tuned"))
    assert not (tmp_path / "tuned").exists()
