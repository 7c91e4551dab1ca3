"""Averaged weights, stopping, checkpoint files and progress: what a user relies on without looking."""

import csv
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from bare import Data, Module, Net
from pytorch_lightning.callbacks import EMAWeightAveraging
from stacks import BARE, SCOREEXP, Stack, fault, forked, last, same
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scoreexp.lit import EMA

STEPS = 23  # an epoch of the bare stack, with an evaluation at its end; scoreexp is set to the same


def train(stack: Stack, run: Path, *overrides: str, steps: int = STEPS, resume: bool = False):
    return forked(stack.command(run, steps, *overrides, resume=resume), run.parent)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each stack a run of 23 steps in which nothing broke, with checkpoints at 5, 10, 15 and 20."""
    runs = {}
    for stack in (SCOREEXP, BARE):
        runs[stack] = tmp_path_factory.mktemp(str(stack)) / "run"
        assert train(stack, runs[stack]).code == 0
    return runs


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of such a run to be damaged."""
    return lambda stack: shutil.copytree(trained[stack], tmp_path / "run")


def part(stack: Stack, checkpoint: Path, which: str) -> dict[str, Tensor]:
    """The ``raw`` weights in a checkpoint, which are trained, or their ``average``."""
    names = {"raw": ("denoiser.", "raw."), "average": ("averaged.", "average.")}[which]
    weights = stack.weights(checkpoint).items()
    return {key.partition(".")[2]: value for key, value in weights if key.startswith(names)}


def began_with(file: Path) -> dict[str, Tensor]:
    """The raw weights that ``injected.WeightsAtStart`` has seen."""
    weights = torch.load(file, weights_only=True).items()
    return {key.removeprefix("denoiser."): value for key, value in weights if not key.startswith("averaged.")}


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


# ------------------------------------------------------------------------------------------ averaged weights


def evaluations_of_scoreexp(run: Path) -> tuple[float, ...]:
    assert train(SCOREEXP, run, "model.ema.decay=0.9", "model.ema.warmup=false").code == 0
    found = []
    for weights in ("averaged", "raw"):
        command = f"-m scoreexp.evaluate ckpt={last(run)} metrics=[psnr] +sampler.grid.steps=3 device=cpu"
        out = run.parent / weights
        where = [f"weights={weights}", f"out={out}"]
        assert forked([sys.executable, *command.split(), *where], run.parent).code == 0
        found.append(json.loads((out / "evaluation.json").read_text())["values"]["psnr"])
    reported = json.loads((run / "metrics.json").read_text())["metrics"]["val/psnr"]
    return column(run, "val/psnr")[-1], reported, *found


def evaluations_of_bare(run: Path) -> tuple[float, ...]:
    assert train(BARE, run, f"every={STEPS}", "+test=best").code == 0
    module = Module(Net(64), torch.optim.Adam, noise=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=run, **quiet)
    found = []
    for weights in ("state_dict", "current_model_state"):
        saved = torch.load(last(run), weights_only=True)
        torch.save(saved | {"state_dict": saved[weights]}, run / "tested.ckpt")
        data = Data(184, 8, 0, shuffle=True)
        [values] = trainer.test(module, data, ckpt_path=run / "tested.ckpt", verbose=False)
        found.append(values["test/loss"])
    return column(run, "val/loss")[-1], column(run, "test/loss")[-1], *found


@pytest.mark.parametrize(
    ("evaluations", "same_process"), [(evaluations_of_scoreexp, "average"), (evaluations_of_bare, "raw")]
)
def test_a_file_is_evaluated_with_its_average_in_any_process(evaluations, same_process, tmp_path):
    in_training, after_training, average, raw = evaluations(tmp_path / "run")
    assert abs(average / raw - 1) > 1e-4
    assert in_training == pytest.approx(average, rel=1e-5)
    assert after_training == pytest.approx({"average": average, "raw": raw}[same_process], rel=1e-5)


@pytest.mark.parametrize("cause", ["error", "SIGINT"])
@pytest.mark.parametrize(
    ("stack", "codes", "files_hold"),
    [
        (SCOREEXP, {"error": 1, "SIGINT": 130}, "raw and average"),
        (BARE, {"error": 1, "SIGINT": 1}, "average and raw"),
    ],
)
def test_an_evaluation_that_is_broken_off(stack, codes, files_hold, cause, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    ours = ["+callbacks.checkpoint.save_on_exception=true"] if stack is BARE else []
    signal = {"name": cause} if cause != "error" else {}
    outcome = train(stack, run, *ours, *fault("InValidation", step=STEPS, **signal), steps=2 * STEPS)
    assert outcome.code == codes[cause]
    step = stack.step(last(run))
    assert step == (20 if stack is SCOREEXP and cause == "error" else STEPS)
    assert train(stack, alone, *([f"every={step}"] if stack is BARE else []), steps=step).code == 0
    first, _, second = files_hold.partition(" and ")
    assert same(part(stack, last(run), "raw"), part(stack, last(alone), first))
    assert same(part(stack, last(run), "average"), part(stack, last(alone), second))
    assert not same(part(stack, last(run), "average"), part(stack, last(run), "raw"))


@pytest.mark.parametrize(
    ("stack", "override", "code"), [(SCOREEXP, "model.ema=null", 1), (BARE, "~callbacks.ema", 0)]
)
def test_a_resume_without_the_average(stack, override, code, trained, copy, tmp_path):
    run, began = copy(stack), tmp_path / "began.pt"
    outcome = train(stack, run, override, *fault("WeightsAtStart", file=began), steps=STEPS + 2, resume=True)
    assert outcome.code == code
    if stack is SCOREEXP:
        [line] = outcome.complaints
        assert "was trained with another model" in line
        assert not began.exists()
    else:  # the average is trained on, with the moments of the raw weights
        assert same(began_with(began), part(stack, last(trained[stack]), "average"))
        assert not same(began_with(began), part(stack, last(trained[stack]), "raw"))


@pytest.mark.parametrize(
    ("stack", "network", "averaged_count"),
    [
        (SCOREEXP, ["network._target_=injected.Counting", "schedule=ve"], 20),
        (BARE, ["net={_target_: injected.Counting}"], 10),
    ],
)
def test_an_integer_buffer_is_not_averaged(stack, network, averaged_count, tmp_path):
    assert train(stack, tmp_path / "run", *network, steps=20).code == 0
    counts = {}
    for which in ("raw", "average"):
        [counts[which]] = [
            int(value)
            for key, value in part(stack, last(tmp_path / "run"), which).items()
            if key.endswith(".steps")
        ]
    assert counts == {"raw": 20, "average": averaged_count}


class Calls(TorchDispatchMode):
    """Counts the operations on tensors, but not the views."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def count(self) -> int:
        return sum(self.names.values()) - self.names["detach"]


class Many(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.zeros(2) for _ in range(400))


def update_of_scoreexp(raw: Many, averaged: Many) -> int:
    with Calls() as calls:
        EMA().update(averaged, raw, 2)
    return calls.count


def update_of_bare(raw: Many, averaged: Many) -> int:
    callback = EMAWeightAveraging(decay=0.9)
    callback.setup(None, averaged, "fit")
    callback._average_model.n_averaged += 1  # the first update is a copy
    with Calls() as calls:
        callback._average_model.update_parameters(raw)
    return calls.count


@pytest.mark.parametrize(("update", "per_tensor"), [(update_of_scoreexp, 0), (update_of_bare, 4)])
def test_the_operations_of_an_update_of_400_tensors(update, per_tensor):
    assert update(Many(), Many()) // 400 == per_tensor


# -------------------------------------------------------------------------------------------------- stopping


def quality(*values: float) -> list[str]:
    """``val/ssim`` as evaluations find it, one every 5 steps."""
    found = fault("Quality", values=str(list(values)).replace(" ", ""))
    return [*(text.replace("fault", "quality", 1) for text in found), "++trainer.val_check_interval=5"]


def target(stack: Stack, value: float) -> list[str]:
    if stack is SCOREEXP:
        return [f"callbacks.stop.target={value}"]
    settings = {"monitor": "val/ssim", "mode": "max", "stopping_threshold": value, "patience": 100}
    given = [f"+callbacks.stop.{key}={text}" for key, text in settings.items()]
    return ["+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping", *given, "every=1"]


@pytest.mark.parametrize(("stack", "end"), [(SCOREEXP, 20), (BARE, 10)])
def test_one_lucky_evaluation(stack, end, tmp_path):
    run = tmp_path / "run"
    assert train(stack, run, *target(stack, 0.7), *quality(0.2, 0.8, 0.2, 0.8), steps=20).code == 0
    assert stack.step(last(run)) == end


@pytest.mark.parametrize(("stack", "end"), [(SCOREEXP, 15), (BARE, 20)])
def test_exactly_the_target(stack, end, tmp_path):
    run = tmp_path / "run"
    assert train(stack, run, *target(stack, 0.5), *quality(0.25, 0.5, 0.5, 0.5), steps=20).code == 0
    assert stack.step(last(run)) == end


@pytest.mark.parametrize(
    ("stack", "end", "reasons", "trains_on"), [(SCOREEXP, 15, 1, False), (BARE, 10, 0, True)]
)
def test_a_stopped_run_says_why_and_stays_stopped(stack, end, reasons, trains_on, tmp_path):
    run, began = tmp_path / "run", tmp_path / "began.pt"
    arguments = [*target(stack, 0.7), *quality(0.2, 0.8, 0.8, 0.8)]
    first = train(stack, run, *arguments, steps=20)
    again = train(stack, run, *arguments, *fault("WeightsAtStart", file=began), steps=20, resume=True)
    assert (first.code, again.code) == (0, 0)
    for outcome in (first, again):
        said = [
            line for line in outcome.said if "target" in line or "threshold" in line or "val/ssim" in line
        ]
        assert len(said) == reasons
    assert began.exists() == trains_on
    assert stack.step(last(run)) == (20 if trains_on else end)


@pytest.mark.parametrize(("stack", "trains_on"), [(SCOREEXP, False), (BARE, True)])
def test_a_finished_run_stays_finished(stack, trains_on, copy, tmp_path):
    run, began = copy(stack), tmp_path / "began.pt"
    assert train(stack, run, *fault("WeightsAtStart", file=began), resume=True).code == 0
    assert began.exists() == trains_on


@pytest.mark.parametrize(
    ("stack", "most_lines", "trained_in_vain"), [(SCOREEXP, 1, False), (BARE, None, True)]
)
def test_a_misspelt_monitor(stack, most_lines, trained_in_vain, tmp_path):
    run = tmp_path / "run"
    misspelt = [text for text in target(stack, 0.7) if "monitor" not in text and "every" not in text]
    key = "callbacks.stop.monitor" if stack is SCOREEXP else "+callbacks.stop.monitor"
    outcome = train(stack, run, *misspelt, f"{key}=val/sim")
    assert outcome.code == 1
    assert "val/sim" in outcome.err
    assert run.exists() == trained_in_vain
    if trained_in_vain:
        assert stack.step(last(run)) == 20
        assert len(outcome.complaints) > 30
    else:
        [line] = outcome.complaints
        assert "allowed are val/ssim_confirmed" in line


# ---------------------------------------------------------------------------------------------- checkpoint files


@pytest.mark.parametrize(("stack", "step"), [(SCOREEXP, STEPS), (BARE, 20)])
def test_the_step_of_the_last_checkpoint_of_a_finished_run(stack, step, trained):
    assert stack.step(last(trained[stack])) == step


@pytest.mark.parametrize(("stack", "is_noticed"), [(SCOREEXP, True), (BARE, False)])
def test_a_flipped_bit(stack, is_noticed, trained, copy, tmp_path):
    run, began = copy(stack), tmp_path / "began.pt"
    weight = max(part(stack, last(run), "raw").values(), key=torch.numel)
    content = bytearray(last(run).read_bytes())
    content[content.index(bytes(weight.untyped_storage().tolist()))] ^= 1
    last(run).write_bytes(content)
    outcome = train(stack, run, *fault("WeightsAtStart", file=began), steps=STEPS + 2, resume=True)
    assert outcome.code == 0
    assert any("damaged" in line for line in outcome.said) == is_noticed
    whole = part(stack, last(trained[stack]), "raw")
    if is_noticed:
        assert same(began_with(began), part(stack, trained[stack] / "checkpoints" / "previous.ckpt", "raw"))
    else:
        different = [(began_with(began)[key] != value).sum() for key, value in whole.items()]
        assert sum(different) == 1


@pytest.mark.parametrize(
    ("stack", "other", "code"), [(SCOREEXP, "previous.ckpt", 0), (BARE, "epoch=0-step=20.ckpt", 1)]
)
def test_a_torn_last_checkpoint(stack, other, code, trained, copy, tmp_path):
    run, began = copy(stack), tmp_path / "began.pt"
    os.truncate(last(run), last(run).stat().st_size // 2)
    whole = part(stack, run / "checkpoints" / other, "raw")
    outcome = train(stack, run, *fault("WeightsAtStart", file=began), steps=STEPS + 2, resume=True)
    assert outcome.code == code
    if code:
        assert not began.exists()
        assert outcome.has_traceback
    else:
        assert same(began_with(began), whole)
        [warning] = [line for line in outcome.said if line.startswith("warning: ")]
        assert "last.ckpt" in warning


@pytest.mark.parametrize(
    ("stack", "best", "code", "looked_for_in"),
    [(SCOREEXP, "best.ckpt", 0, "moved"), (BARE, "epoch=0-step=20.ckpt", 1, "old")],
)
def test_the_best_checkpoint_of_a_moved_run(stack, best, code, looked_for_in, tmp_path):
    old, new = tmp_path / "old", tmp_path / "moved"
    assert train(stack, old).code == 0
    old.rename(new)
    test = ["+test=best"] if stack is BARE else []
    outcome = train(stack, new, *test, steps=STEPS + 1, resume=True)
    assert outcome.code == code
    assert (new / "checkpoints" / best).exists()
    [place, *_] = {
        line.split()[-1] for line in outcome.said if re.match(r"checkpoint  |FileNotFoundError", line)
    }
    assert (tmp_path / place) == tmp_path / looked_for_in / "checkpoints" / best


# ------------------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize(("package", "declared"), [("scoreexp", True), ("pytorch-lightning", False)])
def test_what_the_progress_bar_needs_is_installed_with_it(package, declared):
    required = [text for text in importlib.metadata.requires(package) if "extra ==" not in text]
    assert any(text.startswith("rich") for text in required) == declared


def bar(name: str) -> list[str]:
    return ["trainer.enable_progress_bar=true", f"+callbacks.bar._target_=pytorch_lightning.callbacks.{name}"]


@pytest.mark.parametrize(
    ("stack", "arguments", "bytes_per_step", "is_rewritten", "steps_said"),
    [
        (SCOREEXP, ["callbacks.progress.line_seconds=0.001"], (10, 40), False, STEPS),
        (BARE, bar("TQDMProgressBar"), (60, 600), True, STEPS + 1),
        (BARE, bar("RichProgressBar"), (1, 20), False, 1),
    ],
)
def test_progress_in_a_file(stack, arguments, bytes_per_step, is_rewritten, steps_said, tmp_path):
    outcome = train(stack, tmp_path / "run", *arguments)
    assert outcome.code == 0
    shown = [
        text
        for text in re.split(r"[\r\n]", outcome.out + outcome.err)
        if re.search(rf"\b\d+/{STEPS}\b", text)
    ]
    least, most = bytes_per_step
    assert least * STEPS <= sum(len(text.encode()) for text in shown) <= most * STEPS
    assert ("\r" in outcome.out + outcome.err) == is_rewritten
    assert len({re.search(rf"\b\d+/{STEPS}\b", text)[0] for text in shown}) == steps_said
