"""A training run from the outside: what is repeated, resumed, saved and reported."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, composed
from hydra.utils import instantiate

import scoreexp
from scoreexp.app.commands.train import train
from scoreexp.lit import NonFiniteError
from scoreexp.lit.callbacks import DenoisingMonitor
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.objectives import DenoisingScoreMatching


def saved(run: Path, name: str = "last.ckpt") -> dict:
    return read_checkpoint(run / "checkpoints" / name)


def assert_same(a, b, where=""):
    """Bitwise equality of nested plain data and tensors."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (left, right) in enumerate(zip(a, b)):
            assert_same(left, right, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_training_state(a: dict, b: dict):
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops"):
        assert_same(a[key], b[key], key)
    left, right = a["callbacks"], b["callbacks"]
    assert left.keys() == right.keys()
    for name in left.keys() - {"StageTimer"}:
        assert_same(left[name], right[name], name)


def rows(run: Path) -> list[dict]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


class At(pl.Callback):
    """Do something when the batch of a certain index ends."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx + 1 == self.step:
            self.action(trainer, pl_module)


@pytest.fixture
def with_callback(monkeypatch):
    """Have every Trainer made from now on run one more callback."""
    original = pl.Trainer.__init__

    def add(callback):
        def patched(self, *args, callbacks=(), **kwargs):
            original(self, *args, callbacks=[*callbacks, callback], **kwargs)

        monkeypatch.setattr(pl.Trainer, "__init__", patched)

    yield add
    monkeypatch.setattr(pl.Trainer, "__init__", original)


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """``uninterrupted(*overrides)``: a run that was left alone, trained once for all tests that ask for it."""
    runs: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in runs:
            run = tmp_path_factory.mktemp("uninterrupted") / "run"
            fast = ["callbacks.monitor.pictures=0", f"run_dir={run}"]
            train(composed("train", *TINY, *overrides, *fast))
            runs[overrides] = run
        return runs[overrides]

    return make


@pytest.fixture
def four(uninterrupted, tmp_path):
    """A copy of a run of four steps, in the folder of ``tiny()``."""
    run = uninterrupted("trainer.max_steps=4", "trainer.val_check_interval=2")
    return shutil.copytree(run, tmp_path / "run")


def test_run_directory_holds_what_is_promised(tiny, tmp_path, capsys):
    result = train(tiny("callbacks.monitor.pictures=4"))
    run = tmp_path / "run"
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert files >= {
        "config.yaml", "manifest.json", "metrics.json", "metrics.csv", "pictures/best.png", "pictures/loss.png",
        "pictures/ssim.png", "pictures/step_0000004.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
    }  # fmt: skip
    assert not [name for name in files if "new" in name or "/." in name], "left-over temporary files"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__
    stored = json.loads((run / "metrics.json").read_text())
    assert stored["status"] == result.status == "finished"
    assert stored["step"] == 4
    assert stored["metrics"]["val/ssim"] == result.metrics["val/ssim"]
    said = capsys.readouterr().out
    assert "checkpoints/best.ckpt" in said
    assert "python -m scoreexp.denoise ckpt=" in said


def test_same_seed_same_run_and_zero_is_a_seed(tiny, four, tmp_path):
    for run, seed in (("a", 0), ("b", 1)):
        train(tiny(f"seed={seed}", run=run))
    states = {run.name: saved(run) for run in (four, tmp_path / "a", tmp_path / "b")}
    assert_same_training_state(states["run"], states["a"])
    assert rows(four) == rows(tmp_path / "a")
    weights = {run: state["state_dict"]["denoiser.network.stem.weight"] for run, state in states.items()}
    assert not torch.equal(weights["a"], weights["b"])


@pytest.mark.parametrize("step", [1, 3, 4, 7])  # 4: an evaluation is due at the very step
def test_interrupted_and_resumed_equals_uninterrupted(
    step, tiny, uninterrupted, tmp_path, with_callback, monkeypatch
):
    overrides = [
        "trainer.max_steps=10",
        "trainer.val_check_interval=4",
        "network.dropout=0.1",
        "data.crop=random",
    ]
    whole = uninterrupted(*overrides)
    with_callback(At(step, interrupt))
    with pytest.raises(SystemExit) as stop:
        train(tiny(*overrides, run="parts"))
    assert stop.value.code == 130
    assert saved(tmp_path / "parts")["global_step"] == step
    monkeypatch.undo()
    train(tiny(*overrides, "resume=auto", run="parts"))
    assert_same_training_state(saved(whole), saved(tmp_path / "parts"))
    assert rows(whole) == rows(tmp_path / "parts")


def test_gradient_accumulation_resumes_too(tiny, tmp_path, with_callback, monkeypatch):
    overrides = ["trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.accumulate_grad_batches=2"]
    overrides += ["time_law=learned", "time_law.arms=2"]  # its state is resumed as well
    train(tiny(*overrides, run="whole"))
    with_callback(At(4, interrupt))
    with pytest.raises(SystemExit):
        train(tiny(*overrides, run="parts"))
    monkeypatch.undo()
    train(tiny(*overrides, "resume=auto", run="parts"))
    whole, parts = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert_same_training_state(whole, parts)
    assert whole["state_dict"]["time_law._extra_state"][:2].any(), "the policy moved"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_exits_with_everything_saved(name, code, tiny, tmp_path, with_callback):
    with_callback(At(3, lambda *_: os.kill(os.getpid(), signal.Signals[name])))
    with pytest.raises(SystemExit) as stop:
        train(tiny("trainer.max_steps=10"))
    assert stop.value.code == code
    assert saved(tmp_path / "run")["global_step"] == 3


def test_ctrl_c_in_an_evaluation_leaves_raw_and_averaged_weights_apart(tiny, four, tmp_path, monkeypatch):
    evaluate = DenoisingMonitor.on_validation_batch_end

    def interrupted(*args):
        interrupt()
        evaluate(*args)

    monkeypatch.setattr(DenoisingMonitor, "on_validation_batch_end", interrupted)
    with pytest.raises(SystemExit) as stop:
        train(tiny("trainer.max_steps=8", "trainer.val_check_interval=4", run="broken"))
    assert stop.value.code == 130
    assert_same(saved(tmp_path / "broken")["state_dict"], saved(four)["state_dict"])


def test_progress_in_a_file_is_plain_lines(tiny, capsys):
    train(tiny("callbacks.progress.line_seconds=1e-6"))
    said = "".join(capsys.readouterr())
    assert "\r" not in said
    assert set(re.findall(r"\b([1-4])/4\b", said)) == set("1234")


def test_rows_have_the_loss_of_their_own_step_and_progress_that_of_every_step(
    tiny, tmp_path, capsys, with_callback
):
    steps = ["trainer.max_steps=7", "trainer.val_check_interval=7", "callbacks.progress.line_seconds=1e-6"]
    train(tiny(*steps, run="all"))
    losses = {row["step"]: row["train/loss"] for row in rows(tmp_path / "all")}
    capsys.readouterr()
    with_callback(At(5, lambda trainer, _: setattr(trainer, "should_stop", True)))
    train(tiny(*steps, "trainer.log_every_n_steps=3"))
    assert {row["step"]: row["train/loss"] for row in rows(tmp_path / "run")} == {k: losses[k] for k in "35"}
    said = dict(re.findall(r"step (\d)/7  loss (\S+)", capsys.readouterr().err))
    assert said == {k: f"{float(losses[k]):.4g}" for k in "12345"}


def test_a_run_that_an_evaluation_stops_ends_with_the_loss_of_its_last_step(tiny, tmp_path, with_callback):
    losses = {
        row["step"]: row["train/loss"] for row in rows(train(tiny("trainer.max_steps=4", run="all")).run_dir)
    }

    class Stop(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop = True

    with_callback(Stop())
    result = train(tiny("trainer.max_steps=7", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3"))
    assert list(losses)[-1] == "4"
    assert result.metrics["train/loss"] == pytest.approx(float(losses["4"]), rel=1e-6)


def test_a_run_that_logs_no_step_still_ends_with_its_loss(tiny, tmp_path):
    result = train(tiny("trainer.log_every_n_steps=0"))
    assert result.metrics["train/loss"] > 0
    assert not any("train/loss" in row for row in rows(tmp_path / "run"))


def test_nohup_keeps_a_run_alive(tiny, tmp_path, with_callback):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with_callback(At(3, lambda *_: os.kill(os.getpid(), signal.SIGHUP)))
        train(tiny("trainer.max_steps=4"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert saved(tmp_path / "run")["global_step"] == 4


def test_nan_loss_stops_at_its_step_and_keeps_the_last_finite_checkpoint(tiny, tmp_path, monkeypatch):
    original, calls = DenoisingScoreMatching.__call__, []

    def poisoned(self, *args):
        calls.append(1)
        return original(self, *args) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(DenoisingScoreMatching, "__call__", poisoned)
    with pytest.raises(NonFiniteError, match=r"not finite at step 3 .*optimizer\.lr"):
        train(tiny("trainer.max_steps=10", "callbacks.checkpoints.every_n_steps=1"))
    state = saved(tmp_path / "run")
    assert state["global_step"] == 3
    assert all(v.isfinite().all() for v in state["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(tiny, tmp_path, with_callback):
    def poison(trainer, module):
        with torch.no_grad():
            next(module.denoiser.parameters()).fill_(float("inf"))

    with_callback(At(3, poison))
    with pytest.raises(NonFiniteError, match="weight denoiser"):
        train(tiny("trainer.max_steps=10", "callbacks.checkpoints.every_n_steps=1"))
    assert saved(tmp_path / "run")["global_step"] == 2


def test_exception_in_validation_leaves_raw_and_averaged_weights_apart(tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("broken metric")

    monkeypatch.setattr(DenoisingMonitor, "on_validation_epoch_end", broken)
    overrides = [
        "trainer.max_steps=6",
        "trainer.val_check_interval=4",
        "callbacks.checkpoints.every_n_steps=1",
    ]
    with pytest.raises(RuntimeError, match="broken metric"):
        train(tiny(*overrides, run="broken"))
    monkeypatch.undo()
    train(tiny(*overrides, run="whole"))
    train(tiny(*overrides, "resume=auto", run="broken"))
    assert_same(saved(tmp_path / "whole")["state_dict"], saved(tmp_path / "broken")["state_dict"])


def test_damaged_last_checkpoint_falls_back_to_the_previous_one(tiny, four, uninterrupted, capsys):
    last = four / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    train(tiny("trainer.max_steps=6", "resume=auto"))
    assert "damaged" in capsys.readouterr().out
    whole = uninterrupted("trainer.max_steps=6", "trainer.val_check_interval=2")
    assert_same(saved(four)["state_dict"], saved(whole)["state_dict"])


def test_target_stops_the_run_with_its_reason_and_a_resume_stays_stopped(tiny, tmp_path, capsys):
    overrides = ["callbacks.stop.target=-1", "trainer.max_steps=20", "trainer.val_check_interval=2"]
    result = train(tiny(*overrides))
    assert "val/ssim_confirmed" in result.status
    assert "step 4" in result.status, "two evaluations are needed to confirm"
    again = train(tiny(*overrides, "resume=auto"))
    assert "nothing to do" in capsys.readouterr().out
    assert saved(tmp_path / "run")["global_step"] == 4
    assert again.status == result.status


def test_finished_run_stays_finished_and_a_longer_one_goes_on(tiny, four, capsys):
    before = (four / "metrics.json").read_text()
    train(tiny("resume=auto"))
    assert "nothing to do" in capsys.readouterr().out
    assert (four / "metrics.json").read_text() == before
    train(tiny("trainer.max_steps=6", "resume=auto"))
    assert saved(four)["global_step"] == 6


@pytest.mark.usefixtures("four")
def test_directory_with_a_run_is_not_overwritten(tiny):
    with pytest.raises(scoreexp.core.errors.UserError, match="already holds a run: add resume=auto"):
        train(tiny())


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("override", "part"), [("network.channels=32", "network"), ("model.ema=null", "model")]
)
def test_resume_with_another_model_is_refused(override, part, tiny):
    with pytest.raises(scoreexp.core.errors.UserError, match=f"trained with another {part}"):
        train(tiny(override, "resume=auto"))


def test_best_checkpoint_is_the_one_of_the_best_evaluation(tiny, tmp_path):
    train(tiny("trainer.max_steps=8"))
    scores = {int(r["step"]): float(r["val/ssim"]) for r in rows(tmp_path / "run") if r["val/ssim"]}
    best = saved(tmp_path / "run", "best.ckpt")
    assert scores[best["global_step"]] == max(scores.values())


def test_evaluation_uses_the_averaged_weights_in_this_and_in_a_new_process(tiny, tmp_path):
    result = train(tiny("trainer.max_steps=6", "model.ema.decay=0.5"))
    state = saved(tmp_path / "run")["state_dict"]
    averaged = scoreexp.load(tmp_path / "run" / "checkpoints" / "last.ckpt").state_dict()
    raw = scoreexp.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights="raw").state_dict()
    key = "network.stem.weight"
    assert torch.equal(averaged[key], state[f"averaged.{key}"])
    assert torch.equal(raw[key], state[f"denoiser.{key}"])
    assert not torch.equal(averaged[key], raw[key])
    cfg = tiny()
    monitor = DenoisingMonitor(sampler=instantiate(cfg.sampler), folder=str(tmp_path))
    data = instantiate(cfg.data)
    data.setup("fit")
    ssim = {}
    for weights in ("averaged", "raw"):
        module = type("M", (), {})()
        module.evaluation_denoiser = scoreexp.load(tmp_path / "run/checkpoints/last.ckpt", weights=weights)
        module.device = torch.device("cpu")
        trainer = type("T", (), {"is_global_zero": False})()
        monitor.on_validation_epoch_start(trainer, module)
        for batch in data.val_dataloader():
            monitor.on_validation_batch_end(trainer, module, None, batch, 0)
        ssim[weights] = float(monitor.metrics["ssim"].compute())
    assert ssim["averaged"] == pytest.approx(result.metrics["val/ssim"], abs=1e-7)
    assert abs(ssim["raw"] - result.metrics["val/ssim"]) > 1e-6


def test_last_checkpoint_holds_the_final_step(tiny, tmp_path):
    train(
        tiny("trainer.max_steps=5", "trainer.val_check_interval=3", "callbacks.checkpoints.every_n_steps=100")
    )
    assert saved(tmp_path / "run")["global_step"] == 5
    evaluated = [int(r["step"]) for r in rows(tmp_path / "run") if r["val/ssim"]]
    assert evaluated[-1] == 5, "the final weights are evaluated"


def test_unwritable_run_directory_is_refused_before_training(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(scoreexp.core.errors.UserError, match="cannot be written to"):
        train(tiny(f"run_dir={tmp_path / 'file' / 'run'}"))


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("callbacks.monitor.sigma=1e9", "outside"),
        ("callbacks.stop.monitor=val/sim", "never logged"),
        ("data.size=17", "17 is not divisible"),
        ("data.path=nowhere.png", r"nowhere\.png"),
        ("trainer.precision=bf16-true", "set bf16-mixed"),
        ("objective=sdap", "trains on many noisy images"),  # after the folder was made
    ],
)
def test_a_refused_setting_leaves_no_folder(override, match, tiny, tmp_path):
    with pytest.raises(Exception, match=match):
        train(tiny(override))
    assert not (tmp_path / "run").exists()


def test_evaluation_interval_may_be_a_time(tiny, tmp_path, monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.3 * next(ticks))  # read once per step and per evaluation
    for loop in ("fit_loop", "training_epoch_loop", "evaluation_loop"):
        monkeypatch.setattr(f"pytorch_lightning.loops.{loop}.time", clock)
    train(tiny("trainer.max_steps=10", "trainer.val_check_interval=00:00:00:01"))
    evaluated = [int(r["step"]) for r in rows(tmp_path / "run") if r["val/ssim"]]
    assert evaluated[-1] == 10
    assert 2 < len(evaluated) < 6, "every second, not every step"


@pytest.mark.parametrize("ending", ["callbacks.stop.target=-1", "trainer.max_steps=4"])
def test_run_killed_before_its_conclusion_is_concluded_without_a_further_step(ending, tiny, tmp_path):
    overrides = ["trainer.max_steps=20", ending]
    whole = train(tiny(*overrides))
    (tmp_path / "run" / "metrics.json").unlink()
    concluded = train(tiny(*overrides, "resume=auto"))
    assert saved(tmp_path / "run")["global_step"] == 4
    assert concluded.status == whole.status
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 4
    assert concluded.metrics["val/ssim"] == pytest.approx(whole.metrics["val/ssim"])
