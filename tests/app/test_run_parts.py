"""A new callback and a new module are asked by the run as the built-in ones are, with no edit of the training entry."""

import json
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from scoreexp.app import ending
from scoreexp.app.commands.train import train
from scoreexp.app.config_check import check_config
from scoreexp.core.errors import UserError
from scoreexp.core.types import FromRun, PositiveInt
from scoreexp.lit import ScoreModule
from scoreexp.lit.callbacks.base import Curves, NextCommand, RunCallback
from scoreexp.samplers import DDIM, Sampler

HERE = "test_run_parts"


class Counting(RunCallback):
    """Counts evaluations, stops the run after so many, and has an answer to everything."""

    curves = (Curves(("val/counted",), "counted.png", "evaluations so far"),)
    evaluations = 3

    def __init__(
        self,
        *,
        how: Annotated[Sampler, FromRun("sampler")],
        where: Annotated[str, FromRun("pictures")],
        beside: Annotated[str, FromRun("checkpoints")],
        number: Annotated[int, FromRun("seed")] = 0,
        at_most: PositiveInt = 100,
        suits: bool = True,
    ) -> None:
        self.how, self.where, self.beside, self.number = how, where, beside, number
        self.at_most, self.suits = at_most, suits
        self.count = 0
        self.picture = Path(where) / "counted.png"

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]
        self._stop_if_over(None)

    def _stop_if_over(self, trainer):
        if self.count >= self.at_most:
            self.reason = f"{self.count} evaluations"
            if trainer is not None:
                trainer.should_stop = True

    def require_suits(self, module):
        assert isinstance(self.how, DDIM)
        if not self.suits:
            raise UserError("suits=false: set suits=true")

    def on_validation_epoch_end(self, trainer, pl_module):
        self.count += 1
        pl_module.log("val/counted", float(self.count))
        self._stop_if_over(trainer)

    def stage_seconds(self):
        return {"count": 5.0}

    def results(self):
        return {"best/count": float(self.count)}

    def conclusion(self, metrics):
        return f"counted {metrics['best/count']:g} in {Path(self.where).name} and {Path(self.beside).name}"

    def next_commands(self):
        return [NextCommand("sample", {"seeds": self.number})]


class Ready(ScoreModule):
    """Has nothing to train."""

    needs_training: ClassVar[bool] = False

    def prepare(self, data):
        self.images = len(data.train_positions)


@pytest.fixture
def counting(tiny, monkeypatch):
    """A run whose only evaluation is ``Counting``, in a place of the configuration that nothing else knows."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    common = ["callbacks.monitor=null", "callbacks.stop=null", f"+callbacks.tally._target_={HERE}.Counting"]
    return lambda *overrides, run="run": tiny(*common, *overrides, run=run)


def test_a_callback_is_given_the_parts_of_the_run_and_asked_for_its_say(counting, tmp_path, capsys):
    cfg = counting("+callbacks.tally.at_most=2", "trainer.max_steps=20", "seed=7")
    result = train(cfg)
    assert result.status == "2 evaluations"
    assert result.seconds["count"] == 5.0
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (stored["status"], stored["step"]) == ("2 evaluations", 4)
    assert stored["metrics"]["best/count"] == stored["metrics"]["val/counted"] == 2.0
    said = capsys.readouterr().out.splitlines()
    (summary,) = [i for i, line in enumerate(said) if line.startswith("2 evaluations after 4 steps")]
    assert "steps, 5.0 s of pre-computation, " in said[summary]
    shown = str(tmp_path / "run" / "pictures" / "counted.png")
    assert said[summary + 1 : summary + 5] == [
        "counted 2 in pictures and checkpoints",
        f"figure         {shown}",
        f"curves         {shown} and loss.png beside it",
        f"table          {tmp_path / 'run' / 'metrics.csv'}",
    ]
    assert said[-1].startswith("try next       python -m scoreexp.sample ")
    assert said[-1].endswith(" seeds=7")
    train(counting("+callbacks.tally.at_most=2", "trainer.max_steps=20", "seed=7", "resume=auto"))
    assert "nothing to do  this run is over: 2 evaluations" in capsys.readouterr().out


def test_a_callback_refuses_a_model_before_anything_is_written(counting, tmp_path):
    with pytest.raises(UserError, match="set suits=true"):
        train(counting("+callbacks.tally.suits=false"))
    assert not (tmp_path / "run").exists()


def test_a_module_that_needs_no_training_is_evaluated_as_often_as_its_callbacks_ask(counting, tmp_path):
    result = train(counting(f"model._target_={HERE}.Ready", "trainer.max_steps=0", "callbacks.budget=null"))
    assert result.metrics["val/counted"] == 3.0
    assert result.checkpoint == tmp_path / "run" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("stop", "marked"),
    [
        (["callbacks.stop.target=0.9"], {"ssim.png": {"target": 0.9}}),
        (["callbacks.stop.monitor=val/psnr", "callbacks.stop.target=99"], {}),
    ],
)
def test_a_target_is_drawn_among_the_values_it_belongs_to(tiny, monkeypatch, stop, marked):
    drawn = {}
    monkeypatch.setattr(
        ending, "curves", lambda rows, names, path, *, targets, **_: drawn.update({path.name: targets})
    )
    train(tiny(*stop, "trainer.max_steps=1", "trainer.val_check_interval=1"))
    assert set(drawn) == {"loss.png", "ssim.png"}
    assert {name: targets for name, targets in drawn.items() if targets} == marked


def test_what_the_run_passes_cannot_be_set(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    node = {"_target_": f"{HERE}.Counting", "at_most": 0, "where": "here"}
    problems = check_config({"callbacks": {"tally": node}})
    assert len(problems) == 2
    assert problems[0].startswith("callbacks.tally.at_most=0 must be an int >= 1")
    assert problems[1].startswith("callbacks.tally.where=here cannot be set: the program passes it")
    with pytest.raises(ValueError, match="'picture': allowed are sampler, pictures, checkpoints, seed"):
        FromRun("picture")
