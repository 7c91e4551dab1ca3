"""The command ``compress``: a checkpoint that other commands take, a table, and refusals."""

import json

import pytest
import torch

from scoreexp.app.launch import run_app
from scoreexp.compress import SCHEMA
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.model import build_denoiser, load, model_record
from scoreexp.sample import SCHEMA as OF_SAMPLE


@pytest.fixture
def path(tmp_path):
    return checkpoint(tmp_path, {"_target_": "scoreexp.networks.MLP", "width": 64, "blocks": 1})


def checkpoint(folder, network, data=None, shape=(2,)):
    torch.manual_seed(0)
    config = {
        "network": network,
        "precond": {"_target_": "scoreexp.denoisers.VPrediction"},
        "schedule": {"_target_": "scoreexp.schedules.VP"},
        "sampler": {
            "_target_": "scoreexp.samplers.DDIM",
            "grid": {"_target_": "scoreexp.samplers.UniformGrid", "steps": 5},
        },
        "data": data or {"_target_": "scoreexp.data.SwissRoll", "points": 50},
    }
    record = model_record(config, shape, None)
    model = build_denoiser(record)
    for parameter in model.parameters():  # parts of it start at 0
        torch.nn.init.normal_(parameter, std=0.1)
    file = folder / "best.ckpt"
    state = {f"denoiser.{key}": value for key, value in model.state_dict().items()}
    write_checkpoint({"state_dict": state, "scoreexp": record}, file)
    return file


def compressed(path, *overrides):
    arguments = [f"ckpt={path}", "n=8", "measured_on=8", "device=cpu", *overrides]
    return run_app("compress", "scoreexp.compress:run", schema=SCHEMA, argv=arguments)


@pytest.mark.parametrize("calibration", ["forward", "reverse"])
def test_the_checkpoint_is_small_close_and_drawn_from_as_any_other(path, calibration):
    assert compressed(path, f"calibration={calibration}") == 0
    small = path.with_name("best_8bit.ckpt")
    table = json.loads(small.with_suffix(".json").read_text())
    assert table["bytes"]["after"] < 0.4 * table["bytes"]["before"]
    errors = [row["value"] for row in table["relative squared error of the score"].values()]
    assert 0 < max(errors) < 0.1
    assert all(table["seconds of these samples"][when] > 0 for when in ("before", "after"))
    assert load(small).event_shape == (2,)
    arguments = [f"ckpt={small}", f"out={path.parent / 'drawn'}", "n=3", "device=cpu"]
    assert run_app("sample", "scoreexp.sample:run", schema=OF_SAMPLE, argv=arguments) == 0


def test_fine_tuning_lowers_the_loss_that_is_stated(path):
    assert compressed(path, "bits=3", "out=" + str(path.with_name("plain.ckpt"))) == 0
    tuned = path.with_name("tuned.ckpt")
    assert compressed(path, "bits=3", "finetune_steps=100", f"out={tuned}") == 0
    said = json.loads(tuned.with_suffix(".json").read_text())["fine-tuning"]
    assert said["loss after"] < said["loss before"]
    states = [load(path.with_name(name)).state_dict() for name in ("plain.ckpt", "tuned.ckpt")]
    assert {k.split(".")[-1] for k, v in states[0].items() if not torch.equal(v, states[1][k])} == {
        "weight_scale"
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["bits=1"], "bits=1 must be"),
        (["bits=17"], "bits=17 must be"),
        (["calibration=none"], "calibration=none"),
        (["out=small.pt"], "end it with .ckpt"),
    ],
)
def test_what_is_wrong_is_said(path, capsys, overrides, said):
    assert compressed(path, *overrides) == 1
    assert said in capsys.readouterr().err


def test_nothing_is_overwritten_or_compressed_twice(path, capsys):
    assert compressed(path) == 0
    assert compressed(path) == 1
    assert "exists: give another name" in capsys.readouterr().err
    assert compressed(path.with_name("best_8bit.ckpt")) == 1
    assert "compressed already" in capsys.readouterr().err


def test_arrays_that_stay_as_they_are_are_named(tmp_path, capsys):
    path = checkpoint(tmp_path, {"_target_": "scoreexp.networks.RandomFeatures", "width": 16})
    assert compressed(path) == 0
    table = json.loads(path.with_name("best_8bit.json").read_text())
    assert table["bytes of arrays that stay as they are"] == {"network.network.frequencies": 16 * 2 * 4}
    assert "network.network.frequencies: 128 bytes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("network", "data", "shape", "said"),
    [
        ({"_target_": "scoreexp.networks.ExactPosteriorMean"}, None, (2,), "no convolution"),
        (
            {"_target_": "scoreexp.networks.MagnitudePreservingUNet", "channels": 8, "multipliers": [1]},
            None,
            (1, 8, 8),
            "has weights that cannot be quantised: noise_embedding.weight, stem.weight",
        ),
        (
            {"_target_": "scoreexp.networks.MLP", "width": 8, "blocks": 1},
            {"_target_": "scoreexp.data.MNIST", "root": "/nowhere"},
            (1, 28, 28),
            "data.root=/nowhere",
        ),
    ],
)
def test_what_cannot_be_compressed_leaves_no_file(tmp_path, capsys, network, data, shape, said):
    path = checkpoint(tmp_path, network, data, shape)
    assert compressed(path, f"calibration={'forward' if data else 'random'}") == 1
    assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]
