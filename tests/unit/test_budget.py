"""Stopping when the granted seconds are spent."""

from types import SimpleNamespace

import pytest

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
