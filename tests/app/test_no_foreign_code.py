"""No file that is given to scoreexp runs code: not a checkpoint, not a cache, not a run folder, not an address.

The payloads make a file when they are unpickled. All of it holds without torch's own protection, which users of other
programs switch off to load their own checkpoints.
"""

import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Payload
from PIL import Image

import scoreexp
from scoreexp import denoise, evaluate, inspect, report, restore, sample, train
from scoreexp.app.launch import run_app
from scoreexp.core.errors import UserError
from scoreexp.data.errors import DataError
from scoreexp.embedding.cache import read_field
from scoreexp.lit.checkpoint import CheckpointError, read_checkpoint
from scoreexp.metrics import PixelFeatures, make_reference
from scoreexp.metrics.features import ExportedExtractor, file_digest
from scoreexp.metrics.inception import InceptionFeatures

STEPS = 2


@pytest.fixture
def payload(tmp_path):
    return Payload(tmp_path / "executed")


@pytest.fixture(autouse=True)
def _without_protection(monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def command(name: str, *arguments: str) -> int:
    tasks = {
        "train": (train, "train:train"),
        "denoise": (denoise, "denoise:denoise"),
        "restore": (restore, "restore:restore"),
        "sample": (sample, "sample:sample"),
        "evaluate": (evaluate, "evaluate:evaluate"),
        "inspect": (inspect, "inspect:inspect_data"),
        "report": (report, "compare:report"),
    }
    module, task = tasks[name]
    provided = getattr(module, "PROVIDED", {})
    return run_app(
        name, f"scoreexp.app.commands.{task}", schema=module.SCHEMA, provided=provided, argv=list(arguments)
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    assert command("train", *TINY, f"trainer.max_steps={STEPS}", f"run_dir={run}") == 0
    return run


def hostile(kind: str, whole: Path, payload: Payload) -> bytes:
    """A checkpoint with a payload: among torch's records, in torch's old format, or in its configuration."""
    checkpoint, buffer = read_checkpoint(whole), io.BytesIO()
    if kind == "configuration":
        foreign = {"_target_": "builtins.open", "file": str(payload.marker), "mode": "w"}
        for part in ("data", "schedule", "optimizer"):
            checkpoint["scoreexp"]["config"][part] = foreign
    else:
        checkpoint["callbacks"]["DenoisingMonitor"] = payload
    torch.save(checkpoint, buffer, _use_new_zipfile_serialization=kind != "old format")
    return buffer.getvalue()


def picture(path: Path) -> Path:
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("kind", ["records", "old format", "configuration"])
def test_checkpoints(kind, trained, payload, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    content = hostile(kind, run / "checkpoints" / "last.ckpt", payload)
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.write_bytes(content)
    evil = f"ckpt={run}/checkpoints/last.ckpt"
    noisy = picture(tmp_path / "noisy.png")
    with pytest.raises(CheckpointError):
        scoreexp.load(run / "checkpoints" / "last.ckpt")
    more = [*TINY, f"trainer.max_steps={STEPS + 1}"]
    commands = [
        ["train", *more, f"run_dir={run}", "resume=auto"],
        ["train", *more, f"run_dir={tmp_path}/other", evil],
        ["denoise", evil, f"input={noisy}", "sigma=0.2"],
        ["restore", evil, f"input={noisy}", "task=denoise"],
        ["sample", evil, "n=1"],
        ["evaluate", evil, "metrics=[psnr]"],
    ]
    if kind != "configuration":  # of which nothing but the weights is read
        commands += [["train", *more, f"run_dir={tmp_path}/other", evil.replace("ckpt=", "init_from=", 1)]]
    capsys.readouterr()
    for name, *arguments in commands:
        assert command(name, *arguments) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not payload.marker.exists()


def test_the_data_that_a_checkpoint_names(trained, payload, tmp_path, capsys):
    """The model is honest; what it says it was trained on is not."""
    checkpoint = read_checkpoint(trained / "checkpoints" / "last.ckpt")
    foreign = {"_target_": "builtins.open", "file": str(payload.marker), "mode": "w"}
    checkpoint["scoreexp"]["config"]["data"] = foreign
    torch.save(checkpoint, tmp_path / "evil.ckpt")
    scoreexp.load(tmp_path / "evil.ckpt")
    assert command("evaluate", f"ckpt={tmp_path}/evil.ckpt", "metrics=[psnr]") == 1
    said = capsys.readouterr().err
    assert "data is built by 'builtins.open', outside the trusted" in said
    assert not payload.marker.exists()


def test_addresses(tmp_path, capsys):
    address = "http://127.0.0.1:9/last.ckpt"
    for name, *arguments in (["denoise", f"input={picture(tmp_path / 'a.png')}"], ["sample"], ["evaluate"]):
        assert command(name, f"ckpt={address}", *arguments) == 1
        assert f"{address} is an address: download the checkpoint" in capsys.readouterr().err


def with_objects(payload: Payload) -> bytes:
    """An .npz file whose arrays are pickled."""
    buffer = io.BytesIO()
    array = np.array([payload], dtype=object)
    np.savez(buffer, description=array, key=array, times=array, total=array)
    return buffer.getvalue()


def test_caches_and_files_of_features(payload, tmp_path):
    images = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    settings = {"n": 4, "split": "train", "recipe": "r", "keep_features": True, "cache": tmp_path / "cache"}
    make_reference(lambda: [images], PixelFeatures(2), **settings)
    [stored] = (tmp_path / "cache").glob("*.npz")
    for content in (with_objects(payload), pickle.dumps(payload)):
        stored.write_bytes(content)
        make_reference(lambda: [images], PixelFeatures(2), **settings)  # computed anew
        path = tmp_path / "field.npz"
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_field(path, "0" * 32)
        for suffix in (".pt", ".pt2"):
            network = tmp_path / f"network{suffix}"
            network.write_bytes(content)
            with pytest.raises(UserError, match="cannot be loaded"):
                ExportedExtractor(str(network), "own", 3)
    torch.save({"weights": payload}, tmp_path / "inception.pth")
    with pytest.raises(UserError, match="does not hold the weights"):
        InceptionFeatures(str(tmp_path / "inception.pth"), sha256=file_digest(tmp_path / "inception.pth"))
    assert not payload.marker.exists()


def test_run_folders(trained, payload, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    tag = f"!!python/object/apply:builtins.open [{payload.marker}, w]"
    hidden = f"${{oc.create:{{_target_:builtins.open,file:{payload.marker},mode:w}}}}"
    for content in (f"name: {tag}\n", f"name: a\nschedule: {hidden}\n", "data: 1\n", pickle.dumps(payload)):
        (run / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        command("report", f"runs=[{run}]", f"out={tmp_path}/report.html")
        assert len(capsys.readouterr().err.splitlines()) <= 3
    for name in ("metrics.json", "manifest.json", "evaluation.json", "status.json"):
        (run / name).write_bytes(pickle.dumps(payload))
        assert command("report", f"runs=[{run}]", f"out={tmp_path}/report.html") == 1
        capsys.readouterr()
    assert not payload.marker.exists()
