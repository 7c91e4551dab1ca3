"""Writes docs/systems.md: ``python -m benchmarks.systems``

A row of docs/systems.toml names what implements a published system: components, the command or call that uses them, the
tests that check them, what was measured and the verdict. The line that says what it is comes from the component's docstring
or from the first comment of its yaml file. A test compares the page with what this module makes.
"""

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROWS, PAGE = ROOT / "docs" / "systems.toml", ROOT / "docs" / "systems.md"
HEAD = """# Systems

Published systems, the components that implement each, the command or the Python call that uses them and the tests that check
them. A system that is not listed is not implemented. `make systems` writes this page from
`docs/systems.toml`, docstrings and yaml files."""


def systems() -> list[dict[str, Any]]:
    """The rows of docs/systems.toml, numbered ones first."""
    rows: list[dict[str, Any]] = tomllib.loads(ROWS.read_text(encoding="utf-8"))["system"]
    return sorted(rows, key=lambda row: row.get("number", 1000))


def component(name: str) -> Any:
    """What a dotted name below scoreexp stands for.

    >>> component("samplers.DDIM").__name__
    'DDIM'

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such name.
    """
    module, _, attribute = f"scoreexp.{name}".rpartition(".")
    found = importlib.import_module(module)
    return (
        getattr(found, attribute)
        if hasattr(found, attribute)
        else importlib.import_module(f"scoreexp.{name}")
    )


def line_of(row: dict[str, Any]) -> str:
    """What a system is, in the first sentence of its yaml file or of its first component.

    A class whose docstring refers to the formulas of its module has the module's first sentence.
    """
    if "yaml" in row:
        first = (
            (ROOT / "conf" / row["yaml"]).read_text(encoding="utf-8").removeprefix("# @package _global_\n")
        )
        if not first.startswith("# "):
            raise ValueError(f"conf/{row['yaml']} begins with no comment: write one, or leave `yaml` out")
        return first_sentence(re.match(r"(# .*\n)+", first)[0].replace("# ", ""))  # type: ignore[index]
    found = component(row["components"][0])
    text = inspect.getdoc(found) or ""
    if not text or "ee the module's" in first_sentence(text):
        text = ast.get_docstring(ast.parse(Path(inspect.getfile(found)).read_text(encoding="utf-8"))) or ""
    return first_sentence(text)


def first_sentence(text: str) -> str:
    """The first sentence, on one line and as Markdown.

    >>> first_sentence("A step of ``x``, of\\nsize 0.5 (e.g. small). More.")
    'A step of `x`, of size 0.5 (e.g. small).'
    """
    line = " ".join(text.split("\n\n")[0].split()).replace("``", "`")
    sentence = re.split(r"(?<=[a-z`)\]]\.) (?=[A-Z])", line)[0].rstrip(".:;,")
    return f"{sentence[:1].upper()}{sentence[1:]}."


def use_of(row: dict[str, Any]) -> str:
    return f"`scoreexp {row['command']}`" if "command" in row else f"Python: `{row['python']}`"


def cells(row: dict[str, Any]) -> list[str]:
    """The row of the table: system, what it is and component, use, tests, measurement and verdict."""
    number = [str(row["number"])] if "number" in row else []
    if "missing" in row:
        return [*number, row["name"], f"**Not implemented yet:** {row['missing']}.", "", "", ""]
    named = ", ".join(f"`{name}`" for name in row["components"])
    what = " ".join(filter(None, (line_of(row), f"Component: {named}.", _outside(row))))
    checks = "; ".join(f"`{name}`" for name in (test.partition("::")[2] for test in row["tests"]))
    judged = [f"{row['measured']} **{row['verdict']}**"] if "verdict" in row else [""]
    return [*number, row["name"], what, use_of(row), checks, *judged]


def _outside(row: dict[str, Any]) -> str:
    return f"*Outside of the field; stands for it:* {row['stands_for']}" if "stands_for" in row else ""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def page() -> str:
    """The text of docs/systems.md."""
    rows = systems()
    numbered = [row for row in rows if "number" in row]
    missing = [str(row["number"]) for row in numbered if "missing" in row]
    outside = [str(row["number"]) for row in numbered if "stands_for" in row]
    said = f"Not implemented yet: {', '.join(missing)}. " if missing else ""
    counted = (
        f"{said}Outside of the field, with an ingredient in place of the system: {', '.join(outside)}. Commands are written "
        "`scoreexp NAME ...`, which is `python -m scoreexp.NAME ...`."
    )
    head = ["system", "what it is", "used by", "checked by"]
    return (
        "\n\n".join(
            [
                HEAD,
                f"## The {len(numbered)} systems",
                counted,
                table(["no.", *head, "measured, and verdict"], [cells(row) for row in numbered]),
                "## Further systems",
                table(head, [cells(row)[:4] for row in rows if "number" not in row]),
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(
        f"{PAGE.relative_to(ROOT)}: {sum('missing' in row for row in systems())} systems are not implemented yet"
    )
