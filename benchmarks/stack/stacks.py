"""The same run on scoreexp and on the bare stack, as a user starts it and with the same fault injected.

A test names for both what it expects: that scoreexp keeps a promise, and in which way the bare stack breaks it. The
latter fails once a new version of the stack keeps it too.
"""

import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoreexp.lit.checkpoint import read_checkpoint

HERE = Path(__file__).parent
EVERY = 5  # steps between checkpoints
SMALL = [  # of scoreexp: a photograph of 16 x 16 pixels, a network of some thousand weights, three sampling steps
    "data.size=16",
    "data.batch_size=4",
    "network.channels=16",
    "network.multipliers=[1,2]",
    "network.blocks=1",
    "network.attention_resolutions=[]",
    "sampler.grid.steps=3",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "model.warmup_steps=4",
]


@dataclass(frozen=True)
class Outcome:
    """What a user sees of a command that has ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """All lines but empty ones, standard output first."""
        return [line for line in (self.out + self.err).splitlines() if line.strip()]

    @property
    def complaints(self) -> list[str]:
        """The lines of standard error."""
        return [line for line in self.err.splitlines() if line.strip()]

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out


class Stack(ABC):
    """One of the two programs."""

    program: tuple[str, ...]  # of the command, after the interpreter

    @abstractmethod
    def arguments(self, run: Path, steps: int, resume: bool) -> list[str]:
        """Train into the folder ``run`` until ``steps`` steps are done, with a checkpoint every ``EVERY`` steps."""

    @abstractmethod
    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        """All the weights in a checkpoint."""

    def command(self, run: Path, steps: int, *overrides: str, resume: bool = False) -> list[str]:
        return [sys.executable, *self.program, *self.arguments(run, steps, resume), *overrides]

    def start(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"} | dict(env or {})
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def run(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 120
    ) -> Outcome:
        """Run a command to its end."""
        process = self.start(command, cwd, env)
        out, err = process.communicate(timeout=seconds)
        return Outcome(process.returncode, out, err)

    def train(self, run: Path, steps: int, *overrides: str, resume: bool = False, **how: Any) -> Outcome:
        """Train in a process of its own, as a user would."""
        return self.run(self.command(run, steps, *overrides, resume=resume), run.parent, **how)

    def step(self, checkpoint: Path) -> int:
        """How many steps a checkpoint has done."""
        return int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])

    def __repr__(self) -> str:
        return type(self).__name__.lower()


class Scoreexp(Stack):
    program = ("-m", "scoreexp.train")

    def arguments(self, run: Path, steps: int, resume: bool) -> list[str]:
        own = [f"trainer.max_steps={steps}", "trainer.val_check_interval=23", f"run_dir={run}"]
        return [
            *SMALL,
            *own,
            f"callbacks.checkpoints.every_n_steps={EVERY}",
            *(["resume=auto"] if resume else []),
        ]

    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        return read_checkpoint(checkpoint)["state_dict"]


class Bare(Stack):
    program = (str(HERE / "bare.py"),)

    def arguments(self, run: Path, steps: int, resume: bool) -> list[str]:
        # "last" starts anew where there is none
        return [
            f"trainer.max_steps={steps}",
            f"every={EVERY}",
            f"run_dir={run}",
            *(["ckpt_path=last"] if resume else []),
        ]

    def weights(self, checkpoint: Path) -> dict[str, torch.Tensor]:
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        average, raw = saved["state_dict"], saved["current_model_state"]
        return {f"average.{k}": v for k, v in average.items()} | {f"raw.{k}": v for k, v in raw.items()}


SCOREEXP, BARE = Scoreexp(), Bare()


def fault(name: str, /, **arguments: Any) -> list[str]:
    """Overrides that inject ``injected.<name>``, for either stack."""
    given = [f"+callbacks.fault.{key}={value}" for key, value in arguments.items()]
    return [f"+callbacks.fault._target_=injected.{name}", *given]


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def all_finite(weights: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values() if value.is_floating_point())


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Whether two models are bitwise equal."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def forked(
    command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, seconds: float = 120
) -> Outcome:
    """Run a command of either stack to its end in a child of this process, which has imported everything already."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        streams = (out.fileno(), err.fileno())
        child = multiprocessing.get_context("fork").Process(target=_become, args=(command, cwd, env, streams))
        child.start()
        child.join(seconds)
        if child.exitcode is None:
            child.kill()
            raise TimeoutError(f"{' '.join(command)} takes more than {seconds} s")
        out.seek(0)
        err.seek(0)
        return Outcome(child.exitcode, out.read().decode(), err.read().decode())


def _become(
    command: Sequence[str], cwd: Path, env: Mapping[str, str] | None, streams: tuple[int, int]
) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    for name in ("pytorch_lightning", "lightning_fabric"):  # their handlers keep the stream of the import
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stderr)
    os.environ.update(env or {})
    os.chdir(cwd)
    if command[1] == "-m":
        sys.argv = [command[2], *command[3:]]
        sys.modules.pop(command[2], None)
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command[1:])
        runpy.run_path(command[1], run_name="__main__")
