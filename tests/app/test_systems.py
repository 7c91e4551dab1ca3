"""docs/systems.md is what docs/systems.toml, docstrings and yaml files say, and each row can be used and is tested."""

import inspect
import re
from pathlib import Path

import pytest
from command_lines import check_command

generator = pytest.importorskip("benchmarks.systems", reason="benchmarks are not part of the package")
TESTS = Path(__file__).parents[1]

NOT_YET: set[int] = set()


def implemented():
    return [row for row in generator.systems() if "missing" not in row]


def test_the_page_is_the_generated_one():
    assert generator.PAGE.read_text(encoding="utf-8") == generator.page(), "run make systems"


def test_all_52_are_there_and_those_without_a_component_are_counted():
    numbered = [row for row in generator.systems() if "number" in row]
    assert [row["number"] for row in numbered] == list(range(1, 53))
    assert {row["number"] for row in numbered if "missing" in row} == NOT_YET
    for row in numbered:
        if "missing" not in row:
            assert row["measured"]
            assert row["verdict"], row["name"]


@pytest.mark.integration
def test_every_row_has_a_command_that_composes_or_a_call_with_an_example(monkeypatch, capsys):
    for row in implemented():
        if "command" in row:
            check_command(f"python -m scoreexp.{row['command']}", monkeypatch, capsys)
        else:
            assert ">>>" in (inspect.getdoc(generator.component(row["components"][0])) or ""), row["name"]
    for name in (name for row in implemented() for name in row["components"]):
        generator.component(name)


def test_every_row_names_tests_that_are_there():
    for row in implemented():
        assert row["tests"], row["name"]
        for named in row["tests"]:
            file, _, test = named.partition("::")
            text = (TESTS / file).read_text()
            assert re.search(rf"^def {test}\(", text, re.M), f"{row['name']}: no {named}"
