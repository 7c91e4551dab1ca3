"""The study of rivals on the Swiss Roll: a rehearsal writes the table, and finished cells are not trained again."""

import pytest
import torch

from scoreexp.schedules import DDPM, EDM, FlowMatching
from scoreexp.system.json_files import read_json

study = pytest.importorskip("benchmarks.study_rivals_points", reason="benchmarks are not part of the package")


@pytest.mark.integration
def test_a_rehearsal_writes_a_table_and_goes_on_where_it_was(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study_rivals_points: begin -->\n<!-- study_rivals_points: end -->\nafter\n")
    words = ["--seconds", "0.02", "--seeds", "1", "--samples", "20", "--work", str(tmp_path / "work")]
    words += ["--json", str(tmp_path / "result.json"), "--page", str(page), "--rivals"]
    study.main([*words, "edm"])
    monkeypatch.setattr(study, "run", None)  # nothing is trained again
    study.main([*words, "edm"])
    text = page.read_text()
    (row,) = [line.split(" | ") for line in text.splitlines() if line.startswith("| EDM ")]
    (edm,) = read_json(tmp_path / "result.json")["rows"]
    assert edm["steps"] >= 1
    assert row[2] == f"{1e3 * sum(edm['score_error'].values()) / 7:.1f}"
    assert [float(cell.strip(" |")) for cell in row[-5:]] == pytest.approx(
        list(edm["sliced_wasserstein"].values()), abs=5e-4
    )
    assert text.startswith("before")
    assert text.endswith("after\n")


def test_a_model_without_a_score_has_its_distances_alone():
    row = {
        "rival": "consistency",
        "seed": 0,
        "steps": 7,
        "load_average": 1.0,
        "score_error": {},
        "floor": 0.1,
    }
    row["sliced_wasserstein"] = {str(n): 1 / n for n in study.EVALUATIONS}
    again = row | {"seed": 1, "sliced_wasserstein": {str(n): 2 / n for n in study.EVALUATIONS}}
    made = study.table(
        {"seconds": 1, "samples": 9, "machine": {"cpu": "x"}, "rows": [row, again], "exact": []}
    )
    assert made.splitlines()[-1] == (
        "| consistency training | 7 | – | – | – | – | – | 1.500 ± 0.707 | 0.750 ± 0.354 | 0.300 ± 0.141 | 0.150 ± 0.071 | "
        "0.075 ± 0.035 |"
    )


@pytest.mark.parametrize("schedule", [DDPM(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_all_rivals_are_sampled_at_the_same_noise_levels(schedule):
    for steps, levels in ((1, []), (2, [0.25]), (3, [5, 1 / 9]), (20, [5, 0.02])):
        times = study.StudyGrid(steps)(schedule)
        assert len(times) == steps
        assert times[0] == schedule.t_max
        found = schedule.noise_level(times[1:])
        ends = found[[0, -1]] if steps > 2 else found
        torch.testing.assert_close(ends, torch.tensor(levels, dtype=torch.float64), rtol=1e-6, atol=0)
