"""SIGKILL and the same command again: what is lost, what is repeated, and whether the end is the same."""

import csv
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from stacks import BARE, EVERY, SCOREEXP, Outcome, Stack, fault, forked

pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs SIGKILL, fork and /proc"),
]

EPOCH, STEPS = 23, 69  # 184 samples in batches of 8, three times
SAMPLES = 184
KILLS = (3, 12, 33, 58, 67)  # after so many steps: before the first checkpoint, and in every epoch
OWN = {
    SCOREEXP: ["data.crop=random", f"data.crops={SAMPLES}", "data.batch_size=8", "data.num_val=4"],
    BARE: [
        "+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping", "+callbacks.stop.monitor=val/loss",
        "+callbacks.stop.patience=100", "+callbacks.stop.min_delta=1e9",
    ],
}  # fmt: skip


@dataclass
class Run:
    """A run of either stack that is started again and again by one command."""

    stack: Stack
    folder: Path
    temporary: Path
    steps: int = STEPS
    overrides: tuple[str, ...] = ()

    def start(self, *more: str) -> Outcome:
        trace = ["+callbacks.trace._target_=injected.Trace", f"+callbacks.trace.path={self.trace}"]
        given = (*OWN[self.stack], *self.overrides, *trace, *more)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(self.temporary))
            return forked(
                self.stack.command(self.folder, self.steps, *given, resume=True), self.folder.parent
            )

    def kill(self, name: str, /, **arguments: Any) -> "Run":
        outcome = self.start(*fault(name, **arguments))
        assert outcome.code == -signal.SIGKILL, outcome.err
        return self

    def kill_after(self, step: int) -> "Run":
        return self.kill("Signal", step=step, name="SIGKILL")

    def finish(self) -> "Run":
        outcome = self.start()
        assert outcome.code == 0, outcome.err
        return self

    @property
    def trace(self) -> Path:
        return self.folder.with_suffix(".trace")

    @cached_property
    def starts(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """For each start the step it began at, and what its steps saw."""
        starts: list[tuple[int, list[dict[str, Any]]]] = []
        for line in self.traced:
            if "start" in line:
                starts.append((line["start"], []))
            elif "step" in line:
                starts[-1][1].append(line)
        return starts

    @cached_property
    def lineage(self) -> dict[int, dict[str, Any]]:
        """What each step saw that the final weights come from."""
        return {line["step"]: line for _, lines in self.starts for line in lines}

    @property
    def stopping(self) -> list[list[str]]:
        """What the stopping callbacks remember at each start."""
        return [line["stopping"] for line in self.traced if "start" in line]

    @property
    def traced(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.trace.read_text().splitlines()]

    @property
    def end(self) -> int:
        """A digest of all weights at the end."""
        return int(self.traced[-1]["end"])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """``make(stack, ...)``: a run in a folder of its own."""

    def new(stack: Stack, *overrides: str, steps: int = STEPS, temporary: Path | None = None) -> Run:
        folder = tmp_path_factory.mktemp(repr(stack))
        (folder / "tmp").mkdir()
        return Run(stack, folder / "run", temporary or folder / "tmp", steps, overrides)

    return new


@pytest.fixture(scope="module")
def untouched(make):
    """``untouched(stack)``: a run that nobody killed."""
    runs: dict[tuple, Run] = {}

    def get(stack: Stack, *overrides: str, steps: int = STEPS) -> Run:
        key = (stack, overrides, steps)
        if key not in runs:
            runs[key] = make(stack, *overrides, steps=steps).finish()
        return runs[key]

    return get


@pytest.fixture(scope="module")
def killed(make):
    """``killed(stack)``: a run that was killed after each number of ``KILLS`` and then ended."""
    runs: dict[tuple, Run] = {}

    def get(stack: Stack, *overrides: str) -> Run:
        key = (stack, overrides)
        if key not in runs:
            runs[key] = make(stack, *overrides)
            for step in KILLS:
                runs[key].kill_after(step)
            runs[key].finish()
        return runs[key]

    return get


def noise(lines: list[dict[str, Any]]) -> dict[int, tuple[int, ...]]:
    return {line["step"]: tuple(line["noise"]) for line in lines}


def logged(run: Run) -> list[int]:
    """The steps with a training loss in all tables of metrics of a run, counted from 1."""
    tables = [list(csv.DictReader(path.open(newline=""))) for path in run.folder.rglob("metrics.csv")]
    steps = [int(float(row["step"])) for table in tables for row in table if row.get("train/loss")]
    return steps if run.stack is SCOREEXP else [step + 1 for step in steps]


@pytest.mark.parametrize(("stack", "equal"), [(SCOREEXP, True), (BARE, False)])
def test_the_end_is_bitwise_that_of_a_run_that_was_left_alone(stack, equal, killed, untouched, make):
    run, whole = killed(stack), untouched(stack)
    assert list(run.lineage) == list(whole.lineage) == list(range(1, STEPS + 1))
    assert (run.end == whole.end) == equal
    assert make(stack).finish().end == whole.end, "left alone, it can be repeated"


@pytest.mark.parametrize("stack", [SCOREEXP, BARE])
def test_no_more_than_the_steps_since_the_last_checkpoint_are_lost(stack, killed):
    begun = [step for step, _ in killed(stack).starts]
    assert begun[:2] == [0, 0]
    assert all(0 <= kill - step <= EVERY for kill, step in zip(KILLS, begun[1:], strict=True))


@pytest.mark.parametrize(("stack", "as_untouched"), [(SCOREEXP, True), (BARE, False)])
def test_each_step_has_its_own_noise_also_after_a_resume(stack, as_untouched, killed, untouched):
    reference = noise(list(untouched(stack).lineage.values()))
    resumed = [noise(lines) for step, lines in killed(stack).starts if step > 0]
    equal = {drawn[step] == reference[step] for drawn in resumed for step in drawn}
    assert equal == {as_untouched}
    earlier = {drawn: step for step, drawn in reference.items()}
    replayed = [step for drawn in resumed for step in drawn if earlier.get(drawn[step], step) != step]
    assert bool(replayed) != as_untouched


@pytest.mark.parametrize(("stack", "once"), [(SCOREEXP, True), (BARE, False)])
def test_every_epoch_has_each_sample_once(stack, once, killed, untouched):
    for run, expected in ((untouched(stack), True), (killed(stack), once)):
        for epoch in range(STEPS // EPOCH):
            steps = range(EPOCH * epoch + 1, EPOCH * (epoch + 1) + 1)
            seen = Counter(sample for step in steps for sample in run.lineage[step]["samples"])
            assert seen.total() == SAMPLES
            assert (len(seen) == SAMPLES) == expected


@pytest.mark.parametrize(
    ("stack", "overrides", "lost", "twice"),
    [(SCOREEXP, (), 0, 0), (BARE, (), 65, 0), (BARE, ("logger.csv.version=null",), 0, 13)],
)
def test_the_table_of_metrics_has_each_step_once(stack, overrides, lost, twice, killed):
    steps = Counter(logged(killed(stack, *overrides)))
    assert (STEPS - len(steps), steps.total() - len(steps)) == (lost, twice)


@pytest.mark.parametrize(
    ("stack", "interval", "kill", "noise", "shuffle", "equal"),
    [
        (SCOREEXP, EPOCH, 30, True, True, True),
        (SCOREEXP, EVERY, 13, True, True, True),
        (BARE, EPOCH, 30, False, False, True),
        (BARE, EPOCH, 30, False, True, False),
        (BARE, EPOCH, 30, True, False, False),
        (BARE, EPOCH, 30, True, True, False),
        (BARE, EVERY, 13, False, False, False),
        (BARE, EVERY, 13, False, True, False),
        (BARE, EVERY, 13, True, False, False),
        (BARE, EVERY, 13, True, True, False),
    ],
)
def test_resuming_at_the_end_of_an_epoch_and_inside_of_it(
    stack, interval, kill, noise, shuffle, equal, make, untouched
):
    steps = 2 * EPOCH
    variant = (f"noise={str(noise).lower()}", f"shuffle={str(shuffle).lower()}") if stack is BARE else ()
    every = (
        (f"callbacks.checkpoints.every_n_steps={interval}",) if stack is SCOREEXP else (f"every={interval}",)
    )
    run = make(stack, *variant, *every, steps=steps).kill_after(kill).finish()
    assert run.starts[1][0] == (EPOCH if interval == EPOCH else 10)
    assert (run.end == untouched(stack, *variant, steps=steps).end) == equal


@pytest.fixture
def other_disk():
    """A folder for temporary files on another file system than the runs'."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("needs /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if os.stat(folder).st_dev == os.stat(tempfile.gettempdir()).st_dev:
            pytest.skip("needs two file systems")
        yield Path(folder)


def intact(path: Path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


@pytest.mark.parametrize(("stack", "torn", "goes_on"), [(SCOREEXP, [], True), (BARE, ["last.ckpt"], False)])
def test_a_kill_in_the_middle_of_a_save_with_temporary_files_elsewhere(
    stack, torn, goes_on, make, untouched, other_disk
):
    run = make(stack, steps=2 * EPOCH, temporary=other_disk).kill("KillWhileSaving", step=7)
    saved = (run.folder / "checkpoints").glob("*.ckpt")
    good = {path.name: intact(path) for path in saved if not path.name.startswith(".")}
    assert [name for name in good if not good[name]] == torn
    assert any(good.values()), "a good one lies beside it"
    left = list(other_disk.iterdir())
    assert len(left) == (0 if goes_on else 1)
    assert run.start().code == (0 if goes_on else 1)
    if goes_on:
        assert run.starts[1][0] == 5
        assert run.end == untouched(stack, steps=2 * EPOCH).end


@pytest.mark.parametrize(
    ("stack", "kept", "left"),
    [
        (SCOREEXP, {"last.ckpt", "previous.ckpt", "best.ckpt"}, 0),
        (BARE, {"last.ckpt", "epoch=1-step=45.ckpt", "epoch=0-step=10.ckpt"}, 1),
    ],
)
def test_a_kill_in_the_middle_of_a_save_leaves_nothing_behind(stack, kept, left, make):
    run = make(stack, steps=2 * EPOCH).kill("KillWhileSaving", step=7).finish()
    found = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert found == kept
    assert len(list(run.temporary.iterdir())) == left


@pytest.mark.parametrize("stack", [SCOREEXP, BARE])
def test_what_stopping_remembers_goes_on(stack, killed):
    run, remembered = killed(stack), set()
    resumed = zip(run.starts, run.starts[1:], run.stopping[1:], strict=False)
    for (_, before), (step, _), stopping in resumed:
        if step % EPOCH:  # else an evaluation follows the step
            assert stopping == next(line["stopping"] for line in before if line["step"] == step)
            remembered.add(str(stopping))
    assert len(remembered) > 1
