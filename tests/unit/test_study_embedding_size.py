"""The study of the embedding by number of images: its commands, its intervals and its verdicts."""

import math

import pytest

study = pytest.importorskip(
    "benchmarks.study_embedding_size", reason="benchmarks are not part of the package"
)


def rows(with_it, without):
    return [
        {
            "images": 3, "seed": seed, "method": f"own_{word}", "steps": 100, "interval": 20, "load_average": 1.0,
            "reached": {"0.99": [80, 8.0 if word == "with" else 16.0]}, "trained_on": value, "held_out": value,
        }
        for word, values in (("with", with_it), ("without", without))
        for seed, value in enumerate(values)
    ]  # fmt: skip


def test_differences_are_of_pairs_with_the_interval_of_students_t():
    # differences 1, 2, 3: mean 2, deviation 1, half width t(0.975; 2) / sqrt(3)
    mean, half, pairs = study.difference(rows([21, 32, 43], [20, 30, 40]), "own", "held_out")
    assert (mean, half, pairs) == (pytest.approx(2), pytest.approx(4.302653 / math.sqrt(3), rel=1e-6), 3)
    assert study.verdict((mean, half, pairs)) == "undecided"
    assert (
        study.verdict(study.difference(rows([22.0, 32.1, 41.9], [20, 30, 40]), "own", "held_out")) == "helps"
    )
    assert (
        study.verdict(study.difference(rows([18.0, 28.1, 37.9], [20, 30, 40]), "own", "held_out")) == "harms"
    )


def test_one_pair_decides_nothing_and_a_missing_run_is_no_pair():
    one = rows([25.0], [20.0])
    assert study.verdict(study.difference(one, "own", "held_out")) == "undecided"
    assert study.difference(one[:1], "own", "held_out") is None
    result = {"seconds": 9, "machine": {"cpu": "x"}, "rows": one}
    last = study.table(result).splitlines()[-1].split(" | ")
    assert last[2:5] == ["1", "100 / 100", "1 of 1 / 1 of 1"]
    assert last[6:] == ["+5.00 (one pair)", "+5.00 (one pair)", "undecided |"]


def test_each_seed_has_images_of_its_own(tmp_path):
    words = study.command(tmp_path, 3, 2, ["own"], 60.0, tmp_path / "run", ["a=1"])
    assert f'overrides=["data.root={tmp_path}", "data.indices=[6,7,8]", "a=1"]' in words
    assert "methods=[own_with,own_without]" in words
