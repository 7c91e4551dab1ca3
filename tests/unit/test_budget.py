"""Stopping when the granted seconds are spent."""

from types import SimpleNamespace

import pytest

from scoreexp.app.commands.train import train
from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks import StageTimer, StopAtBudget


def trainer(accumulate=1, elsewhere=False, **seconds):
    timer = StageTimer()
    timer.seconds = {"train": 0.0, "evaluate": 0.0, **seconds}
    return SimpleNamespace(
        callbacks=[timer],
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(
            reduce_boolean_decision=lambda decision, all: (
                (decision and elsewhere) if all else (decision or elsewhere)
            )
        ),
        should_stop=False,
        global_step=7,
    )


def stops(budget, t, batch_idx=0):
    budget.on_train_batch_end(t, None, None, None, batch_idx)
    return t.should_stop


def test_precomputation_and_training_count_and_evaluation_does_not():
    assert not stops(StopAtBudget(seconds=10), trainer(train=6, solve=3.9, evaluate=100))
    budget = StopAtBudget(seconds=10)
    assert stops(budget, trainer(train=6, solve=3, embed=1, evaluate=0))
    assert "10 s" in budget.reason
    assert "step 7" in budget.reason


def test_without_seconds_nothing_stops():
    assert not stops(StopAtBudget(), trainer(train=1e9))


def test_another_rank_that_has_spent_its_seconds_stops_this_one():
    assert stops(StopAtBudget(seconds=10), trainer(train=1, elsewhere=True))


def test_accumulated_steps_are_finished_first():
    assert not stops(StopAtBudget(seconds=1), trainer(train=5, accumulate=2), batch_idx=0)
    assert stops(StopAtBudget(seconds=1), trainer(train=5, accumulate=2), batch_idx=1)


def test_a_larger_budget_forgets_the_old_reason():
    budget = StopAtBudget(seconds=1)
    stops(budget, trainer(train=2))
    same, larger = StopAtBudget(seconds=1), StopAtBudget(seconds=5)
    for other in (same, larger):
        other.load_state_dict(budget.state_dict())
    assert same.reason == budget.reason
    assert larger.reason is None


def test_a_budget_needs_the_timer():
    with pytest.raises(UserError, match="needs the timer"):
        StopAtBudget(seconds=1).setup(SimpleNamespace(callbacks=[]), None, "fit")


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
    import torch
    from conftest import composed
    from hydra.utils import instantiate

    import scoreexp

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
