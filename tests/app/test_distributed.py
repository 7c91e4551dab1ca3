"""Runs of several processes: the same result, one folder, one error message.

Most tests fork processes that find themselves in the environment that torchrun or Slurm makes; slow ones use the launchers.
"""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, composed

from scoreexp.app.commands.train import train
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.data.order import EvaluationOrder
from scoreexp.lit import ScoreModule
from scoreexp.lit.checkpoint import read_checkpoint
from scoreexp.numerics.fokker_planck import ScorePrecomputation
from scoreexp.system.processes import independent_launcher, is_first_process, require_all_processes
from scoreexp.train import PROVIDED, SCHEMA

pytestmark = pytest.mark.integration

PATIENCE = 120  # seconds until a hang is a failure
FIVE_PICTURES = ["data.crop=random", "data.crops=5", "data.crop_side=64"]
# In double precision the order of a sum is worth 1e-16 of it, which Adam amplifies where a gradient is tiny (3e-9 was seen);
# one of its steps is 1e-3.
DOUBLE = "trainer.precision=64-true"
SAME_WEIGHTS = {"rtol": 0, "atol": 1e-7}
SAME_METRIC = 1e-5  # sums in single precision; a picture counted twice is worth 1e-2


def torchrun(rank: int, world_size: int, port: int) -> dict[str, str]:
    own = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
    common = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "TORCHELASTIC_RUN_ID": "none"}
    return {k: str(v) for k, v in (own | common | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items()}


def slurm(rank: int, world_size: int, port: int) -> dict[str, str]:
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0}
    common = {"SLURM_NTASKS": world_size, "SLURM_NTASKS_PER_NODE": world_size, "SLURM_NNODES": 1}
    job = {
        "SLURM_JOB_ID": 4711,
        "SLURM_JOB_NAME": "train",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {k: str(v) for k, v in (own | common | job).items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_processes(count: int, task: Callable[[], Any], environment=torchrun) -> list[Any]:
    """What ``task`` returns or raises in each of ``count`` processes of one run."""
    port, context = free_port(), multiprocessing.get_context("fork")

    def run(rank: int, answer: Any) -> None:
        if count > 1:
            os.environ |= environment(rank, count, port)
        try:
            answer.send(task())
        except BaseException as error:
            answer.send(error)

    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [context.Process(target=run, args=(rank, pipes[rank][1])) for rank in range(count)]
    try:
        for process in processes:
            process.start()
        answers = []
        for rank, (receive, _) in enumerate(pipes):
            assert receive.poll(PATIENCE), f"process {rank} hangs"
            answers.append(receive.recv())
        return answers
    finally:
        for process in processes:
            process.kill()
            process.join()


class Record(pl.Callback):
    """What one process has seen of a run."""

    def __init__(self, action=None):
        self.seen: dict[str, Any] = {"loss": [], "ssim": [], "noise": []}
        self.action = action

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen["loss"].append(float(trainer.callback_metrics["train/loss"]))
        if self.action is not None:
            self.action(trainer)

    def on_validation_end(self, trainer, pl_module):
        self.seen["ssim"].append(float(trainer.callback_metrics["val/ssim"]))

    def on_train_end(self, trainer, pl_module):
        self.seen["step"] = trainer.global_step
        self.seen["weights"] = {k: v.clone().numpy() for k, v in pl_module.state_dict().items()}


def recorded(*overrides: str, action: Callable[[pl.Trainer], None] | None = None) -> Callable[[], dict]:
    """A run that reports what it has seen."""
    cfg = composed("train", *TINY, *overrides)

    def run() -> dict:
        record, make, draws = Record(action), pl.Trainer.__init__, ScoreModule._draws

        def with_record(self, *args, callbacks=(), **kwargs):
            make(self, *args, callbacks=[*callbacks, record], **kwargs)

        def with_noise(self, batch_idx, like):
            t, noise = draws(self, batch_idx, like)
            record.seen["noise"].append(noise.numpy())
            return t, noise

        pl.Trainer.__init__, ScoreModule._draws = with_record, with_noise
        result = train(cfg)
        return {**record.seen, "status": result.status}

    return run


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_weights(a: dict, b: dict, **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            torch.from_numpy(value), torch.from_numpy(b[name]), **tolerance or {"rtol": 0, "atol": 0}
        )


def ddp(count: int) -> list[str]:
    return ["trainer=ddp", f"trainer.devices={count}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run that stops on a target, by one process and by two."""
    folder = tmp_path_factory.mktemp("runs")
    target = ["callbacks.stop.target=-1", "trainer.max_steps=9", "trainer.val_check_interval=2"]
    common = [*FIVE_PICTURES, *target, DOUBLE, "callbacks.checkpoints.every_n_steps=1"]
    [one] = in_processes(1, recorded(*common, f"run_dir={folder / 'one'}"))
    two = in_processes(2, recorded(*common, *ddp(2), f"run_dir={folder / 'two'}"))
    return folder, one, two


def test_two_processes_do_what_one_does_on_the_same_global_batch(runs):
    _, one, two = runs
    assert len(one["loss"]) == 4
    for process in two:
        assert process["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert process["ssim"] == pytest.approx(one["ssim"], abs=SAME_METRIC), "five images, each once"
        assert_same_weights(process["weights"], one["weights"], **SAME_WEIGHTS)
    assert {name.partition(".")[0] for name in one["weights"]} == {"denoiser", "averaged"}


def test_processes_agree_exactly(runs):
    _, _, (first, second) = runs
    assert first["loss"] == second["loss"]
    assert first["ssim"] == second["ssim"]
    assert (first["step"], first["status"]) == (second["step"], second["status"])
    assert first["step"] == 4
    assert "reached the target" in first["status"]
    assert_same_weights(first["weights"], second["weights"])


def test_each_process_draws_its_own_part_of_the_noise(runs):
    _, one, (first, second) = runs
    for whole, *parts in zip(one["noise"], first["noise"], second["noise"], strict=True):
        assert (torch.from_numpy(whole) == torch.cat([torch.from_numpy(part) for part in parts])).all()
        assert (parts[0] != parts[1]).all()


def test_processes_share_one_folder(runs):
    folder, _, _ = runs
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
    files = [
        sorted(str(path.relative_to(folder / run)) for path in (folder / run).rglob("*") if path.is_file())
        for run in ("one", "two")
    ]
    assert files[0] == files[1]
    assert [row["step"] for row in rows(folder / "two")] == ["1", "2", "3", "4"]
    checkpoints = {path.name for path in (folder / "two" / "checkpoints").iterdir()}
    assert checkpoints == {"last.ckpt", "previous.ckpt", "best.ckpt"}


@pytest.mark.parametrize("environment", [torchrun, pytest.param(slurm, marks=pytest.mark.slow)])
def test_a_process_without_a_picture_takes_part(tmp_path, environment):
    """The default data set is a single photograph."""
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=1"]
    [one] = in_processes(1, recorded(*steps, DOUBLE, f"run_dir={tmp_path / 'one'}"))
    two = in_processes(2, recorded(*steps, DOUBLE, *ddp(2), f"run_dir={tmp_path / 'two'}"), environment)
    for process in two:
        assert process["ssim"] == pytest.approx(one["ssim"], abs=SAME_METRIC)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs, tmp_path):
    _, one, _ = runs
    for steps, count in ((1, 2), (3, 1), (4, 2)):
        where = [f"run_dir={tmp_path / 'run'}", "resume=auto", *(ddp(count) if count > 1 else ())]
        how_long = [f"trainer.max_steps={steps}", "trainer.val_check_interval=2", DOUBLE]
        *_, last = in_processes(count, recorded(*FIVE_PICTURES, *how_long, *where))
        assert last["step"] == steps
    assert_same_weights(last["weights"], one["weights"], **SAME_WEIGHTS)
    assert [row["step"] for row in rows(tmp_path / "run")] == ["1", "2", "3", "4"]


def test_two_processes_go_on_from_another_run(runs, tmp_path):
    folder, one, _ = runs
    half = tmp_path / "half" / "checkpoints" / "half.ckpt"
    half.parent.mkdir(parents=True)
    shutil.copy(folder / "two" / "checkpoints" / "previous.ckpt", half)
    assert read_checkpoint(half)["global_step"] == 3
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=2", DOUBLE, f"ckpt={half}"]
    first, second = in_processes(2, recorded(*FIVE_PICTURES, *steps, *ddp(2), f"run_dir={tmp_path / 'on'}"))
    assert (first["step"], second["step"], len(first["loss"])) == (4, 4, 1)
    assert_same_weights(first["weights"], one["weights"], **SAME_WEIGHTS)
    best = json.loads((tmp_path / "on" / "metrics.json").read_text())["metrics"]["best/step"]
    assert best == 4, "the best checkpoint of the other run is not here"


@pytest.mark.parametrize("failing", [0, 1])
def test_the_process_that_fails_first_says_why_and_all_end(tmp_path, failing):
    def fail(trainer):
        if trainer.global_rank == failing and trainer.global_step == 2:
            raise UserError("the cause")

    answers = in_processes(
        2, recorded("trainer.max_steps=9", *ddp(2), f"run_dir={tmp_path / 'run'}", action=fail)
    )
    cause, other = answers[failing], answers[1 - failing]
    assert isinstance(cause, UserError)
    assert str(cause) == "the cause"
    assert isinstance(other, SystemExit)
    assert other.code == 1


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    def stop(trainer):
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run = recorded("trainer.max_steps=9", *ddp(2), f"run_dir={tmp_path / 'run'}", action=stop)
    first, second = in_processes(2, run)
    assert (first.code, second.code) == (143, 0)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2


def test_score_fields_are_solved_by_one_process_and_read_by_the_other(tmp_path, monkeypatch):
    solve = ScorePrecomputation.__call__

    def counted(self, images, **kwargs):
        with (tmp_path / "solved").open("a") as file:
            file.write(f"{os.environ['RANK']}\n" * len(images))
        time.sleep(1)  # the other one would find it not yet solved
        return solve(self, images, **kwargs)

    monkeypatch.setattr(ScorePrecomputation, "__call__", counted)
    embedding = ["experiment=photo32_ours", f"embedding.cache={tmp_path / 'cache'}", *FIVE_PICTURES]
    embedding.append("embedding.precomputation.solver=factorised")
    run = recorded(*embedding, *TINY, *ddp(2), "trainer.max_steps=1", f"run_dir={tmp_path / 'run'}")
    answers = in_processes(2, run)
    assert [answer["step"] for answer in answers] == [1, 1]
    solved = (tmp_path / "solved").read_text().split()
    assert len(solved) == 5
    assert len(set(solved)) == 1
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 5


@pytest.mark.parametrize("count", [1, 5, 8, 11])
def test_all_processes_see_as_many_evaluation_batches(count):
    orders = [EvaluationOrder(range(count), batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    draws = [list(order) for order in orders]
    assert {len(order) for order in orders} == {len(drawn) for drawn in draws} == {-(-count // 6)}
    assert sorted(np.concatenate([draw.elements for drawn in draws for draw in drawn])) == list(range(count))


def test_launchers_are_recognised_by_their_variables():
    for environment in (torchrun, slurm):
        assert [is_first_process(environment(rank, 2, 1)) for rank in (0, 1)] == [True, False]
        assert independent_launcher(environment(0, 2, 1)) is not None
        assert independent_launcher(environment(0, 1, 1)) is None
        require_all_processes(2, environment(0, 2, 1))
        with pytest.raises(UserError, match="has started 2 processes, the run is for 1: set trainer=ddp"):
            require_all_processes(1, environment(0, 2, 1))
    shell = slurm(0, 2, 1) | {"SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}
    assert independent_launcher(shell) is None
    assert not is_first_process(shell)
    lightning = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
    assert not is_first_process(lightning)
    assert independent_launcher(lightning) is None
    assert is_first_process({})
    require_all_processes(1, {})


def test_what_would_start_twice_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def refusal(*arguments: str) -> str:
        code = run_app(
            "train", "scoreexp.app.commands.train:train", schema=SCHEMA, provided=PROVIDED, argv=arguments
        )
        assert code == 1
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().err

    in_one_process = ("-m", "seed=0,1", "run_dir=sw", "trainer=ddp", "hydra/launcher=basic")
    assert refusal(*in_one_process).startswith("error: trainer.devices=auto starts this command once more")
    for name, value in torchrun(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    assert refusal() == "error: the torchrun processes of a run need one folder: add run_dir=DIR\n"
    sweep = refusal("-m", "seed=0,1", "run_dir=sw")
    assert sweep.startswith("error: each process of torchrun would run the whole sweep")


def command(*arguments: str, folder: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    line = [
        sys.executable,
        *launcher,
        "-m",
        "scoreexp.train",
        *arguments,
        *TINY,
        "trainer.val_check_interval=2",
    ]
    return subprocess.Popen(
        line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_lightnings_launcher_and_torchrun_make_one_run_each(tmp_path):
    arguments = [*ddp(2), "trainer.max_steps=2"]
    process = command(*arguments, folder=tmp_path)
    said, complaints = process.communicate(timeout=280)
    assert (process.returncode, complaints) == (0, "")
    assert said.count("experiment") == said.count("finished after 2 steps") == 1
    [by_lightning] = (tmp_path / "outputs" / "train").iterdir()
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}")
    process = command(*arguments, "run_dir=run", folder=tmp_path, launcher=launcher)
    said, complaints = process.communicate(timeout=280)
    assert process.returncode == 0, complaints
    assert said.count("experiment") == said.count("finished after 2 steps") == 1
    found = [json.loads((run / "metrics.json").read_text()) for run in (by_lightning, tmp_path / "run")]
    assert found[0]["metrics"]["val/ssim"] == found[1]["metrics"]["val/ssim"]


@pytest.mark.slow
def test_an_error_is_the_last_thing_said_and_a_signal_saves(tmp_path):
    process = command(*ddp(2), "optimizer.lr=1e30", "model.warmup_steps=0", "run_dir=a", folder=tmp_path)
    _, complaints = process.communicate(timeout=280)
    assert process.returncode == 1
    assert len(complaints.splitlines()) <= 3
    assert "is not finite at step" in complaints
    process = command(*ddp(2), "trainer.max_steps=100000", "run_dir=b", folder=tmp_path)
    first = [process.stdout.readline() for _ in range(3)]
    assert first[-1].startswith("run directory")
    while not (tmp_path / "b" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, complaints = process.communicate(timeout=280)
    assert process.returncode == 143
    assert complaints == "\nSIGTERM: finishing this step and saving; once more to stop at once\n"
    assert "resume=auto" in said
    assert not (tmp_path / "b" / ".failed").exists()


@pytest.mark.slow
def test_jobs_of_a_sweep_have_several_processes_each(tmp_path):
    """Hydra's own launcher makes of this four folders, or hangs."""
    common = [*FIVE_PICTURES, "trainer.max_steps=4"]
    twice = ["trainer.val_check_interval=2"]
    wandb = ["logger=wandb", "logger.wandb.mode=offline"]
    process = command("-m", *common, *ddp(2), *wandb, "seed=0,1", "run_dir=sw", folder=tmp_path)
    _, complaints = process.communicate(timeout=580)
    assert process.returncode == 0, complaints
    assert sorted(path.name for path in (tmp_path / "sw").iterdir()) == ["seed_0", "seed_1", "sweep.json"]
    for seed in (0, 1):
        folder = tmp_path / "sw" / f"seed_{seed}"
        assert len(list(folder.rglob("*.csv"))) == 1
        assert len(list(folder.glob("wandb/offline-run-*"))) == 1
        [one] = in_processes(1, recorded(*common, *twice, f"seed={seed}", f"run_dir={tmp_path / str(seed)}"))
        found = json.loads((folder / "metrics.json").read_text())["metrics"]["val/ssim"]
        assert found == pytest.approx(one["ssim"][-1], abs=1e-3)  # weights in single precision
