"""The search of docs/sweeps.md runs as it stands there, with a stand-in for Optuna."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not part of a wheel"),
]


class Study:
    best_params, best_value = {"lr": 0.001}, None

    def optimize(self, objective, n_trials):
        trial = SimpleNamespace(
            number=0,
            suggest_float=lambda name, low, high, log: low,
            suggest_categorical=lambda name, of: of[0],
        )
        self.best_value = objective(trial)


def test_the_search_of_the_page_runs_a_trial_and_reads_its_result(tmp_path, monkeypatch, capsys):
    stand_in = SimpleNamespace(Trial=object, create_study=lambda direction: Study())
    monkeypatch.setitem(sys.modules, "optuna", stand_in)
    monkeypatch.setattr(sys, "argv", ["search.py", "debug=fast"])
    monkeypatch.chdir(tmp_path)
    text = re.search(r'```python title="search.py"\n(.*?)```', PAGE.read_text(), re.S)[1]
    exec(compile(text, "search.py", "exec"), {"__name__": "search"})
    found = json.loads((tmp_path / "outputs/search/0/metrics.json").read_text())
    assert str(found["metrics"]["val/psnr"]) in capsys.readouterr().out
