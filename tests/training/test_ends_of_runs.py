"""How runs end: a budget that is spent, a distance that is reached, a model that needs no training."""

from pathlib import Path

import pytest
import torch
from conftest import composed
from hydra.utils import instantiate

import scoreexp
from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks import StageTimer


def test_a_run_ends_with_its_budget_is_evaluated_there_and_goes_on_with_a_larger_one(
    tiny, tmp_path, monkeypatch, capsys
):
    def ten_seconds_per_step(self, stage):
        self.seconds[stage] += 10.0 if stage == "train" else 1.0

    monkeypatch.setattr(StageTimer, "_book", ten_seconds_per_step)
    endless = ["trainer.max_steps=-1", "trainer.val_check_interval=100"]
    result = train(tiny(*endless, "callbacks.budget.seconds=30"))
    assert "budget of 30 s" in result.status
    assert "step 3" in result.status
    assert "val/ssim" in result.metrics, "the weights of the stop are evaluated"
    again = train(tiny(*endless, "callbacks.budget.seconds=30", "resume=auto"))
    assert "nothing to do" in capsys.readouterr().out
    assert again.status == result.status
    longer = train(tiny(*endless, "callbacks.budget.seconds=60", "resume=auto"))
    assert "budget of 60 s" in longer.status


def test_the_exact_score_needs_no_training_and_its_checkpoint_holds_the_images(tmp_path, capsys):
    overrides = ["experiment=photo32_exact", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]
    cfg = composed("train", *overrides)
    result = train(cfg)
    assert result.metrics["val/ssim_global_confirmed"] == 1
    assert result.seconds["train"] == 0
    assert 0 < result.seconds["evaluate"] < 60, "evaluation is timed from its own start"
    model = scoreexp.load(result.checkpoint)
    data = instantiate(cfg.data)
    data.setup("fit")
    photo = data.split("train").samples(data.train_positions)
    t = torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(model(torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)), t), photo)
    train(composed("train", *overrides, "resume=auto"))
    assert "nothing to do" in capsys.readouterr().out


def test_exact_score_and_networks_with_weights_are_not_mixed_up(tiny):
    with pytest.raises(UserError, match="model=exact_score trains nothing: set network=exact"):
        train(tiny("model=exact_score"))
    cfg = tiny()
    cfg.network = {"_target_": "scoreexp.networks.ExactPosteriorMean"}
    with pytest.raises(UserError, match="no weights to train: set model=exact_score"):
        train(cfg)


FRECHET = [
    "callbacks=fid", "callbacks.distribution.n=4", "callbacks.distribution.batch_size=4", "data.crop=random",
    "callbacks.stop.target=1e9",
]  # fmt: skip


def test_a_distance_of_generated_pictures_stops_a_run(tiny):
    result = train(
        tiny(
            *FRECHET,
            "callbacks.stop.monitor=val/frechet_random_conv_4",
            "callbacks.distribution.every_n_steps=1",
        )
    )
    assert "val/frechet_random_conv_4" in result.status
    assert "reached the target 1e+09 at step 2" in result.status


@pytest.mark.parametrize(
    ("changed", "logs"),
    [
        ([], "val/frechet_random_conv_4$"),
        (["callbacks.distribution=null"], "nothing, set callbacks=fid$"),
        (
            ["callbacks.distribution.metric=precision_recall"],
            "val/precision_random_conv_4, val/recall_random_conv_4$",
        ),
    ],
)
def test_a_distance_that_the_run_does_not_log_is_refused_before_training(tiny, changed, logs):
    cfg = tiny(*FRECHET, *changed, "callbacks.stop.monitor=val/frechet_random_conv_5k")
    with pytest.raises(UserError, match=f"val/frechet_random_conv_5k is not logged by this run: .*{logs}"):
        train(cfg)
    assert not (Path(cfg.run_dir) / "checkpoints").exists() or not any(
        (Path(cfg.run_dir) / "checkpoints").iterdir()
    )
