"""W&B on request: offline without a key, one run per directory, nothing asked."""

import json

import pytest

from scoreexp.app.commands.train import train

pytestmark = pytest.mark.integration


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No key, no netrc, and nothing to read an answer from."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))


def test_without_a_key_the_run_is_offline_and_keeps_its_id(tiny, tmp_path, offline, capsys):
    train(tiny("logger=wandb", "trainer.max_steps=2"))
    said = capsys.readouterr().out
    assert "wandb sync" in said
    run_id = json.loads((tmp_path / "run" / "wandb_id.json").read_text())["id"]
    folders = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{run_id}"))
    assert len(folders) == 1
    assert list(folders[0].glob("*.wandb"))
    assert (tmp_path / "run" / "metrics.csv").exists(), "the table is written beside W&B"
    train(tiny("logger=wandb", "trainer.max_steps=4", "resume=auto"))
    assert json.loads((tmp_path / "run" / "wandb_id.json").read_text())["id"] == run_id
    import wandb

    assert wandb.run is None, "the run is finished, the next job starts its own"
