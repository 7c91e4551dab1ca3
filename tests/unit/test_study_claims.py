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
    table = study_claims.claims_table(stored["own"])
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
