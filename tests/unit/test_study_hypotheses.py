"""The study of two hypotheses runs, goes on where it was, and says what its figures allow."""

import json

import pytest
import torch

study = pytest.importorskip("benchmarks.study_hypotheses", reason="benchmarks are not part of the package")


def test_cells_are_stored_and_not_run_again(tmp_path, monkeypatch):
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(study, "read_images", lambda *_: study.Images(images, images))
    monkeypatch.setattr(study, "LEVELS", 4)
    path = tmp_path / "found.json"
    command = [
        "--root",
        "none",
        "--seconds",
        "1e-6",
        "--batch",
        "2",
        "--n",
        "4",
        "--channels",
        "8",
        "--seeds",
        "0",
    ]
    study.main([*command, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["arm"] for row in rows.values()] == list(study.ARMS)
    assert all(row["loss"] > 0 and row["steps"] == 2 for row in rows.values())
    assert "probabilities" in rows["learned law 0"]
    monkeypatch.setattr(study, "make_model", None)  # a stored cell needs none
    study.main([*command, "--json", str(path)])
    assert json.loads(path.read_text())["rows"] == rows
    with pytest.raises(SystemExit):
        study.main([*command, "--lr", "1", "--json", str(path)])


def test_the_verdict_is_that_of_the_spread_within_seeds():
    rows = {
        f"{arm} {seed}": {"arm": arm, "seed": seed, "steps": 10, "loss": (1 + seed) * factor}
        for arm, factors in (
            ("plain", (1, 1, 1)),
            ("wconv2d", (0.9, 0.91, 0.92)),
            ("learned law", (1.1, 0.9, 1.01)),
        )
        for seed, factor in enumerate(factors)
    }
    found = study.table({"rows": rows}).splitlines()
    assert found[3].endswith("-10.0 %, -9.0 %, -8.0 % | lower loss |")
    assert found[4].endswith("| no difference beyond the spread |")
    assert study.verdict([0.1, 0.1]) == "too few seeds"
