"""Stopping on a confirmed target."""

from types import SimpleNamespace

import pytest
import torch

from scoreexp.core.errors import UserError
from scoreexp.lit.callbacks import Checkpoints, StopOnTarget


def trainer():
    return SimpleNamespace(
        callback_metrics={},
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision: decision),
        should_stop=False,
        global_step=7,
    )


def evaluate(stop, value):
    t = trainer()
    t.callback_metrics = {stop.monitor: torch.tensor(value, dtype=torch.float64)}
    stop.on_validation_end(t, None)
    return t.should_stop


def test_exactly_the_target_is_enough():
    stop = StopOnTarget(target=0.99)
    assert not evaluate(stop, 0.9899999)
    assert stop.reason is None
    assert evaluate(stop, 0.99)
    assert "val/ssim_confirmed" in stop.reason
    assert "step 7" in stop.reason


def test_nothing_stops_without_a_target_or_value():
    assert not evaluate(StopOnTarget(), 1.0)
    t = trainer()
    StopOnTarget(target=0.5).on_validation_end(t, None)
    assert not t.should_stop


def test_nan_does_not_stop():
    assert not evaluate(StopOnTarget(target=0.5), float("nan"))


def test_misspelt_monitor_is_refused_at_once():
    with pytest.raises(UserError, match="'val/sim' is never logged: allowed are val/ssim_confirmed"):
        StopOnTarget(monitor="val/sim", target=0.9)


def test_another_target_forgets_the_old_reason():
    stop = StopOnTarget(target=0.5)
    evaluate(stop, 0.6)
    again = StopOnTarget(target=0.9)
    again.load_state_dict(stop.state_dict())
    assert again.reason is None


@pytest.mark.parametrize(
    ("monitor", "mode", "better"),
    [
        ("val/fid_inception_5k", "max", "min"),
        ("val/precision_pixels8_500", "min", "max"),
        ("val/score_error", "max", "min"),
        ("val/ssim", "min", "max"),
    ],
)
def test_a_mode_that_contradicts_the_monitor_is_refused(monitor, mode, better):
    with pytest.raises(UserError, match=f"{monitor} is the better .* set callbacks.stop.mode={better}"):
        StopOnTarget(monitor=monitor, mode=mode)
    with pytest.raises(
        UserError, match=f"{monitor} is the better .* set callbacks.checkpoints.mode={better}"
    ):
        Checkpoints(folder="", monitor=monitor, mode=mode)
    assert StopOnTarget(monitor=monitor, mode=better).mode == better
    assert StopOnTarget(monitor=monitor).mode == Checkpoints(folder="", monitor=monitor).mode == better


def test_a_value_that_is_no_metric_needs_a_mode():
    with pytest.raises(UserError, match=r"train/loss .* set callbacks.checkpoints.mode=max or =min"):
        Checkpoints(folder="", monitor="train/loss")
    assert Checkpoints(folder="", monitor="train/loss", mode="min").mode == "min"
    assert Checkpoints(folder="", monitor=None).mode is None


@pytest.mark.parametrize(
    "monitor", ["val/bits_per_dim", "val/ssim_2", "val/sliced_wasserstein_floor", "val/nfe"]
)
def test_metrics_that_no_monitor_logs_are_refused_at_once(monitor):
    with pytest.raises(UserError, match=f"'{monitor}' is never logged"):
        StopOnTarget(monitor=monitor, target=1)
