"""What earlier builds wrote keeps working: checkpoints, configurations and dotted names under ``tests/fixtures``."""

import json
import re
from pathlib import Path

import pytest
import torch

import scoreexp
from scoreexp.core.construct import locate
from scoreexp.core.moves import MOVED, current_name, with_current_names
from scoreexp.core.streams import generator
from scoreexp.runs.checkpoint_file import CheckpointError, read_checkpoint
from scoreexp.runs.model import MODEL_PARTS

CONF = Path(__file__).parents[2] / "conf"
FIXTURES = Path(__file__).parents[1] / "fixtures"
V0_1 = FIXTURES / "v0_1"
EXPECTED = json.loads((V0_1 / "expected.json").read_text())


@pytest.mark.parametrize("name", (V0_1 / "names.txt").read_text().split())
def test_a_name_of_0_1_is_found(name):
    found = locate(name)
    assert getattr(found, "__name__", name.rpartition(".")[2]) == name.rpartition(".")[2]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_checkpoint_of_0_1_gives_what_it_gave(name):
    expected = EXPECTED[name]
    model = scoreexp.load(V0_1 / f"{name}.ckpt")
    t = torch.full((2,), expected["t"], dtype=torch.float64)
    x_t = torch.randn(2, *model.event_shape, generator=generator(0, "fixture"))
    x0_hat = model(x_t, t).double()
    assert x0_hat.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert x0_hat.norm().item() == pytest.approx(expected["norm"], rel=1e-6)
    assert x0_hat.flatten()[:4].tolist() == pytest.approx(expected["first"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_optimiser_of_0_1_finds_its_parameters_in_their_order(name):
    state = read_checkpoint(V0_1 / f"{name}.ckpt")["optimizer_states"][0]["state"]
    parameters = list(scoreexp.load(V0_1 / f"{name}.ckpt").parameters())
    assert [state[i]["exp_avg"].shape for i in range(len(state))] == [p.shape for p in parameters]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_configuration_of_a_checkpoint_names_what_exists(name):
    def targets(node):
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "_target_")
            for value in node.values():
                yield from targets(value)
        elif isinstance(node, list):
            for value in node:
                yield from targets(value)

    found = list(targets(read_checkpoint(V0_1 / f"{name}.ckpt")["scoreexp"]["config"]))
    assert len(found) > 5
    for target in found:
        assert current_name(target) == target
        locate(target)


def test_a_run_of_0_1_goes_on_with_the_yaml_files_of_today():
    """Whether a run is of another model is told by comparing names, so the old ones must move to those of the yaml files."""
    yaml = "\n".join(path.read_text() for path in CONF.rglob("*.yaml"))
    today = set(re.findall(r"_target_: ([\w.]+)", yaml))
    parts = (*MODEL_PARTS, "objective", "time_law", "optimizer", "model")
    for name in EXPECTED:
        config = read_checkpoint(V0_1 / f"{name}.ckpt")["scoreexp"]["config"]
        assert {config[part]["_target_"] for part in parts} <= today, name


@pytest.mark.parametrize("name", ["scoreexp.denoisers.ZetaPrediction", "scoreexp.former.EpsPrediction"])
def test_a_name_that_is_gone_is_answered_with_the_name_and_the_remedy(name, tmp_path):
    saved = torch.load(V0_1 / "ddpm.ckpt", weights_only=True)
    saved["scoreexp"]["config"]["precond"]["_target_"] = name
    torch.save(saved, tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError, match=f"{name}.* load it with th.* (version of scoreexp that|one)"):
        scoreexp.load(tmp_path / "gone.ckpt")


def test_no_name_moves_to_one_that_has_moved_itself():
    for new in MOVED.values():
        assert current_name(new) == new


def test_names_that_stay_are_left_alone():
    node = {
        "_target_": "scoreexp.samplers.DDIM",
        "grid": [{"_target_": "torch.optim.Adam", "x": None}],
        "y": 1,
    }
    assert with_current_names(node) == node
