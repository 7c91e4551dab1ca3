"""Runs of several processes, alone and in sweeps: what is counted, how many folders and runs come of it, how it fails."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from stacks import BARE, SCOREEXP, Outcome, Stack, fault, last

PATIENCE = 500  # seconds until a command has failed that neither ends nor stands still
QUIET = 20  # seconds without work after which a command that has not ended hangs
HANGS = 999  # instead of an exit code
STEPS = 7
SAMPLES = 101  # cannot be shared out evenly
WORD = 10 / 100  # seconds of work that waiting processes do now and then

PHOTOGRAPHS = ["data.crop=random", "data.crop_side=64", f"data.crops={SAMPLES}", "data.num_val=null"]
OWN = {SCOREEXP: [*PHOTOGRAPHS, "data.batch_size=8"], BARE: [f"data.samples={SAMPLES}"]}
# weights that training does not change: what is evaluated does not depend on how it was trained
COMMON = [
    "+callbacks.observe._target_=injected.Observe",
    "optimizer.lr=1e-30",
    f"++trainer.val_check_interval={STEPS}",
]
# the folders that Hydra makes by default; in a sweep `run_dir` is that of a job
TIME = "${now:%Y-%m-%d_%H-%M-%S}"
FOLDERS = {
    SCOREEXP: [],
    BARE: [
        f"hydra.run.dir=outputs/{TIME}",
        f"hydra.sweep.dir=multirun/{TIME}",
        "run_dir=${hydra:runtime.output_dir}",
    ],
}
WANDB = {
    SCOREEXP: ["logger=wandb", "logger.wandb.mode=offline"],
    BARE: [
        "+logger.wandb._target_=pytorch_lightning.loggers.WandbLogger",
        "+logger.wandb.offline=true",
        "+logger.wandb.save_dir=${run_dir}",
    ],
}
STACKS = pytest.mark.parametrize("stack", [SCOREEXP, BARE], ids=repr)


def devices(stack: Stack, count: int | str) -> list[str]:
    return [f"trainer.devices={count}", *(["trainer=ddp"] if stack is SCOREEXP else [])]


def single(stack: Stack, folder: Path, *overrides: str) -> list[str]:
    """A run into ``folder / "run"``."""
    return stack.command(folder / "run", STEPS, *OWN[stack], *COMMON, *overrides)


def sweep(stack: Stack, folder: Path, *overrides: str) -> list[str]:
    """Several of them, each into a folder below ``folder``."""
    start = 1 + len(stack.program)
    line = single(stack, folder, *FOLDERS[stack], *overrides)
    return [*line[:start], "-m", *line[start:]]


def work(process: int) -> float:
    """Seconds of work that a process and all that it has started have done, as far as these still are."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents[int(stat.parent.name)] = int(fields[1])
            seconds[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_ours(number: int) -> bool:
        return number == process or (number in parents and is_ours(parents[number]))

    return sum(value for number, value in seconds.items() if is_ours(number))


def finish(stack: Stack, command: list[str], folder: Path) -> Outcome:
    """Run a command to its end and end what it leaves behind; the exit code is ``HANGS`` if it stands still.

    On a busy machine a command works slowly; one that hangs does not work.
    """
    process = stack.start(command, folder)
    start = since = time.monotonic()
    done = 0.0
    while process.poll() is None and time.monotonic() - since < QUIET:
        assert time.monotonic() - start < PATIENCE, command
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
        if abs(work(process.pid) - done) > WORD:
            done, since = work(process.pid), time.monotonic()
    code = process.poll()
    if code is not None:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=QUIET)  # the last words of the others
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    out, err = process.communicate()
    return Outcome(HANGS if code is None else code, out, err)


def jobs(folder: Path) -> list[list[dict[str, Any]]]:
    """What has been observed, for each folder of a run by each process that wrote into it."""
    observed = sorted(path for path in folder.rglob("observed") if path.is_dir())
    return [[json.loads(file.read_text()) for file in sorted(path.iterdir())] for path in observed]


def verdict(outcome: Outcome) -> str:
    """The last line that names an error."""
    return [line for line in outcome.said if re.match(r"(error|[\w.]+Error): ", line)][-1]


# ----------------------------------------------------------------------------------------------- a single run


@pytest.fixture(scope="module", params=[SCOREEXP, BARE], ids=repr)
def evaluated(request, tmp_path_factory):
    """The same model evaluated by one process and by two: for each the metric and what the processes have observed."""
    stack, found = request.param, []
    for count in (1, 2):
        folder = tmp_path_factory.mktemp("evaluated")
        outcome = finish(stack, single(stack, folder, *devices(stack, count)), folder)
        assert outcome.code == 0
        with (folder / "run" / "metrics.csv").open(newline="") as file:
            metric = [row["val/ssim" if stack is SCOREEXP else "val/loss"] for row in csv.DictReader(file)][
                -1
            ]
        [observed] = jobs(folder)
        assert len(observed) == count
        found.append((float(metric), observed))
    return stack, *found


def test_each_sample_is_evaluated_once(evaluated):
    stack, (_, one), (_, two) = evaluated
    ours = stack is SCOREEXP
    for processes, exact in ((one, True), (two, ours)):
        samples = sorted(sample for process in processes for sample in process["samples"])
        assert samples == (list(range(SAMPLES)) if exact else sorted([*range(SAMPLES), 0]))
        assert {process["count"] for process in processes} == {SAMPLES if exact else SAMPLES + 1}


def test_a_metric_does_not_depend_on_the_number_of_processes(evaluated):
    stack, (one, _), (two, _) = evaluated
    difference = abs(two - one) / one
    if stack is SCOREEXP:
        assert difference < 1e-5  # the order of a sum in single precision
    else:
        assert 1e-3 < difference < 1e-2  # one sample of 102 counts twice


def test_each_process_draws_noise_of_its_own(evaluated):
    stack, _, (_, two) = evaluated
    first, second = (process["noise"] for process in two)
    assert (first != second) == (stack is SCOREEXP)


@pytest.mark.parametrize("rank", [0, 1])
@STACKS
def test_an_error_in_one_process(stack, rank, tmp_path):
    """The bare stack's last word is on the connection that the failing process has left."""
    broken = fault("OutOfMemory", step=2, rank=rank)
    outcome = finish(stack, single(stack, tmp_path, *devices(stack, 2), *broken), tmp_path)
    ours = stack is SCOREEXP
    assert outcome.code == 1
    assert (len(outcome.complaints) <= 3) == ours
    assert ("out of memory" in verdict(outcome)) == ours
    assert ("Connection closed by peer" in verdict(outcome)) != ours


@STACKS
def test_a_signal_to_the_first_process(stack, tmp_path):
    stop = fault("Signal", step=2, name="SIGTERM", rank=0)
    outcome = finish(stack, single(stack, tmp_path, *devices(stack, 2), *stop), tmp_path)
    ours = stack is SCOREEXP
    assert outcome.code == (143 if ours else 0)
    assert last(tmp_path / "run").exists() == ours
    if ours:
        assert stack.step(last(tmp_path / "run")) in (2, 3)


# -------------------------------------------------------------------------------------------------- a sweep


@pytest.mark.parametrize(
    ("stack", "count", "folders", "runs"),
    [(SCOREEXP, 1, 2, 2), (SCOREEXP, 2, 2, 2), (BARE, 1, 2, 1), (BARE, 2, 4, 1)],
    ids=repr,
)
def test_two_jobs_are_two_folders_and_two_runs_of_wandb(stack, count, folders, runs, tmp_path):
    overrides = [*devices(stack, count), *WANDB[stack], "seed=0,1"]
    outcome = finish(stack, sweep(stack, tmp_path, *overrides), tmp_path)
    assert outcome.code == 0
    assert len(jobs(tmp_path)) == folders
    assert all(process["ended"] for job in jobs(tmp_path) for process in job)
    assert len({path.name for path in tmp_path.rglob("offline-run-*") if path.is_dir()}) == runs


@pytest.mark.parametrize(
    ("order", "wrong"),
    [
        ("1,2", [([1], {101}), ([1], {101}), ([2], {102}), ([2], {102})]),
        ("2,1", [([1], {202}), ([1], {202}), ([2], {102}), ([2], {102})]),
    ],
)
@STACKS
def test_jobs_of_one_process_and_of_two(stack, order, wrong, tmp_path):
    """The bare stack runs each job twice; one of a single process counts what two have seen if there were two before it."""
    outcome = finish(stack, sweep(stack, tmp_path, *devices(stack, order)), tmp_path)
    assert outcome.code == 0
    processes_and_counts = sorted(
        ([process["processes"] for process in job], {process["count"] for process in job})
        for job in jobs(tmp_path)
    )
    assert processes_and_counts == ([([1], {101}), ([2, 2], {101})] if stack is SCOREEXP else wrong)


@STACKS
def test_a_job_that_fails_does_not_stop_the_others(stack, tmp_path):
    """The second process of the first job fails."""
    broken = fault("Failure", step=2, rank="1,-1")
    outcome = finish(stack, sweep(stack, tmp_path, *devices(stack, 2), *broken), tmp_path)
    ended = sorted(all(process["ended"] for process in job) for job in jobs(tmp_path))
    if stack is SCOREEXP:
        assert outcome.code == 1
        assert outcome.complaints[-1].startswith("error: 1 of 2 jobs failed: rank_1;")
        assert sum("RuntimeError: the cause" in line for line in outcome.complaints) == 1
        assert ended == [False, True]
    else:
        assert outcome.code == HANGS
        assert not any(ended)
