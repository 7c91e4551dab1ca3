"""The study of rivals on images: a rehearsal writes the table, a larger budget goes on, finished cells are kept."""

import numpy as np
import pytest

from scoreexp.system.json_files import read_json

study = pytest.importorskip("benchmarks.study_rivals", reason="benchmarks are not part of the package")
TINY = ["network.widths=[8,8,8]", "network.blocks=[1,1,1]"]


def write_mnist(root):
    root.mkdir()
    for part, count in (("train", 40), ("t10k", 12)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", np.zeros(count, np.uint8))):
            head = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
            (root / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())


@pytest.mark.integration
def test_a_rehearsal_writes_a_table_and_a_larger_budget_goes_on(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study_rivals: begin -->\n<!-- study_rivals: end -->\nafter\n")
    words = [
        "--data",
        str(tmp_path),
        "--sets",
        "mnist",
        "--seeds",
        "1",
        "--samples",
        "12",
        "--reference",
        "20",
    ]
    words += ["--likelihood", "1", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "result.json")]
    words += ["--page", str(page), "--override", *TINY, "--rivals"]
    study.main([*words, "edm", "consistency", "--seconds", "0.3"])
    first = read_json(tmp_path / "result.json")["rows"]
    assert [row["bits_per_dim"] is None for row in first] == [False, True]
    (line,) = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| EDM ")]
    assert line[4:9] == [f"{first[0]['by_evaluations'][str(n)]['frechet']:.2f}" for n in (1, 2, 5, 10, 20)]
    study.main([*words, "edm", "--seconds", "0.6"])
    (edm,) = read_json(tmp_path / "result.json")["rows"]
    assert edm["steps"] > first[0]["steps"]
    assert edm["cpu_seconds"] >= 0.6
    assert [path.name for path in (tmp_path / "work").glob("mnist_edm*") if path.is_dir()] == ["mnist_edm_0"]
    monkeypatch.setattr(study, "train", None)  # nothing is trained again
    study.main([*words, "edm", "consistency", "--seconds", "0.3"])
    assert read_json(tmp_path / "result.json")["rows"] == first
    study.main([*words, "edm", "ddpm", "--seconds", "0.3", "--stored"])
    assert [row["rival"] for row in read_json(tmp_path / "result.json")["rows"]] == ["edm"]


@pytest.mark.integration
def test_every_rival_can_be_built_and_most_go_on(tmp_path, capsys):
    write_mnist(tmp_path / "mnist")
    made = study.Study(tmp_path, tmp_path / "work", 1.0, further=("dry_run=true",))
    for name, rival in study.RIVALS.items():
        overrides = [override.replace("{steps}", "100") for override in rival.overrides]
        assert study.train(made.config("mnist", overrides, 0, 1.0, tmp_path / name)) is None
    built = capsys.readouterr().out.count("parameters")
    assert built == len(study.RIVALS)
    assert [name for name, rival in study.RIVALS.items() if not rival.extends] == ["consistency"]


def test_seconds_are_counted_over_resumes():
    stop = study.StopAtCPUSeconds(seconds=5.0)
    stop.load_state_dict({"used": 100.0})
    assert 100 <= stop.state_dict()["used"] < 101
