"""The studies of docs/diagnostics.md run, go on where they were, and print what is stored."""

import json

import pytest
import torch

from scoreexp.core.streams import generator

small_images = pytest.importorskip("benchmarks.small_images", reason="benchmarks are not part of the package")
memorisation = pytest.importorskip("benchmarks.study_memorisation")
stopping = pytest.importorskip("benchmarks.study_ssim_stopping")

TINY = [
    "--root",
    "none",
    "--data",
    "mnist",
    "--steps",
    "12",
    "--batch",
    "4",
    "--network",
    "mlp",
    "--widths",
    "8",
]


@pytest.fixture(autouse=True)
def images(monkeypatch):
    parts = (torch.rand(n, 1, 12, 12, generator=generator(n, "images")) * 2 - 1 for n in (40, 110))
    found = small_images.Images(*parts)
    for module in (memorisation, stopping):
        monkeypatch.setattr(module, "read_images", lambda *_: found)


def test_cells_are_stored_and_not_run_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.json"
    command = [
        *TINY,
        "--sizes",
        "4",
        "all",
        "--samples",
        "3",
        "--n",
        "6",
        "--sampler-steps",
        "2",
        "--json",
        str(path),
    ]
    memorisation.main([*command, "--targets", "plain"])
    first = json.loads(path.read_text())["rows"]
    assert list(first) == ["mnist 4 plain", "mnist all plain"]
    assert first["mnist all plain"]["images"] == 20
    monkeypatch.setattr(memorisation, "make_model", None)  # a stored cell needs none
    memorisation.main([*command, "--targets", "plain"])
    assert json.loads(path.read_text())["rows"] == first
    table = memorisation.table(first).splitlines()
    assert len(table) == 4
    assert table[2].startswith("| mnist | 4 | plain | ")
    with pytest.raises(SystemExit):
        memorisation.main([*command, "--lr", "0.5"])
    assert "made with other settings" in capsys.readouterr().err


def test_stable_targets_of_the_whole_set_are_used():
    objective = small_images.objective_of("stable", 4)
    assert objective.reference_size == 4
    assert small_images.objective_of("stable", 10**6).reference_size == small_images.REFERENCE


def test_the_best_steps_are_those_of_the_curve(tmp_path):
    path = tmp_path / "found.json"
    stopping.main(
        [*TINY, "--sizes", "4", "--seeds", "1", "--evaluations", "3", "--n", "5", "--json", str(path)]
    )
    (row,) = json.loads(path.read_text())["rows"].values()
    assert [point["step"] for point in row["curve"]] == [10, 11, 12]
    least = min(row["curve"], key=lambda point: point["bits"])
    best = max(row["curve"], key=lambda point: point["ssim"])
    assert row["least error at step"] == least["step"]
    assert row["its excess in bits per dimension"] == pytest.approx(best["bits"] - least["bits"])
    assert stopping.table({"mnist 4 1": row}).splitlines()[2].startswith("| mnist | 4 | 1 | ")
