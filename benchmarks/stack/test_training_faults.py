"""Faults in the middle of a training run: what a user is told, and what is left on disk."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks import BARE, SCOREEXP, Outcome, Stack, all_finite, fault, forked, last

STEP = 12  # of the fault; a checkpoint is written every 5 steps
STOP_ON_LOSS = [
    "+callbacks.stopping._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.stopping.monitor=train/loss",
]
LIMITED = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh"]  # files of 0.5 or 1 MB at most, as the shell counts


def train(stack: Stack, run: Path, *overrides: str, steps: int = 30) -> Outcome:
    return forked(stack.command(run, steps, *overrides), run.parent)


def is_short(outcome: Outcome) -> bool:
    """Whether an error is said in at most three lines."""
    return 1 <= len(outcome.complaints) <= 3 and not outcome.has_traceback


def checkpoints(stack: Stack, run: Path) -> dict[str, bool]:
    """For each file among the checkpoints, hidden ones too, whether a run could go on from it."""

    def is_good(path: Path) -> bool:
        try:
            return all_finite(stack.weights(path))
        except Exception:
            return False

    return {path.name: is_good(path) for path in (run / "checkpoints").iterdir()}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 20 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


KEPT = {"last.ckpt": True, "previous.ckpt": True}


@pytest.mark.parametrize(
    ("stack", "variant", "code", "saved"),
    [
        (SCOREEXP, [], 1, KEPT),
        (SCOREEXP, STOP_ON_LOSS, 1, KEPT),
        (SCOREEXP, ["+trainer.detect_anomaly=true"], 1, KEPT),
        (BARE, [], 0, {"last.ckpt": False, "epoch=1-step=30.ckpt": False}),
        (BARE, ["+callbacks.checkpoint.monitor=train/loss"], 0, {"last.ckpt": False, "epoch=0-step=10.ckpt": True}),
        (BARE, STOP_ON_LOSS, 0, {"last.ckpt": False, "epoch=0-step=20.ckpt": False}),
        (BARE, ["+trainer.detect_anomaly=true"], 1, {"last.ckpt": True, "epoch=0-step=10.ckpt": True}),
    ],
)  # fmt: skip
def test_a_loss_that_is_not_a_number(stack, variant, code, saved, tmp_path):
    run = tmp_path / "run"
    outcome = train(stack, run, *fault("NaN", step=STEP), *variant)
    assert outcome.code == code
    assert checkpoints(stack, run) == saved
    explained = "not finite at step 12" in outcome.err and "optimizer.lr" in outcome.err
    assert (is_short(outcome) and explained) == (stack is SCOREEXP)
    assert ("last.ckpt of step 10" in outcome.err) == (stack is SCOREEXP)
    assert outcome.has_traceback == (stack is BARE and code == 1)


@pytest.mark.parametrize(("stack", "short", "saved"), [(SCOREEXP, True, STEP), (BARE, False, 10)])
def test_no_memory(stack, short, saved, tmp_path):
    run = tmp_path / "run"
    outcome = train(stack, run, *fault("OutOfMemory", step=STEP))
    assert outcome.code == 1
    assert (is_short(outcome) and "data.batch_size" in outcome.err) == short
    assert outcome.has_traceback != short
    assert stack.step(last(run)) == saved
    assert all(checkpoints(stack, run).values())


@pytest.mark.parametrize(("stack", "short"), [(SCOREEXP, True), (BARE, False)])
def test_a_killed_data_process(stack, short, tmp_path):
    run = tmp_path / "run"
    outcome = train(stack, run, *fault("KillWorkers", step=STEP), "data.num_workers=1")
    assert outcome.code == 1
    assert (is_short(outcome) and "data.num_workers=0" in outcome.err) == short
    assert outcome.has_traceback != short
    assert stack.step(last(run)) >= 10
    assert all(checkpoints(stack, run).values())


@pytest.mark.parametrize(
    ("stack", "name", "code", "saved"),
    [
        (SCOREEXP, "SIGTERM", 143, 13),
        (SCOREEXP, "SIGINT", 130, 13),
        (BARE, "SIGTERM", 0, 10),
        (BARE, "SIGINT", 1, 10),
    ],
)
def test_a_signal_saves_the_step_under_way_and_is_told_by_the_exit_code(stack, name, code, saved, tmp_path):
    run = tmp_path / "run"
    outcome = train(stack, run, *fault("Signal", step=STEP, name=name))
    assert outcome.code == code
    assert stack.step(last(run)) == saved
    assert all(checkpoints(stack, run).values())
    assert ("resume=auto" in outcome.out) == (stack is SCOREEXP)


@pytest.mark.parametrize(
    ("step", "before"), [(STEP, {"last.ckpt": True}), (0, {})], ids=["at the third save", "at the first"]
)
@pytest.mark.parametrize(("stack", "short"), [(SCOREEXP, True), (BARE, False)])
def test_a_full_disk(stack, short, step, before, disk):
    run = disk / "run"
    outcome = train(stack, run, *fault("FillDisk", step=step, path=disk / "ballast", left=20_000))
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert is_short(outcome) == short
    saved = checkpoints(stack, run)
    assert before.items() <= saved.items()
    assert all(saved.values()) == short, "no torn file under a final name"


@pytest.mark.parametrize(("stack", "short"), [(SCOREEXP, True), (BARE, False)])
def test_a_limit_on_the_size_of_files(stack, short, tmp_path):
    run = tmp_path / "run"
    large = ["net.width=4000"] if stack is BARE else []  # as large as scoreexp's checkpoints
    outcome = stack.run([*LIMITED, *stack.command(run, 20, *large)], tmp_path)
    assert outcome.code == 1
    assert "File too large" in outcome.err
    assert is_short(outcome) == short
    assert any("File too large" in line and "checkpoints/" in line for line in outcome.complaints) == short
    assert checkpoints(stack, run) == {}


@pytest.mark.parametrize(("stack", "trained"), [(SCOREEXP, 0), (BARE, 5)])
def test_a_folder_that_cannot_be_written_to(stack, trained, disk, tmp_path):
    run, trace = disk / "run", tmp_path / "trace"
    (run / "checkpoints").mkdir(parents=True)
    trace.touch()
    bind = ["mount", "--bind", str(run / "checkpoints"), str(run / "checkpoints")]
    subprocess.run(bind, check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", str(run / "checkpoints")], check=True)
    try:
        tracing = ["+callbacks.trace._target_=injected.Trace", f"+callbacks.trace.path={trace}"]
        outcome = train(stack, run, *tracing)
    finally:
        subprocess.run(["umount", "-l", str(run / "checkpoints")], check=True)
    assert outcome.code == 1
    assert "Read-only file system" in outcome.err
    assert is_short(outcome) == (stack is SCOREEXP)
    assert sum("step" in json.loads(line) for line in trace.read_text().splitlines()) == trained
