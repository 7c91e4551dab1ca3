"""SIGKILL at any moment, then the same command again: the end is bitwise that of a run that was left alone.

The runs are children of a fork server that has imported everything once, so a restart costs the training only.
"""

import csv
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, composed

from scoreexp.app.commands.compare import compare
from scoreexp.app.commands.precompute import precompute
from scoreexp.app.commands.train import train
from scoreexp.app.jobs import read_status
from scoreexp.embedding import cache as score_cache
from scoreexp.lit.callbacks import Checkpoints, DenoisingMonitor
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.objectives import DenoisingScoreMatching

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL and fork"),
]

INTERVAL = 4  # steps between checkpoints; evaluations, which save too, fall between them
RANDOM_KILLS = 30
OVERRIDES = [
    *TINY, "network.dropout=0.1", "data.crop=random", "data.augment=true", "data.num_val=8", "trainer.val_check_interval=6",
    f"callbacks.checkpoints.every_n_steps={INTERVAL}",
]  # fmt: skip


# ---------------------------------------------------------------------------------------- in the children


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(owner: Any, name: str, when: str, number: int = 1) -> None:
    """Have the process die before or after the ``number``-th call of a function."""
    original, calls = getattr(owner, name), []

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == number and when == "before":
            die()
        result = original(*args, **kwargs)
        if len(calls) == number:
            die()
        return result

    setattr(owner, name, deadly)


def die_at_rename(name: str, when: str, number: int = 1) -> None:
    """Have the process die just before or after a finished file gets its name."""
    original, calls = os.replace, []

    def deadly(source, target):
        calls.extend([1] * (Path(target).name == name))
        if len(calls) == number and when == "before":
            die()
        original(source, target)
        if len(calls) == number:
            die()

    os.replace = deadly


def die_in_the_middle(owner: Any, name: str, position: int, number: int = 1) -> None:
    """Have the process die when half of a file is written; ``position`` is the path's among the arguments."""
    original, calls = getattr(owner, name), []

    def deadly(*args, **kwargs):
        original(*args, **kwargs)
        calls.append(1)
        if len(calls) == number:
            os.truncate(args[position], os.path.getsize(args[position]) // 2)
            die()

    setattr(owner, name, deadly)


# The moments, in an order in which a run passes through them; the number counts since the last restart.
MOMENTS = {
    "the manifest is written": (die_at_rename, "manifest.json", "before"),
    "the run has just begun": (die_at_rename, "manifest.json", "after"),
    "a step, before anything is saved": (die_at_call, DenoisingScoreMatching, "__call__", "before", 3),
    "the first checkpoint is written": (die_in_the_middle, torch, "save", 1),
    "an optimiser's step": (die_at_call, torch.optim.Adam, "step", "before", 6),
    "an evaluation": (die_at_call, DenoisingMonitor, "on_validation_batch_end", "after", 2),
    "an image is written": (die_at_rename, "step_0000006.png", "before"),
    "the best checkpoint is written": (die_in_the_middle, torch, "save", 1),
    "the best checkpoint is saved, the last is not": (die_at_call, Checkpoints, "on_validation_end", "after"),
    "a checkpoint is written": (die_in_the_middle, torch, "save", 1, 2),
    "the old checkpoint has made room": (die_at_rename, "previous.ckpt", "after"),
    "a checkpoint is saved": (die_at_call, Checkpoints, "save_last", "after", 2),
    "another checkpoint is saved": (die_at_call, Checkpoints, "save_last", "after"),
    "the table of metrics is written": (die_at_rename, "metrics.csv", "before"),
    "the last checkpoint is saved": (die_at_call, Checkpoints, "on_train_end", "after"),
    "a curve is drawn": (die_at_rename, "loss.png", "before"),
    "the conclusion is written": (die_at_rename, "metrics.json", "before"),
}  # fmt: skip
FEW = ["the best checkpoint is written", "the old checkpoint has made room", "another checkpoint is saved",
       "the last checkpoint is saved"]  # fmt: skip


class Trace(pl.Callback):
    """Write down, beside the run, where it starts and which steps it completes."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, word: str, step: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{word} {step}\n")

    def on_train_start(self, trainer, pl_module):
        self.write("start", trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.write("step", trainer.global_step)


def prepare(log: Path, temporary: Path, moment: str | None) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    tempfile.tempdir = str(temporary)
    if moment is not None:
        arm, *arguments = MOMENTS[moment]
        arm(*arguments)


def training(temporary: Path, run: Path, steps: int, moment: str | None) -> None:
    """The command ``scoreexp.train ... resume=auto``, dying at the moment."""
    prepare(run.with_suffix(".log"), temporary, moment)
    original = pl.Trainer.__init__

    def traced(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, Trace(run.with_suffix(".trace"))], **kwargs)

    pl.Trainer.__init__ = traced
    train(composed("train", *OVERRIDES, f"trainer.max_steps={steps}", f"run_dir={run}", "resume=auto"))


def precomputing(temporary: Path, cache: Path, number: int | None) -> None:
    """The command ``scoreexp.precompute``, dying in the middle of the ``number``-th file."""
    prepare(cache.with_suffix(".log"), temporary, None)
    if number is not None:
        die_in_the_middle(score_cache.np, "savez", 0, number)
    precompute(
        composed(
            "precompute", "data.size=16", "data.crop=random", "data.crops=5", "embedding=published",
            "embedding.precomputation.steps=10", f"embedding.cache={cache}",
        )
    )  # fmt: skip


def comparing(temporary: Path, folder: Path, written: str | None) -> None:
    """The command ``scoreexp.compare``, dying before it writes a file of this name."""
    prepare(folder.with_suffix(".log"), temporary, None)
    folder.mkdir(exist_ok=True)
    if written is not None:
        die_at_rename(written, "before")
    small = [o for o in TINY if o.startswith(("data.size", "sampler", "trainer"))]
    compare(
        composed(
            "compare", "sweep=compare_quick", "methods=[exact_score]", "sweep.seeds=[0,1]", f"run_dir={folder}",
            f"overrides=[{','.join(map(repr, small))}]",
        )
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------- outside


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """``start(function, *arguments)``: a child that runs it, forked from a server with all imports done.

    Its folder for temporary files is on another file system than the runs', where there is one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scoreexp.app.commands.train", "pytest"])
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else tmp_path_factory.getbasetemp()

    with tempfile.TemporaryDirectory(dir=place) as temporary:

        def child(function, *arguments):
            process = context.Process(target=function, args=(Path(temporary), *arguments))
            process.start()
            return process

        yield child
        assert not os.listdir(temporary), "nothing is written outside the run's own folder"


def ends(process, seconds: float | None = None) -> bool:
    """Whether the process ended by itself, and well; it is killed after so many seconds."""
    process.join(120 if seconds is None else seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), "see the log beside the run"
    return process.exitcode == 0


@pytest.fixture(scope="module")
def untouched(start, tmp_path_factory):
    """``untouched(steps)``: a run that nobody killed, and the seconds it took."""
    runs: dict[int, tuple[Path, float]] = {}

    def make(steps: int) -> tuple[Path, float]:
        if steps not in runs:
            run, begun = tmp_path_factory.mktemp("untouched") / "run", time.monotonic()
            assert ends(start(training, run, steps, None))
            runs[steps] = run, time.monotonic() - begun
        return runs[steps]

    return make


def leaves(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested plain data with its place; tensors as their bytes."""
    if isinstance(node, dict | list | tuple):
        yield where, (type(node), len(node))
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{where}.{key}")
    elif isinstance(node, torch.Tensor):
        yield where, (node.dtype, node.shape, node.numpy().tobytes())
    else:
        yield where, node


def state(run: Path, name: str) -> dict[str, Any]:
    """What a checkpoint holds, without the seconds and the folder."""
    saved = read_checkpoint(run / "checkpoints" / name)
    saved["callbacks"].pop("StageTimer")
    saved["scoreexp"]["config"]["run_dir"] = None
    return dict(leaves(saved))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def conclusion(run: Path) -> dict[str, Any]:
    stored = json.loads((run / "metrics.json").read_text())
    stored["metrics"] = {k: v for k, v in stored["metrics"].items() if not k.startswith("time/")}
    return {**stored, "seconds": stored["seconds"].keys()}


def files(run: Path) -> dict[str, bytes | None]:
    """Every file with the content of the pictures."""
    paths = [path for path in run.rglob("*") if path.is_file()]
    return {str(p.relative_to(run)): p.read_bytes() if p.suffix == ".png" else None for p in paths}


def assert_same(run: Path, whole: Path) -> None:
    assert rows(run) == rows(whole)
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        assert state(run, name) == state(whole, name), name
    assert conclusion(run) == conclusion(whole)
    assert files(run) == files(whole)


def steps_lost(run: Path) -> list[int]:
    """How many completed steps each restart had to repeat."""
    lost, reached = [], 0
    for line in run.with_suffix(".trace").read_text().splitlines():
        word, step = line.split()
        lost += [reached - int(step)] if word == "start" else []
        reached = int(step)
    return lost


def die_at_each(moments: list[str], run: Path, steps: int, start) -> None:
    for moment in moments:
        assert not ends(start(training, run, steps, moment)), f"never reached: {moment}"
    assert ends(start(training, run, steps, None))


def test_a_run_killed_now_and_then_ends_as_if_nothing_had_happened(start, untouched, tmp_path):
    run, (whole, _) = tmp_path / "run", untouched(10)
    die_at_each(FEW, run, 10, start)
    assert_same(run, whole)
    assert max(steps_lost(run)) <= INTERVAL


@pytest.mark.slow
def test_every_moment_at_which_a_run_can_be_killed(start, untouched, tmp_path):
    run, (whole, _) = tmp_path / "run", untouched(30)
    die_at_each(list(MOMENTS), run, 30, start)
    assert_same(run, whole)
    assert max(steps_lost(run)) <= INTERVAL


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_kills_at_random_moments(start, untouched, tmp_path):
    whole, seconds = untouched(30)
    random_seconds, kills, runs = random.Random(0), 0, []
    while kills < RANDOM_KILLS:
        runs.append(tmp_path / f"run{len(runs)}")
        while kills < RANDOM_KILLS and not ends(
            start(training, runs[-1], 30, None), random_seconds.uniform(0, 0.8 * seconds)
        ):
            kills += 1
    assert ends(start(training, runs[-1], 30, None))
    lost = [steps for run in runs for steps in steps_lost(run)]
    print(f"{kills} kills of {len(runs)} runs; steps lost at each start: {lost}")
    for run in runs:
        assert_same(run, whole)
    assert max(lost) <= INTERVAL


def test_a_killed_precomputation_goes_on_and_leaves_nothing_half_written(start, tmp_path):
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    assert ends(start(precomputing, whole, None))
    assert not ends(start(precomputing, cache, 3))
    assert ends(start(precomputing, cache, None))
    assert "3 solved, 2 found in the cache" in cache.with_suffix(".log").read_text()
    names = sorted(str(path.relative_to(whole)) for path in whole.rglob("*"))
    assert sorted(str(path.relative_to(cache)) for path in cache.rglob("*")) == names
    for name in names:
        if name.endswith(".npz"):
            with np.load(whole / name) as a, np.load(cache / name) as b:
                assert all(a[k].tobytes() == b[k].tobytes() for k in a.files if k != "description")


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_its_report_is_whole(start, tmp_path):
    folder = tmp_path / "comparison"
    first = start(comparing, folder, None)
    end = time.monotonic() + 120
    while not (status := [read_status(path.parent) for path in folder.rglob("status.json")]):
        assert time.monotonic() < end
        time.sleep(0.05)
    first.kill()
    os.killpg(status[0]["pid"], signal.SIGKILL)
    first.join()
    assert not ends(start(comparing, folder, "report.html"))
    assert not (folder / "report.html").exists()
    assert ends(start(comparing, folder, None))
    with (folder / "results.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "done"]
    assert (folder / "report.html").read_text().endswith("</html>\n")
    assert not list(folder.rglob(".report.*"))
    attempts = [read_status(path.parent)["attempts"] for path in sorted(folder.rglob("status.json"))]
    assert attempts == [2, 1], "what was done is not done again"
