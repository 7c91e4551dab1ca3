"""``-m``: jobs in processes of their own, their folders, and what a second call finds."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

from scoreexp.app.conf_dir import conf_dir
from scoreexp.app.jobs import read_status
from scoreexp.app.launch import run_app
from scoreexp.app.sweep import job_name

CONF = {
    "toy.yaml": """\
defaults:
  - _self_
  - hydra: default
  - experiment: null
  - override hydra/launcher: processes
name: toy
seed: 0
size: [1]
trainer:
  devices: 1
run_dir: outputs/${name}/${now:%Y}
resume: never
""",
    "experiment/a.yaml": "# @package _global_\nname: a\n",
    "experiment/b.yaml": "# @package _global_\nname: b\n",
    "experiment/sweep.yaml": "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,7\n",
    "hydra/default.yaml": (conf_dir() / "hydra" / "default.yaml").read_text(),
    **{
        f"hydra/launcher/{path.name}": path.read_text()
        for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml")
    },
}
SCHEMA = {
    "name": "str",
    "seed": "int",
    "size": "list[int]",
    "trainer.devices": "int",
    "run_dir": "str",
    "resume": "str",
}
ENTRY = f"""
import sys
from pathlib import Path

from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError


def train(cfg):
    if cfg.seed == 1:
        raise UserError("seed=1 is unlucky; take another")
    folder = Path(cfg.run_dir)
    with (folder / "result").open("a") as result:
        result.write(f"{{cfg.name}} {{cfg.seed}} {{cfg.resume}}\\n")


if __name__ == "__main__":
    sys.exit(run_app("toy", "toy_entry:train", schema={SCHEMA!r}, module="toy_entry"))
"""


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder: exit code and lines of stderr."""
    for name, text in CONF.items():
        file = tmp_path / "code" / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "code" / "toy_entry.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"), prepend=os.pathsep)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    importlib.invalidate_caches()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*argv):
        arguments = ["-cp", str(tmp_path / "code" / "conf"), *argv]
        code = run_app("toy", "toy_entry:train", schema=SCHEMA, argv=arguments, module="toy_entry")
        return code, capsys.readouterr().err.splitlines()

    return run


def results(folder: str) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in Path(folder).glob("*/result")}


@pytest.mark.integration
def test_a_sweep_is_continued_and_extended_by_repeating_it(launch):
    code, lines = launch("-m", "experiment=a,b", "seed=0,1", "run_dir=sw", "hydra.launcher.n_parallel=2")
    assert code == 1
    assert results("sw") == {"a+seed_0": "a 0 auto\n", "b+seed_0": "b 0 auto\n"}
    assert lines[-1].startswith("error: 2 of 4 jobs failed: a+seed_1, b+seed_1; repeat the command")
    assert sum("seed=1 is unlucky; take another" in line for line in lines) == 2
    assert read_status(Path("sw/a+seed_1"))["error"] == "error: seed=1 is unlucky; take another"
    assert launch("-m", "experiment=a,b", "seed=0,2", "run_dir=sw", "hydra.launcher.fail_fast=true")[0] == 0
    assert results("sw") == {
        f"{name}+seed_{seed}": f"{name} {seed} auto\n" for name in "ab" for seed in (0, 2)
    }, "what was done ran once"
    record = json.loads(Path("sw/sweep.json").read_text())
    assert record["name"] == "sw"
    assert len(record["calls"]) == 2
    assert [job["name"] for job in record["jobs"]] == [
        f"{name}+seed_{seed}" for name, seed in ("a0", "a1", "b0", "b1", "a2", "b2")
    ]
    assert record["jobs"][0]["swept"] == ["experiment=a", "seed=0"]
    assert record["jobs"][0]["folder"] == "a+seed_0"


def test_names_that_hydra_cannot_read_reach_the_jobs(launch):
    code, lines = launch("-m", "name=it's (1)", "seed=1,2", "run_dir=my runs/ü")
    assert code == 1
    assert results("my runs/ü") == {"seed_2": "it's (1) 2 auto\n"}
    assert "repeat the command with 'run_dir=my runs/ü' to run them again" in lines[-1]


def test_default_folder_is_named_by_the_experiments(launch):
    assert launch("-m", "experiment=a,b")[0] == 0
    [folder] = Path("outputs/a+b").iterdir()
    assert results(folder) == {"a": "a 0 auto\n", "b": "b 0 auto\n"}
    assert json.loads((folder / "sweep.json").read_text())["name"] == f"a+b/{folder.name}"


def test_a_sweep_written_in_a_file_does_not_start_itself_again(launch):
    assert launch("experiment=sweep", "run_dir=sw")[0] == 0
    assert results("sw") == {"seed_0": "toy 0 auto\n", "seed_7": "toy 7 auto\n"}


def test_faults_are_found_before_the_first_job(launch):
    for arguments, expected in {
        ("seed=0,x",): "job 1: seed=x must be an int",
        ("seed=0,1", "hydra.launcher.n_paralel=2"): "did you mean 'hydra.launcher.n_parallel'",
        ("seed=0,1", "hydra.launcher.n_parallel=0"): "hydra.launcher.n_parallel=0 must be an int >= 1",
        ("seed=0,1", "hydra.launcher.gpus=[0]", "trainer.devices=2"): "needs 2 GPUs, there are 1",
        ("seed=0,1", "hydra/launcher=proceses"): "did you mean 'processes'",
        ("seed=0,1", "hydra/launcher=basic", "trainer.devices=2"): "add hydra/launcher=processes",
    }.items():
        code, lines = launch("-m", "run_dir=sw", *arguments)
        assert code == 1
        assert expected in lines[-1]
        assert not list(Path().rglob("result"))
    Path("single").mkdir()
    Path("single/manifest.json").write_text("{}")
    code, lines = launch("-m", "run_dir=single", "seed=0,1")
    assert code == 1
    assert "holds a single run" in lines[-1]


def test_basic_launcher_still_runs_in_this_process(launch):
    code, _ = launch("-m", "seed=0,2", "run_dir=sw", "hydra/launcher=basic")
    assert code == 0
    assert results("sw") == {"0": "toy 0 never\n", "1": "toy 2 never\n"}


def test_names_depend_on_the_jobs_own_values_alone():
    assert job_name(["experiment=photo32_ours", "seed=1"]) == "photo32_ours+seed_1"
    assert job_name(["optimizer.lr=1e-3", "embedding=none"]) == "lr_1e-3+embedding_none"
    assert job_name(["+a.lr=1", "b.lr=2"]) == "a.lr_1+b.lr_2"
    lists = [job_name([f"network.multipliers=[{values}]"]) for values in ("1,2", "1-2", "12")]
    assert len(set(lists)) == 3
    assert all(name.startswith("multipliers_1") for name in lists)
    long = [job_name([f"data.path={'x' * 200}{i}.png"]) for i in range(2)]
    assert long[0] != long[1]
    assert max(map(len, long)) < 100


@pytest.mark.integration
def test_submitit_runs_the_same_jobs(launch):
    pytest.importorskip("submitit")
    command = ("-m", "seed=0,1", "run_dir=sw", "hydra/launcher=submitit_local", "hydra.launcher.n_parallel=2")
    code, lines = launch(*command)
    assert code == 1
    assert results("sw") == {"seed_0": "toy 0 auto\n"}
    assert "error: 1 of 2 jobs failed: seed_1" in lines[-1]
    assert any("seed_1 failed" in line and "seed=1 is unlucky" in line for line in lines)
    code, lines = launch(*command)
    assert any("seed_0 is done already" in line for line in lines)
    assert [read_status(Path("sw") / name)["attempts"] for name in ("seed_0", "seed_1")] == [1, 2]


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scoreexp.train", "-m", f"run_dir={folder}", *TINY, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=280)


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_stopped(tmp_path):
    """Stopped in the middle and repeated, a job ends with the numbers of one that was never stopped."""
    import signal
    import time

    arguments = ["seed=0,1", "trainer.max_steps=60", "trainer.val_check_interval=20", "network.blocks=2"]
    assert sweep(tmp_path / "whole", *arguments).returncode == 0
    folder = tmp_path / "sw"
    command = [sys.executable, "-m", "scoreexp.train", "-m", f"run_dir={folder}", *TINY, *arguments]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (folder / "seed_0" / "checkpoints" / "last.ckpt").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    assert sweep(folder, *arguments).returncode == 0
    for seed in (0, 1):
        metrics = [
            json.loads((root / f"seed_{seed}" / "metrics.json").read_text())["metrics"]
            for root in (folder, tmp_path / "whole")
        ]
        for name in ("train/loss", "val/ssim", "best/ssim"):
            assert metrics[0][name] == metrics[1][name]
