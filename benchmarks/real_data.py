"""Runs on real data: ``python -m benchmarks.real_data --root FOLDER [--only NAME ...] [--docs]``

Every command of the table in docs/data.md makes its first steps and an evaluation, with FOLDER holding mnist, cifar10 and
faces64 as ``python -m benchmarks.data.NAME FOLDER/NAME`` makes them. The table has the processor seconds of a step (the
median of those after the first) and of all steps of the command; experiments for a GPU are run with two images per step, to
see that they run, and have no seconds. Written to benchmarks/results/real_data.json; about two minutes of one core.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from scoreexp.app.conf_dir import conf_dir
from scoreexp.system.json_files import write_json

RESULT = Path(__file__).parent / "results" / "real_data.json"
STEPS = 4
ON_CPU = {
    "mnist_cpu": "experiment=mnist_cpu",
    "cifar10_cpu": "experiment=cifar10_cpu",
    "faces64_cpu": "experiment=faces64_cpu",
    "mnist_ddgan_cpu": "experiment=mnist_ddgan_cpu",
    "mnist_autoencoder": "experiment=mnist_autoencoder",
    "cifar10_score_cnn": "experiment=cifar10_score_cnn",
    "cifar10_regression": "experiment=cifar10_regression",
    "cifar10_ours": "experiment=cifar10_ours",
    "celeba64_ours": "experiment=celeba64_ours data=faces64",
}
ON_GPU = {name: f"experiment={name}" for name in ("mnist_ddpm", "mnist_ve", "mnist_ddgan", "cifar10_ddpmpp")}


class Clock(pl.Callback):
    """Processor time after each step."""

    times: ClassVar[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Clock.times = []

    def on_train_batch_end(self, *args: Any) -> None:
        Clock.times.append(time.process_time())


def first_steps(command: str, root: Path, folder: Path, batch_size: int | None) -> dict[str, Any]:
    """Train ``STEPS`` steps and evaluate with few steps of the sampler.

    Args:
        command: of ``conf/train.yaml``.
        root: holds the data sets.
        folder: of the run.
        batch_size: instead of the command's own.
    """
    from benchmarks.real_data import Clock as clock  # that of the run, which is not the one of __main__
    from scoreexp.app.commands.train import train

    os.environ["SCOREEXP_DATA"] = str(root)
    words = [
        *command.split(),
        f"run_dir={folder}",
        f"data.cache={folder.parent / 'cache'}",
        "trainer.accelerator=cpu",
    ]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        asked = compose("train", words)
        cfg = compose("train", [*words, f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}"])
    OmegaConf.set_struct(cfg, False)
    cfg.callbacks.clock = {"_target_": "benchmarks.real_data.Clock"}
    cfg.data.num_val, cfg.data.num_workers, cfg.trainer.precision = 2, 0, "32-true"
    if "grid" in cfg.sampler:
        cfg.sampler.grid.steps = 2
    if batch_size is not None:
        cfg.data.batch_size = batch_size
    if "distribution" in cfg.callbacks:  # few images: this is about the steps
        cfg.callbacks.distribution.n, cfg.callbacks.distribution.reference_n = 4, 64
        cfg.callbacks.checkpoints.monitor = None
    result = train(cfg)
    assert result is not None
    steps = [after - before for before, after in pairwise(clock.times)]
    return {
        "command": f"python -m scoreexp.train {command}",
        "steps": int(asked.trainer.max_steps),
        "seconds_per_step": None if batch_size else statistics.median(steps),
        "status": result.status,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: a command a line."""
    lines = ["| command | steps | CPU seconds per step | CPU hours in all |", "| --- | ---: | ---: | ---: |"]
    for row in rows.values():
        each = row["seconds_per_step"]
        cost = "for a GPU | –" if each is None else f"{each:.2g} | {each * row['steps'] / 3600:.2g}"
        lines.append(f"| `{row['command']}` | {row['steps']:,} | {cost} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="holds mnist, cifar10 and faces64")
    parser.add_argument("--only", nargs="+", choices=[*ON_CPU, *ON_GPU], help="these alone")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/data.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only or [*ON_CPU, *ON_GPU]:
            command, batch_size = (ON_CPU[name], None) if name in ON_CPU else (ON_GPU[name], 2)
            stored[name] = first_steps(command, given.root.resolve(), Path(folder, name), batch_size)
            print(f"{name}: {stored[name]}", flush=True)
            rows = {name: stored[name] for name in (*ON_CPU, *ON_GPU) if name in stored}
            write_json(RESULT, {"machine": describe_machine(), "rows": rows})
    if given.docs:
        write_table(DOCS / "data.md", "real_data", table(rows))


if __name__ == "__main__":
    main()
