"""Every part of `make gpu` runs, in its smallest form, without a GPU."""

import json
import sys

import pytest

gpu = pytest.importorskip("benchmarks.gpu", reason="benchmarks are not part of the package")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse", "--json", str(tmp_path / "gpu.json")])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found["parts"]) == {part.name for part in gpu.parts(rehearse=False)}
    assert not [name for name, part in found["parts"].items() if "error" in part]
    assert found["machine"]["device"]
