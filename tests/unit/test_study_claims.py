"""The tables of docs/results.md say no more than the stored runs do."""

import copy
import json
import math

import pytest

study_claims = pytest.importorskip("benchmarks.study_claims", reason="benchmarks are not part of the package")


@pytest.fixture
def stored():
    return json.loads(study_claims.RESULT.read_text())


def cells(table, first):
    return [line.split(" | ") for line in table.splitlines() if line.startswith(f"| {first}")]


def test_only_figures_of_the_same_metric_get_a_verdict(stored):
    table = study_claims.claims_table(stored["own"], {})
    small = [row for source in ("[K] table", "[E] table") for row in cells(table, source) if "32²" in row[1]]
    assert len(small) == 7
    for row in small:
        assert ("against DDPM tuned" in row[-1]) == row[0].startswith("| [K]")
        assert row[-1].startswith("no verdict: another metric") == row[0].startswith("| [E]")


def test_equal_ratios_get_a_resolution_and_no_interval(stored):
    rows = copy.deepcopy(stored["own"]["rows"])
    for row in rows:
        row["reached"]["0.99"] = [200, 10.0 + row["seed"]]
        row["interval"] = 20
    arguments = rows, "score_embedding", "without_embedding", "0.99"
    steps = study_claims.contribution(*arguments, 0)
    assert steps == "1.00 in all 3 pairs; resolution: 20 of about 200 steps"
    assert study_claims.contribution(*arguments, 1) == "1.00 in all 3 pairs"


def test_the_interval_is_that_of_students_t(stored):
    # log-ratios -a, 0, a: mean 0, deviation a, half width t(0.975; 2) a / sqrt(3) with t = 4.302653
    rows = copy.deepcopy(stored["own"]["rows"])
    for row in rows:
        other = row["method"] == "without_embedding"
        row["reached"]["0.99"] = [200, 10.0 * math.exp(0.1 * (row["seed"] - 1) * other)]
    half = 4.302653 * 0.1 / math.sqrt(3)
    expected = f"1.00 (95 % interval {math.exp(-half):.2f} to {math.exp(half):.2f}, 3 pairs)"
    assert study_claims.contribution(rows, "score_embedding", "without_embedding", "0.99", 1) == expected


def test_one_pair_measures_nothing(stored):
    rows = [row for row in stored["own"]["rows"] if row["seed"] == 0]
    text = study_claims.contribution(rows, "score_embedding", "without_embedding", "0.99", 0)
    assert text.startswith("not measurable")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (None, "not testable"),
        ((5.0, ""), "reproduced"),
        ((3.0, ""), "not reproduced"),
        ((5.0, ">"), "reproduced"),
        ((3.0, ">"), "undecided"),
        ((3.0, "<"), "not reproduced"),
        ((5.0, "<"), "undecided"),
    ],
)
def test_a_bound_decides_only_on_its_own_side(measured, expected):
    assert study_claims.verdict(measured, 4.0).split(":")[0].removesuffix(" here") == expected


def test_every_stored_method_has_a_line(stored):
    results = [stored["own"], stored["published"]]
    table = study_claims.methods_table(results)
    for method in {row["method"] for result in results for row in result["rows"]}:
        assert len(cells(table, f"{method} ")) == 1
    assert "published rule" not in table


def run(method, image, seconds):
    reached = {
        target: None if seconds is None else [20, seconds] for target in ("0.90", "0.95", "0.98", "0.99")
    }
    return {"method": method, "image": image, "seed": 0, "seconds": 60.0, "reached": reached, "interval": 20}


def test_rows_of_the_papers_own_task_and_images_get_a_verdict(stored):
    """Table 1 of [E] at 0.99: 5.18 against DDPM, 6.77 against DDIM; [K] at 64 x 64: 115.41 against DDPM."""
    one = [run("score_embedding", "a", 10.0), run("without_embedding", "a", 12.0), run("DDPM", "a", 55.0)]
    methods = (("score_embedding", 5.0), ("DDPM_tuned", 20.0))
    two = [run(method, image, seconds) for image in "ab" for method, seconds in methods]
    images = {
        "generation": {"rows": [*one, run("DDIM", "a", None)], "images": 1, "cap_seconds": 60.0},
        "faces64": {"rows": two, "images": 2, "cap_seconds": 60.0},
    }
    table = study_claims.claims_table(stored["own"], images)
    sources = "[E] table 1", "[E] table 1, DDIM"
    ddpm, ddim = (next(r for r in cells(table, f"{name} |") if r[2] == "0.99") for name in sources)
    assert ddpm[4:7] == ["5.50", "–", "1.20"]
    assert ddpm[7].startswith("reproduced (1 image, cap 60 s a run; ")
    assert ddim[4] == "> 6.00"
    assert ddim[7].startswith("undecided: ")
    (faces,) = (row for row in cells(table, "[K] table 1") if "64²" in row[1])
    assert faces[4:7] == ["–", "4.00", "–"]
    assert "not reproduced against DDPM tuned (2 images" in faces[7]
    assert "grey ORL faces instead of CelebA" in faces[7]


def test_pairs_are_those_of_one_image(stored):
    rows = [
        run(method, image, seconds) for image, seconds in (("a", 1.0), ("b", 100.0)) for method in ("x", "y")
    ]
    assert study_claims.contribution(rows, "x", "y", "0.99", 1) == "1.00 in all 2 pairs"


def test_other_seeds_overturn_a_verdict_or_it_stands():
    def stage(ratios, seconds):
        rows = []
        for seed, steps in enumerate(ratios):
            for method, taken in (
                ("score_embedding", 100),
                ("without_embedding", steps),
                ("DDPM_tuned", 200),
            ):
                time = seconds if method == "DDPM_tuned" else 10.0
                reached = {"0.99": (taken, time)}
                rows.append(
                    {"method": method, "seed": seed, "reached": reached, "interval": 20, "seconds": time}
                )
        return {"rows": rows}

    first, same, other = (
        stage([100, 120, 80], 30.0),
        stage([120, 100, 80], 40.0),
        stage([150, 160, 155], 900.0),
    )
    _, _, speed, alone = study_claims.second_table({"photograph": first}, {"photograph": same}).splitlines()
    assert speed.endswith("| 3.00 | 4.00 | not reproduced: stands |")
    assert alone.endswith("| no difference found: stands |")
    _, _, speed, alone = study_claims.second_table({"photograph": first}, {"photograph": other}).splitlines()
    assert speed.endswith("| 3.00 | 90.00 | **not reproduced; then reproduced** |")
    assert alone.endswith("| **no difference found; then helps** |")
