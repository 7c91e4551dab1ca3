"""Whose code runs when a checkpoint is read: that of a stranger's file never, and one's own file without a password."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from bare import Data, Module, Net, Template
from stacks import BARE, EVERY, SCOREEXP, forked, last

import scoreexp

PROTECTION = {
    "on": "0",
    "off": "1",
}  # TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD, with which users read their own files


class Payload:
    """Makes ``marker`` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


SETTINGS = {"net": Net(64), "optimizer": torch.optim.Adam, "noise": True}


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of each stack, with checkpoints at steps 5 and 10."""
    runs = {}
    for stack in (SCOREEXP, BARE):
        runs[stack] = tmp_path_factory.mktemp(str(stack)) / "run"
        assert forked(stack.command(runs[stack], 2 * EVERY), runs[stack].parent).code == 0
    return runs


def poison(checkpoint: Path, marker: Path) -> None:
    """Add a payload to a checkpoint that is whole otherwise."""
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"foreign": Payload(marker)}, checkpoint)


# --------------------------------------------------------------------------------------------- a stranger's file


class Server(HTTPServer):
    """Serves a folder on this machine and counts the requests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Visit, directory=str(folder)))
        self.visits = 0


class Visit(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        self.server.visits += 1


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def trainer_tests(checkpoint: str) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", limit_test_batches=1, **quiet)
    trainer.test(Module(**SETTINGS), Data(8, 8, 0, shuffle=False), ckpt_path=checkpoint, verbose=False)


def module_loads(checkpoint: str) -> None:
    Module.load_from_checkpoint(checkpoint, **SETTINGS)


@pytest.mark.parametrize("protection", PROTECTION)
@pytest.mark.parametrize("place", ["file", "address"])
@pytest.mark.parametrize(
    ("stack", "read"), [(SCOREEXP, scoreexp.load), (BARE, module_loads), (BARE, trainer_tests)]
)
def test_a_foreign_checkpoint(stack, read, place, protection, trained, server, marker, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", PROTECTION[protection])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "downloaded"))
    path = tmp_path / "served" / "evil.ckpt"
    shutil.copy(last(trained[stack]), path)
    poison(path, marker)
    runs = stack is BARE and (place == "address" or protection == "off")
    try:
        read(f"http://127.0.0.1:{server.server_port}/evil.ckpt" if place == "address" else str(path))
    except Exception:
        assert not runs
    else:
        assert runs
    assert marker.exists() == runs
    assert (server.visits > 0) == (stack is BARE and place == "address")


@pytest.mark.parametrize(
    ("stack", "protection", "code", "runs"),
    [(SCOREEXP, "on", 0, False), (SCOREEXP, "off", 0, False), (BARE, "on", 1, False), (BARE, "off", 0, True)],
)
def test_a_resume_from_a_foreign_checkpoint(stack, protection, code, runs, trained, marker, tmp_path):
    run = shutil.copytree(trained[stack], tmp_path / "run")
    poison(last(run), marker)
    environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": PROTECTION[protection]}
    outcome = forked(stack.command(run, 3 * EVERY, resume=True), tmp_path, environment)
    assert outcome.code == code
    assert marker.exists() == runs
    if stack is SCOREEXP:  # from the checkpoint before
        [warning] = [line for line in outcome.said if line.startswith("warning: ")]
        assert "last.ckpt cannot be read as a checkpoint" in warning
        assert stack.step(last(run)) == 3 * EVERY


# -------------------------------------------------------------------------------------------------- one's own file


@pytest.fixture(scope="module")
def with_objects(trained, tmp_path_factory):
    """Runs whose module holds a network and the constructor of an optimiser."""
    run = tmp_path_factory.mktemp("template") / "run"
    command = BARE.command(run, 2 * EVERY, "model._target_=bare.Template", "+test=best")
    outcome = forked(command, run.parent)
    assert outcome.code == 1  # trained, but not tested
    assert "Weights only load failed" in outcome.err
    return {SCOREEXP: trained[SCOREEXP], BARE: run}


@pytest.mark.parametrize(
    ("stack", "protection", "code"),
    [(SCOREEXP, "on", 0), (SCOREEXP, "off", 0), (BARE, "on", 1), (BARE, "off", 0)],
)
def test_a_run_of_ones_own_goes_on(stack, protection, code, with_objects, tmp_path):
    run = shutil.copytree(with_objects[stack], tmp_path / "run")
    template = ["model._target_=bare.Template"] if stack is BARE else []
    environment = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": PROTECTION[protection]}
    outcome = forked(stack.command(run, 3 * EVERY, *template, resume=True), tmp_path, environment)
    assert outcome.code == code
    assert ("Weights only load failed" in outcome.err) == bool(code)
    assert all(line.startswith("warning: ") for line in outcome.complaints) or stack is BARE


def test_a_model_of_ones_own_is_read(with_objects):
    assert scoreexp.load(last(with_objects[SCOREEXP])).record["config"]["network"]["channels"] == 16
    with pytest.raises(Exception, match="Weights only load failed"):
        Template.load_from_checkpoint(last(with_objects[BARE]))
