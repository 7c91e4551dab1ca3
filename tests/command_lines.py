"""Commands as the documentation shows them: composed and checked by the commands' own door, and not run."""

import importlib
import runpy
import shlex
import sys

import pytest


def check_command(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Compose and check ``python -m scoreexp.NAME ...`` without running it; files that it names need not exist.

    Raises:
        AssertionError: the command is refused; with what it says.
    """
    _, _, module, *words = shlex.split(line, comments=True)
    monkeypatch.setattr(sys, "argv", [module, *words])
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
    sys.modules.pop(module, None)  # run_module warns of one that is imported already
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code, f"{line}\n{capsys.readouterr().err}"
