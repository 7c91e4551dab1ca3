"""Every recipe of conf/ trains two steps with the image experiment; a new yaml is tested without editing this."""

import pytest
import torch
from conftest import GIVEN, composed
from test_training import assert_same_training_state, saved

import scoreexp
from scoreexp.app.commands.train import train
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks import reconstruct
from scoreexp.runs.checkpoint_file import read_checkpoint

pytestmark = pytest.mark.integration

RECIPES = sorted(path.stem for path in (conf_dir() / "recipe").glob("*.yaml"))


def run(recipe, folder, steps, *overrides):
    network = "network.network" if recipe == "mean_flow" else "network"  # of two times, around another
    return train(
        composed(
            "train",
            "experiment=photo32_ddpm",
            f"recipe={recipe}",
            "debug=fast",
            "data.size=16",
            f"{network}.channels=16",
            "trainer.accelerator=cpu",
            f"trainer.max_steps={steps}",
            f"run_dir={folder}",
            *overrides,
        )
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return run("edm", folder, 1).checkpoint


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_two_steps_and_its_checkpoint_is_read(recipe, tmp_path, request):
    given = [
        f"{one.partition('=')[0]}={request.getfixturevalue('pretrained')}"
        for one in GIVEN.get(f"recipe={recipe}", ())
    ]
    few = ["objective.pairs=4", "objective.together=4"] if recipe == "reflow" else []
    result = run(recipe, tmp_path, 2, *given, *few)
    assert result.status == "finished"
    assert 0 <= result.metrics["val/ssim"] <= 1
    assert scoreexp.load(result.checkpoint).event_shape == (3, 16, 16)


@pytest.mark.slow
def test_what_a_recipe_learns_and_averages_is_resumed_bitwise(tmp_path):
    run("edm2", tmp_path / "whole", 4)
    run("edm2", tmp_path / "parts", 2)
    run("edm2", tmp_path / "parts", 4, "resume=auto")
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert_same_training_state(whole, parts)
    assert whole["callbacks"]["PowerAverages"].keys() == {"0.05", "0.1"}
    assert whole["state_dict"]["objective.weight"].abs().max() > 0, "the uncertainty is trained"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["schedule_free", "soap"])
def test_what_an_optimiser_keeps_is_resumed_bitwise(optimizer, tmp_path):
    choice = f"optimizer={optimizer}"
    run("flow", tmp_path / "whole", 4, choice)
    run("flow", tmp_path / "parts", 2, choice)
    run("flow", tmp_path / "parts", 4, choice, "resume=auto")
    assert_same_training_state(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


def test_an_average_of_another_width_is_a_checkpoint(tmp_path):
    run("edm2", tmp_path, 4, "callbacks.averages.every_n_steps=1")
    folder = tmp_path / "checkpoints" / "averages"
    assert len(list(folder.iterdir())) == 8
    reconstruct(folder, tmp_path / "again.ckpt", width=0.1, step=3)
    kept = read_checkpoint(folder / "width_0.1_step_00000003.ckpt")["state_dict"]
    again = read_checkpoint(tmp_path / "again.ckpt")["state_dict"]
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-5)
    assert scoreexp.load(tmp_path / "again.ckpt").event_shape == (3, 16, 16)


def test_a_run_without_these_averages_cannot_go_on_with_them(tmp_path):
    run("edm2", tmp_path, 2, "callbacks.averages=null")
    with pytest.raises(
        UserError, match=r"the run that is resumed kept the averages \[\], not \['0.05', '0.1'\]"
    ):
        run("edm2", tmp_path / "next", 4, f"ckpt={tmp_path / 'checkpoints' / 'last.ckpt'}")
