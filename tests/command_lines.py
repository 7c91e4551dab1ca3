"""Commands as the documentation shows them: found in its pages, and composed and checked by the commands' own door."""

import importlib
import re
import runpy
import shlex
import sys

import pytest

_INLINE = re.compile(r"`(python -m [^`]+)`")


def shell_lines(page: str) -> list[str]:
    """What a page shows as typed into a shell: lines of blocks that name no other language, and commands in the text.

    A line that ends in a backslash is joined with the next one. Sessions (``$ ...``) are left out.
    """
    lines: list[str] = []
    language = None  # of the block that the line is in
    for line in re.sub(r"\\\n", " ", page).splitlines():
        if line.lstrip().startswith("```"):
            language = line.strip().strip("`").partition(" ")[0] if language is None else None
        elif language in ("", "bash") or (language is None and line.startswith("    ")):
            lines.append(line.strip())
        elif language is None:
            lines += _INLINE.findall(line)
    return [line for line in lines if not line.startswith("$ ")]


def shown_commands(page: str) -> list[str]:
    """Commands of scoreexp that a page shows in full, as ``python -m scoreexp.NAME ...``, each once."""
    found = (re.search(r"-m scoreexp\.\w+\b.*", line) for line in shell_lines(page))
    commands = [f"python {match[0]}" for match in found if match]
    return list(dict.fromkeys(command for command in commands if is_whole(command)))


def is_whole(command: str) -> bool:
    """Whether nothing stands for a part that is left out (``...``, ``TASK``, ``<...>``), or for all of its keys."""
    words = command.partition(" # ")[0]
    return not re.search(r"\.\.\.|\b(VALUES|TASK)\b|<", words) and len(words.split()) > 3


def run_module(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """``python -m MODULE WORDS`` in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    sys.modules.pop(module, None)  # run_module warns of one that is imported already
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def check_command(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Compose and check ``python -m scoreexp.NAME ...`` without running it; files that it names need not exist.

    Raises:
        AssertionError: the command is refused; with what it says.
    """
    _, _, module, *words = shlex.split(line, comments=True)
    launch = importlib.import_module("scoreexp.app.launch")
    done = type("Done", (), {"failures": ()})
    for name, stand_in in {
        "require_data": lambda *nodes: None,
        "run_composed": lambda *given: done,
        "plan_sweep": lambda *given: None,
        "run_sweep": lambda sweep: 0,
        "_run_here": lambda *given: 0,
        "_require_common_folder": lambda cfg: None,
    }.items():
        monkeypatch.setattr(launch, name, stand_in)
    code = run_module(module, words, monkeypatch)
    assert not code, f"{line}\n{capsys.readouterr().err}"
