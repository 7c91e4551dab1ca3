"""Damaged files of other libraries are refused in one line, and run nothing: 60 of ``benchmarks/bridge_fuzz.py``."""

import pytest

fuzzing = pytest.importorskip("benchmarks.bridge_fuzz", reason="benchmarks are not part of the package")


def test_sixty_damaged_files():
    report = fuzzing.fuzz(60, seed=1)
    assert report.findings == []
    assert report.outcomes.total() == 60
    assert report.outcomes["ForeignModelError"] > 20  # they are damaged


def test_the_search_finds_what_it_looks_for(monkeypatch):
    def loaded(path):
        if path.is_dir():
            raise KeyError("undocumented")
        (path.parent.parent / "executed").touch()  # as a called canary does

    monkeypatch.setattr(fuzzing, "load", loaded)
    found = fuzzing.fuzz(13).findings
    assert len(found) == 13
    assert sum("the canary was called" in line for line in found) == 12
    assert "KeyError: 'undocumented'" in found[-1]
