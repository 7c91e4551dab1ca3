"""What a sweep refuses before its first job, and what it says after its last."""

from pathlib import Path

import pytest

from scoreexp.app.early_checks import require_data
from scoreexp.app.sweep import offline_runs, say_offline_runs
from scoreexp.core.errors import UserError


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    there = tmp_path / "a.png"
    there.touch()
    data = [{"path": str(there)}, {"path": "no_b.png"}, {"path": "no_c.png"}, {"root": "no_d"}]
    with pytest.raises(
        UserError, match=r"data.path=no_b.png, data.path=no_c.png, data.root=no_d do not exist"
    ):
        require_data(*data)


def test_what_is_there_or_will_be_downloaded_passes(tmp_path: Path) -> None:
    require_data({"path": None}, {"root": str(tmp_path)}, {"root": "no_such", "download": True}, {})
    require_data({"root": "no_such", "cache": str(tmp_path)})


def test_one_line_sends_the_offline_runs_that_are_not_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in "abc"]
    runs = [folder / "wandb" / f"offline-run-{i}" for i, folder in enumerate(folders)]
    for run in runs:
        run.mkdir(parents=True)
    (runs[1] / "run-1.wandb.synced").touch()
    assert offline_runs(folders) == [runs[0], runs[2]]
    say_offline_runs(folders)
    assert capsys.readouterr().out.splitlines() == [
        f"W&B offline    send all with: wandb sync {runs[0]} {runs[2]}"
    ]
    say_offline_runs([tmp_path / "none"])
    assert capsys.readouterr().out == ""
