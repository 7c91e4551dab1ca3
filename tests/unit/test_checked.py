"""What ``checked`` accepts, refuses and says, and that nothing else notices it."""

import inspect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from torch import nn

from scoreexp.app.config_check import check_config
from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveFloat, PositiveInt, Probability
from scoreexp.denoisers import EDMPrediction, OracleDenoiser
from scoreexp.numerics.oracles import Gaussian
from scoreexp.samplers import DDIM, TimeGrid, UniformGrid
from scoreexp.schedules import VP


class Part:
    pass


class Model(nn.Module):
    """Documented."""

    @checked
    def __init__(
        self,
        count: PositiveInt = 1,
        *,
        rate: Annotated[PositiveFloat, "1 is usual"] = 1.0,
        bound: FinitePositiveFloat = 1.0,
        share: Probability | None = None,
        flag: bool = False,
        name: str | Sequence[str] = "a",
        form: Literal["S", "F", 3] = "S",
        widths: tuple[PositiveInt, ...] = (1,),
        pair: tuple[float, float] = (0.0, 1.0),
        function: Callable[[float], float] | float = 0.0,
        part: Part | None = None,
        options: dict[str, int] | None = None,
        anything: "Unknown" = None,
        **common: int,
    ) -> None:
        super().__init__()
        self.count = count


Unknown = object  # defined after its use


@checked
@dataclass(frozen=True)
class Settings:
    steps: PositiveInt = 3


@pytest.mark.parametrize(
    "given",
    [
        {"count": np.int64(2), "rate": np.float32(0.5)},
        {"count": torch.tensor(2), "rate": torch.tensor(0.5), "share": np.array(1.0)},
        {"rate": 1, "share": 0, "flag": np.bool_(True)},
        {"rate": float("inf"), "share": None, "name": ["a", "b"], "form": 3},
        {"widths": [1, np.int32(2)], "pair": torch.tensor([0.5, 1.0]), "function": abs},
        {"widths": (), "part": Part(), "options": {"a": 1}, "anything": 3, "other": "unchecked"},
    ],
)
def test_what_is_allowed(given):
    assert Model(**given).count == given.get("count", 1)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"count": 0}, ValueError, "Model: count=0 must be an int >= 1"),
        ({"count": 2.0}, TypeError, "Model: count=2.0 must be an int >= 1"),
        ({"count": True}, TypeError, "Model: count=True must be an int >= 1"),
        ({"count": torch.tensor([1])}, TypeError, "Model: count=tensor([1]) must be an int >= 1"),
        ({"count": torch.tensor(0)}, ValueError, "Model: count=tensor(0) must be an int >= 1"),
        ({"rate": 0.0}, ValueError, "Model: rate=0.0 must be a number > 0 (1 is usual)"),
        ({"rate": float("nan")}, ValueError, "Model: rate=nan must be a number > 0 (1 is usual)"),
        ({"rate": "1"}, TypeError, "Model: rate='1' must be a number > 0 (1 is usual)"),
        ({"bound": np.inf}, ValueError, "Model: bound=inf must be a number > 0 and < inf"),
        ({"share": 1.5}, ValueError, "Model: share=1.5 must be a number >= 0 and <= 1 or None"),
        ({"flag": 1}, TypeError, "Model: flag=1 must be True or False"),
        ({"name": 3}, TypeError, "Model: name=3 must be a string or a sequence, each a string"),
        ({"form": "X"}, ValueError, "Model: form='X' must be 'S', 'F' or 3"),
        ({"form": None}, TypeError, "Model: form=None must be 'S', 'F' or 3"),
        ({"widths": (1, 0)}, ValueError, "Model: widths=(1, 0) must be a tuple, each an int >= 1"),
        ({"widths": 1}, TypeError, "Model: widths=1 must be a tuple, each an int >= 1"),
        ({"pair": [1.0]}, ValueError, "Model: pair=[1.0] must be a tuple of 2: a number, a number"),
        ({"function": "abs"}, TypeError, "Model: function='abs' must be a Callable or a number"),
        ({"part": Model}, TypeError, "Model: part=<class 'test_checked.Model'> must be a Part or None"),
        ({"part": object()}, TypeError, "Model: part=<object> must be a Part or None"),
        ({"options": [1]}, TypeError, "Model: options=[1] must be a dict or None"),
    ],
)
def test_what_is_refused_in_one_line(given, error, said):
    with pytest.raises((ValueError, TypeError)) as refused:
        Model(**given)
    assert (refused.type, str(refused.value)) == (error, said)


def test_nothing_else_notices_it():
    assert list(inspect.signature(Model).parameters)[:2] == ["count", "rate"]
    assert Model.__doc__ == "Documented."
    assert Model(3).count == pickle.loads(pickle.dumps(Model(3))).count == 3
    assert Settings(2) == pickle.loads(pickle.dumps(Settings(2)))
    with pytest.raises(ValueError, match="Settings: steps=0 must be an int >= 1"):
        Settings(steps=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        EDMPrediction(colour=1)


def test_a_subclass_is_named_and_a_position_counts_like_a_name():
    class Special(Model):
        pass

    with pytest.raises(ValueError, match="Special: count=0"):
        Special(0)


def test_the_same_is_read_from_the_source_text():
    config = {"precond": {"_target_": "scoreexp.denoisers.EDMPrediction", "sigma_data": 0}}
    (problem,) = check_config(config)
    assert problem == "precond.sigma_data=0 must be a number > 0 (0.5 for images in [-1, 1])"
    with pytest.raises(
        ValueError, match=r"EDMPrediction: sigma_data=0 must be a number > 0 \(0\.5 for images in"
    ):
        EDMPrediction(0)


def test_wrong_types_of_the_contracts_are_answered_where_they_are_given():
    with pytest.raises(TypeError, match=r"^DDIM: grid=20 must be a TimeGrid, such as UniformGrid\(20\)$"):
        DDIM(20)
    with pytest.raises(TypeError, match=r"^DDIM: grid=0 must be a TimeGrid$"):
        DDIM(0)
    assert issubclass(UniformGrid, TimeGrid)
    model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    for call in (model, model.score):
        with pytest.raises(
            TypeError, match=r"^OracleDenoiser: t=0\.5 must be a tensor \[B\], such as torch\.full"
        ):
            call(torch.zeros(3, 2), 0.5)
    with pytest.raises(TypeError, match="OracleDenoiser: schedule='vp' must be a Schedule"):
        OracleDenoiser(model.oracle, "vp")
