"""What a user sees when something breaks: at most three lines, an exit code, and every earlier result intact."""

import csv
import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY

from scoreexp.app.launch import run_app
from scoreexp.figures import images as figures
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.lit.csv_logger import CSVLogger
from scoreexp.objectives import DenoisingScoreMatching
from scoreexp.system.locks import hold
from scoreexp.train import PROVIDED, SCHEMA

SHORT = [*TINY, "trainer.val_check_interval=4", "callbacks.checkpoints.every_n_steps=2"]


def launch(run: Path, *overrides: str, steps: int = 8) -> int:
    """``python -m scoreexp.train`` in this process, and its exit code."""
    arguments = [*SHORT, f"trainer.max_steps={steps}", f"run_dir={run}", "resume=auto", *overrides]
    return run_app(
        "train", "scoreexp.app.commands.train:train", schema=SCHEMA, provided=PROVIDED, argv=arguments
    )


def weights(run: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return read_checkpoint(run / "checkpoints" / name)["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 8 steps in which nothing breaks."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert launch(run) == 0
    return run


def fail_at_call(patch: pytest.MonkeyPatch, owner, name: str, number: int, error: Exception) -> None:
    original, calls = getattr(owner, name), []

    def broken(*args, **kwargs):
        calls.append(1)
        if len(calls) >= number:
            raise error
        return original(*args, **kwargs)

    patch.setattr(owner, name, broken)


def said(capsys) -> list[str]:
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 3, lines
    assert all(line.startswith("error: ") for line in lines)
    return lines


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name", "number", "error", "file"),
    [
        (torch, "save", 4, RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"), "last.new.ckpt"),
        pytest.param(csv.DictWriter, "writerows", 3, FULL, "metrics.csv", marks=pytest.mark.slow),
        pytest.param(figures.Image.Image, "save", 1, FULL, ".png", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_once_there_is_room(
    owner, name, number, error, file, whole, tmp_path, capsys
):
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_at_call(patch, owner, name, number, error)
        assert launch(run) == 1
    [line] = said(capsys)
    assert "No space left on device" in line
    assert file in line
    assert "files that were there before are untouched" in line
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert 2 <= saved < 8
    assert launch(run) == 0
    assert same(weights(run), weights(whole))


def test_no_memory_names_the_settings_that_help_and_saves_the_last_step(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        fail_at_call(patch, DenoisingScoreMatching, "__call__", 4, error)
        assert launch(tmp_path / "run") == 1
    [line] = said(capsys)
    for remedy in ("at step 3", "trainer.accumulate_grad_batches=2", "data.batch_size", "trainer.precision"):
        assert remedy in line
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_nan_stops_at_its_step_and_names_causes_and_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    original = DenoisingScoreMatching.__call__
    calls: list[int] = []

    def poisoned(*args):
        calls.append(1)
        return original(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(DenoisingScoreMatching, "__call__", poisoned)
    assert launch(tmp_path / "run") == 1
    first, second = said(capsys)
    assert "not finite at step 3" in first
    assert "optimizer.lr" in first
    assert second.endswith("run/checkpoints/last.ckpt of step 2")
    assert all(value.isfinite().all() for value in weights(tmp_path / "run").values())


class KillLoader(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 2:
            for process in multiprocessing.active_children():
                process.kill()


@pytest.mark.slow
def test_a_killed_data_process_is_named_and_the_run_goes_on_without(whole, tmp_path, capsys):
    original = pl.Trainer.__init__

    def patched(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*callbacks, KillLoader()], **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl.Trainer, "__init__", patched)
        assert launch(tmp_path / "run", "data.num_workers=1", steps=200) == 1
    first, second = said(capsys)
    assert "a process that loads data was killed" in first
    assert "data.num_workers=0" in first
    assert "last good checkpoint" in second
    assert launch(tmp_path / "run") == 0
    assert same(weights(tmp_path / "run"), weights(whole))


def test_the_best_checkpoint_serves_where_both_others_are_damaged(whole, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for name in ("last.ckpt", "previous.ckpt"):
        os.truncate(run / "checkpoints" / name, 1000)
    assert launch(run, steps=9) == 0
    output = capsys.readouterr().out
    assert output.count("warning: ") == 2
    assert "best.ckpt" in next(line for line in output.splitlines() if line.startswith("resumed "))
    assert same(weights(run, "previous.ckpt"), weights(whole))
    for path in (run / "checkpoints").iterdir():
        os.truncate(path, 1000)
    assert launch(run) == 1
    assert "holds no intact checkpoint" in capsys.readouterr().err


def test_a_moved_run_goes_on_in_its_new_place(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert launch(tmp_path / "new", steps=9) == 0
    assert read_checkpoint(tmp_path / "new" / "checkpoints" / "last.ckpt")["global_step"] == 9
    assert same(weights(tmp_path / "new", "previous.ckpt"), weights(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_conclusion_of_a_shorter_run_does_not_stand_for_the_longer_one(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shorter = json.loads((run / "metrics.json").read_text()) | {"step": 4}
    (run / "metrics.json").write_text(
        json.dumps(shorter)
    )  # as after a kill just before the second conclusion
    assert launch(run) == 0
    assert json.loads((run / "metrics.json").read_text())["step"] == 8


def test_a_row_that_a_full_disk_cut_short_is_not_taken_for_another(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss\n1,1.0\n2,0.5\n1")  # of "12,..."
    table = CSVLogger(tmp_path / "metrics.csv")
    table.continue_from(5)
    assert table.rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_folder_that_cannot_be_written_to_is_noticed_before_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    original = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & os.O_RDWR and str(path).startswith(str(tmp_path / "run" / "checkpoints")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("training began"))
    assert launch(tmp_path / "run") == 1
    [line] = said(capsys)
    assert "cannot be written to (Read-only file system)" in line


def test_a_folder_in_which_another_run_is_going_on_is_refused_until_it_ends(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()

    def other() -> None:
        with hold(run):
            held.set()
            end.wait()

    process = context.Process(target=other)
    process.start()
    assert held.wait(60)
    assert launch(run) == 1
    [line] = said(capsys)
    assert f"run_dir {run} is in use by process {process.pid} on " in line
    assert not (run / "manifest.json").exists()
    process.kill()
    process.join()
    assert launch(run, steps=2) == 0


# ---------------------------------------------------------------------------------- with real processes


def command(run: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "scoreexp.train", *SHORT, f"run_dir={run}", "resume=auto", *overrides]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 10 MiB: room for a run with its four checkpoints of 1.5 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk, whole):
    run, ballast = small_disk / "run", small_disk / "ballast"
    ballast.write_bytes(bytes(6 * 2**20))
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: sums in another order round otherwise
    result = subprocess.run(
        command(run, "trainer.max_steps=8"), capture_output=True, text=True, env=one_thread
    )
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) <= 3, result.stderr
    assert "No space left on device" in result.stderr.splitlines()[-1]
    ballast.unlink()
    assert launch(run) == 0
    assert same(weights(run), weights(whole))


@pytest.mark.slow
def test_a_disk_that_is_really_read_only(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    result = subprocess.run(command(small_disk / "run"), capture_output=True, text=True)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "Read-only file system" in line


@pytest.mark.slow
def test_sigterm_saves_and_exits_143(tmp_path, whole):
    run = tmp_path / "run"
    process = subprocess.Popen(command(run, "trainer.max_steps=100000"), stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert "SIGTERM" in process.stderr.read()
    reached = read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"]
    assert launch(run, steps=reached + 2) == 0
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == reached + 2
