"""Checkpoint files: whole or untouched, intact or refused, and nothing in them is executed."""

import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

import scoreexp
from scoreexp.lit.checkpoint import CheckpointError, newest_intact, read_checkpoint, write_checkpoint
from scoreexp.runs.model import model_weights
from scoreexp.system.atomic import WriteError


@pytest.fixture(scope="module")
def trained():
    return Path(__file__).parents[1] / "fixtures" / "v0_1" / "ddpm.ckpt"


def rewritten(trained, tmp_path, change):
    checkpoint = read_checkpoint(trained)
    change(checkpoint)
    path = tmp_path / "changed.ckpt"
    torch.save(checkpoint, path)
    return path


def test_load_gives_the_whole_denoiser(trained):
    model = scoreexp.load(trained)
    assert not model.training
    x = torch.zeros(2, *model.event_shape)
    out = model(x, torch.full((2,), 0.5, dtype=torch.float64))
    assert out.shape == x.shape
    assert model.record["config"]["name"] == "debug"
    with pytest.raises(ValueError, match="allowed are 'averaged' and 'raw'"):
        scoreexp.load(trained, weights="best")


def test_every_flipped_byte_of_a_record_is_noticed(trained, tmp_path):
    content = trained.read_bytes()
    with zipfile.ZipFile(trained) as archive:
        records = [info for info in archive.infolist() if info.file_size > 64]
    assert len(records) > 10
    for info in records:
        header = content[info.header_offset : info.header_offset + 30]
        data = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        position = data + info.file_size // 2
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path = tmp_path / "damaged.ckpt"
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
            read_checkpoint(path)


def test_truncated_file_is_refused(trained, tmp_path):
    path = tmp_path / "torn.ckpt"
    path.write_bytes(trained.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("path", ["https://example.org/a.ckpt", "s3://bucket/a.ckpt"])
def test_addresses_are_not_opened(path):
    with pytest.raises(CheckpointError, match="download the checkpoint"):
        read_checkpoint(path)


def test_foreign_objects_are_not_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path.joinpath("executed").touch, ())

    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "scoreexp": Payload()}, path)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("target", ["os.system", "subprocess.Popen", "torch.hub.load"])
def test_configuration_inside_cannot_name_foreign_code(trained, tmp_path, target):
    def change(checkpoint):
        checkpoint["scoreexp"]["config"]["network"] = {"_target_": target, "command": "touch executed"}

    with pytest.raises(CheckpointError, match=f"built by '{target}', outside the trusted"):
        scoreexp.load(rewritten(trained, tmp_path, change))


def test_nested_targets_are_checked_too(trained, tmp_path):
    def change(checkpoint):
        checkpoint["scoreexp"]["config"]["precond"]["hidden"] = [{"_target_": "os.system"}]

    with pytest.raises(CheckpointError, match=r"precond\.hidden\[0\]"):
        scoreexp.load(rewritten(trained, tmp_path, change))


def test_another_architecture_is_named(trained, tmp_path):
    def change(checkpoint):
        checkpoint["scoreexp"]["config"]["network"]["channels"] = 32

    with pytest.raises(CheckpointError, match="does not fit the architecture"):
        scoreexp.load(rewritten(trained, tmp_path, change))


def test_foreign_and_future_files_are_named(trained, tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="not written by scoreexp"):
        read_checkpoint(tmp_path / "plain.ckpt")
    future = rewritten(trained, tmp_path, lambda c: c["scoreexp"].update(format=99))
    with pytest.raises(CheckpointError, match="format 99"):
        read_checkpoint(future)


def test_compiled_and_distributed_keys_are_read(trained):
    checkpoint = read_checkpoint(trained)
    plain = model_weights(checkpoint)
    wrapped = {
        f"module.{k}".replace("network.", "network._orig_mod."): v
        for k, v in checkpoint["state_dict"].items()
    }
    again = model_weights({"state_dict": wrapped})
    assert plain.keys() == again.keys()


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {}, "scoreexp": {"format": 1}}, path)
    before = path.read_bytes()

    def full(obj, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint({"state_dict": {}}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_newest_intact_prefers_last_and_reports_what_it_skipped(tmp_path):
    good = {"state_dict": {}, "scoreexp": {"format": 1, "config": {}}}
    assert newest_intact(tmp_path) == (None, [])
    write_checkpoint(good, tmp_path / "previous.ckpt")
    assert newest_intact(tmp_path)[0] == tmp_path / "previous.ckpt"
    write_checkpoint(good, tmp_path / "last.ckpt")
    assert newest_intact(tmp_path) == (tmp_path / "last.ckpt", [])
    (tmp_path / "last.ckpt").write_bytes(b"torn")
    path, problems = newest_intact(tmp_path)
    assert path == tmp_path / "previous.ckpt"
    assert "last.ckpt" in problems[0]


def test_a_limit_on_the_size_of_files_is_not_taken_for_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(WriteError, match=r"last\.ckpt \(File too large\): raise the limit .*ulimit -f"):
            write_checkpoint({"state_dict": {"w": torch.zeros(2**19)}}, tmp_path / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [None, [], "network"])
def test_a_checkpoint_without_a_configuration_is_refused(config, trained, tmp_path):
    path = rewritten(trained, tmp_path, lambda c: c["scoreexp"].update(config=config))
    with pytest.raises(CheckpointError, match="holds no configuration"):
        read_checkpoint(path)
