"""Mistakes on the command line: what each program says, how much of it, how early, and what it leaves behind."""

import re
import sys
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

import pytest
from stacks import BARE, SCOREEXP

IMPORTED = "import time:"  # what Python's own log of imports begins its lines with


class Fault(NamedTuple):
    """The same mistake for either program.

    Attributes:
        scoreexp: overrides with the mistake.
        says: parts of the message.
        bare: overrides with the mistake.
        asked: what the message ought to name: the key, and the value or, where that is no value, the one that was meant.
        named: whether the bare stack does.
        composes: whether Hydra, which has no signatures to compare with, composes the configuration and begins the job.
        needs_torch: whether only torch, or the data, can tell that it is a mistake.
    """

    scoreexp: str
    says: tuple[str, ...]
    bare: str
    asked: tuple[str, str]
    named: tuple[bool, bool]
    composes: bool = True
    needs_torch: bool = False


CHANNELS = "known: channels, multipliers, blocks"
FAULTS = {
    "unknown key": Fault(
        "network.widht=3",
        ("network.widht=3: unknown key", CHANNELS),
        "net.widht=3",
        ("net.widht", "width"),
        (True, False),
        composes=False,
    ),
    "unknown key, added": Fault(
        "+network.widht=3",
        ("network.widht=3", "no parameter 'widht'", "channels"),
        "+net.widht=3",
        ("widht", "width"),
        (True, False),
    ),
    "unknown choice": Fault(
        "optimizer=adamm",
        ("optimizer=adamm", "did you mean 'adam'", "choices: adam"),
        "optimizer=adamm",
        ("optimizer/adamm", "\tadam\n\tsgd"),
        (True, True),
        composes=False,
    ),
    "unknown trainer option": Fault(
        "+trainer.max_stepz=3",
        ("trainer.max_stepz=3", "did you mean 'max_steps'"),
        "+trainer.max_stepz=3",
        ("max_stepz", "max_steps"),
        (True, False),
    ),
    "misspelt _target_": Fault(
        "optimizer._target_=torch.optim.Adm",
        ("optimizer._target_=torch.optim.Adm", "did you mean 'Adam'"),
        "optimizer._target_=torch.optim.Adm",
        ("torch.optim.Adm", "Adam"),
        (True, False),
    ),
    "width=abc": Fault(
        "network.channels=abc",
        ("network.channels=abc", "an int >= 1"),
        "net.width=abc",
        ("width", "abc"),
        (False, False),
    ),
    "max_epochs=ten": Fault(
        "trainer.max_epochs=ten",
        ("trainer.max_epochs=ten", "an int or null"),
        "trainer.max_epochs=ten",
        ("max_epochs", "ten"),
        (False, False),
    ),
    "lr=fast": Fault(
        "optimizer.lr=fast",
        ("optimizer.lr=fast", "a number"),
        "optimizer.lr=fast",
        ("lr", "fast"),
        (False, False),
    ),
    "lr=-1": Fault(
        "optimizer.lr=-1",
        ("optimizer.lr=-1", "> 0"),
        "optimizer.lr=-1",
        ("learning rate", "-1"),
        (True, True),
    ),
    "width=-5": Fault(
        "network.channels=-5",
        ("network.channels=-5", "an int >= 1"),
        "net.width=-5",
        ("width", "-5"),
        (False, True),
    ),
    "batch=0": Fault(
        "data.batch_size=0",
        ("data.batch_size=0", "an int >= 1"),
        "data.batch_size=0",
        ("batch_size", "=0"),
        (True, True),
    ),
    "missing mandatory value": Fault(
        "data.batch_size=???",
        ("data.batch_size is required", "add data.batch_size=VALUE", "an int >= 1"),
        "data.batch_size=???",
        ("data.batch_size", "int"),
        (True, False),
    ),
    "missing data folder": Fault(
        "data=folder data.root=nowhere",
        ("data.root=nowhere is not a folder", ".png"),
        "data._target_=bare.Files +data.root=nowhere",
        ("root", "nowhere"),
        (False, False),
        needs_torch=True,
    ),
    "gpu on a machine without": Fault(
        "trainer.accelerator=gpu",
        ("trainer.accelerator=gpu", "set trainer.accelerator=cpu"),
        "trainer.accelerator=gpu",
        ("accelerator", "gpu"),
        (False, True),
        needs_torch=True,
    ),
}


def message(lines: list[str]) -> str:
    """What an error says after all its tracebacks, and after Hydra has repeated the command line."""
    before = [
        n
        for n, line in enumerate(lines)
        if line.startswith(('  File "', "Error executing job with overrides"))
    ]
    rest = lines[before[-1] + 1 :] if before else lines
    return "\n".join(dropwhile(lambda line: line.startswith("    "), rest))  # the code of the last frame


@pytest.fixture(autouse=True)
def _no_gpu_and_short_errors(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.mark.parametrize("stack", [SCOREEXP, BARE], ids=repr)
@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_in_the_configuration(name, stack, tmp_path: Path):
    fault, ours = FAULTS[name], stack is SCOREEXP
    overrides = (fault.scoreexp if ours else fault.bare).split()
    command = [sys.executable, *stack.program, *overrides]
    outcome = stack.run(command, tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    lines = [line for line in outcome.said if not line.startswith(IMPORTED)]
    assert outcome.code == 1
    assert (len(lines) <= 3) == ours
    assert outcome.has_traceback == (not ours and fault.composes)
    imports_torch = re.search(rf"^{IMPORTED}.*\| +torch$", outcome.err, re.MULTILINE) is not None
    assert imports_torch == (not ours or fault.needs_torch)
    assert bool(list(tmp_path.iterdir())) == (not ours and fault.composes), "a folder is left behind"
    if ours:
        assert all(line.startswith("error: ") for line in lines)
        assert [part for part in fault.says if part not in "\n".join(lines)] == []
    else:
        assert tuple(part in message(lines) for part in fault.asked) == fault.named
