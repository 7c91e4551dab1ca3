"""Configurations against signatures, on classes written to a temporary package."""

import importlib
import sys

import pytest

from scoreexp.app.config_check import check_config, known_keys
from scoreexp.app.signatures import Definition, TargetError, resolve, signature

NETS = """
from __future__ import annotations
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Optional, Union

from scoreexp.core.types import PositiveInt, Probability

from . import depths as other
from .depths import Depth

if TYPE_CHECKING:
    from torch import Tensor

Activation = Literal["relu", "silu"]


def decorated(function):
    return function


class Base:
    def __init__(
        self, *, event_shape: tuple[int, ...], num_classes: int | None = None, width: PositiveInt = 8
    ) -> None:
        raise RuntimeError("never called")


class UNet(Base):
    @decorated
    def __init__(
        self,
        *,
        channels: Sequence[PositiveInt],
        activation: Activation = "silu",
        dropout: Probability = 0.0,
        attention: bool = False,
        kernel: tuple[int, int] = (3, 3),
        depth: Depth = 2,
        norm: Optional[Union[int, "str"]] = None,
        inner: Base | None = None,
        scale: float | Tensor = 1.0,
        sloppy: int = None,
        unknown: other.Missing = 3,
        **kwargs,
    ) -> None:
        super().__init__(num_classes=3, **kwargs)


class Inherited(UNet):
    pass


class Open(Base):
    def __init__(self, **anything) -> None:
        print(anything)


class Unreadable(other.Generated):
    pass


@dataclass
class Settings:
    seed: int
    names: list[str] = field(default_factory=list)
    hidden: int = field(default=3, init=False)
    count: ClassVar[int] = 3


class Pair(NamedTuple):
    low: float
    high: float = 1.0


def build(width: PositiveInt, *, flag: bool = True) -> Base:
    raise RuntimeError("never called")
"""

DEPTHS = """
from typing import Annotated

raise RuntimeError("never imported")

Depth = Annotated[int, (">=", 1), ("<=", 4)]
Generated = make_class()
"""


@pytest.fixture(scope="module", autouse=True)
def toy_package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    package = folder / "toy_models"
    package.mkdir()
    (package / "__init__.py").write_text("from toy_models.nets import *\nfrom .nets import UNet as Renamed\n")
    (package / "nets.py").write_text(NETS)
    (package / "depths.py").write_text(DEPTHS)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))


def unet(**changes):
    return {"_target_": "toy_models.UNet", "channels": [8, 16], "event_shape": [3, 8, 8], **changes}


def problems(node, **options):
    return check_config({"network": node}, **options)


def test_sound_configurations_pass():
    assert problems(unet()) == []
    everything = {
        "activation": "relu",
        "dropout": 1,
        "attention": True,
        "kernel": [5, 5],
        "depth": 4,
        "norm": "group",
        "inner": {"_target_": "toy_models.nets.Base", "event_shape": [2]},
        "scale": 2.5,
        "sloppy": None,
        "unknown": "anything",
        "width": 4,
        "_convert_": "all",
    }
    assert problems(unet(**everything)) == []
    assert problems(unet(_target_="toy_models.Renamed")) == []
    assert problems(unet(_target_="toy_models.nets.Inherited")) == []
    assert "toy_models" not in sys.modules  # only read


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"widht": 3}, ["network.widht=3", "toy_models.UNet", "did you mean 'width'?"]),
        ({"width": "abc"}, ["network.width=abc must be an int >= 1"]),
        ({"width": -5}, ["network.width=-5 must be an int >= 1"]),
        ({"width": True}, ["network.width=true must be an int >= 1"]),
        ({"width": 3.0}, ["network.width=3.0", "write 3"]),
        ({"width": None}, ["network.width=null"]),
        (
            {"width": "???"},
            ["network.width is required by toy_models.UNet", "add network.width=VALUE", "int >= 1"],
        ),
        ({"channels": [8, 0]}, ["network.channels=[8, 0] must be a list, each an int >= 1"]),
        ({"channels": 8}, ["network.channels=8"]),
        (
            {"activation": "sliu"},
            ["network.activation=sliu must be one of relu, silu", "did you mean 'silu'?"],
        ),
        ({"dropout": 1.5}, ["network.dropout=1.5 must be a number >= 0 and <= 1"]),
        ({"dropout": float("nan")}, ["network.dropout=nan"]),
        ({"dropout": "0.5"}, ["network.dropout=0.5 must be a number"]),
        ({"attention": "yes"}, ["network.attention=yes must be true or false"]),
        ({"kernel": [3]}, ["network.kernel=[3] must be a list of 2"]),
        ({"depth": 5}, ["network.depth=5 must be an int >= 1 and <= 4"]),
        ({"norm": 1.5}, ["network.norm=1.5 must be an int or a string or null"]),
        ({"inner": 3}, ["network.inner=3 must be a Base or null"]),
        (
            {"inner": {"_target_": "toy_models.UNet"}},
            ["network.inner.event_shape is required by toy_models.UNet"],
        ),
        ({"_partail_": True}, ["did you mean '_partial_'?"]),
        ({"num_classes": 3}, ["network.num_classes=3", "no parameter 'num_classes'"]),  # set by UNet itself
    ],
)
def test_each_fault_names_key_value_and_what_is_allowed(changes, expected):
    found = problems(unet(**changes))
    assert found, "accepted"
    for part in expected:
        assert part in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("toy_models.UNte", "did you mean 'UNet'?"),
        ("toy_models.nest.UNet", "did you mean 'nets'?"),
        ("toy_modles.UNet", "no package 'toy_modles' is installed"),
        ("UNet", "not a dotted name"),
        ("toy_models.nets", "is a module"),
        ("torch.optim.Adaam", "did you mean 'Adam'?"),
    ],
)
def test_misspelt_target(target, expected):
    (problem,) = problems({"_target_": target})
    assert problem.startswith(f"network._target_={target}: ")
    assert expected in problem


def test_parameters_of_another_class_are_named_in_one_line_and_misspelt_ones_in_their_own():
    foreign, misspelt = sorted(problems(unet(centre=True, stride=1, widht=3)))
    assert foreign.startswith(
        "network.centre=true, network.stride=1: toy_models.UNet has no parameters 'centre', 'stride'"
    )
    assert misspelt.startswith(
        "network.widht=3: toy_models.UNet has no parameter 'widht'; did you mean 'width'?"
    )


def test_missing_parameters_unless_partial_or_provided():
    node = {"_target_": "toy_models.UNet"}
    assert [line.split()[0] for line in problems(node)] == ["network.event_shape", "network.channels"]
    assert problems({**node, "_partial_": True}) == []
    assert len(problems(node, provided={"net*": {"event_shape"}})) == 1
    nested = {"_target_": "toy_models.Open", "_recursive_": False, "inner": node}
    assert problems(nested) == []


def test_a_provided_parameter_may_not_be_given_too():
    (problem,) = problems(unet(), provided={"network": {"event_shape"}})
    assert problem.startswith("network.event_shape=[3, 8, 8] cannot be set")


def test_what_cannot_be_read_is_accepted():
    for target in ("toy_models.nets.Unreadable", "toy_models.nets.Open", "toy_models.depths.Generated"):
        assert problems({"_target_": target, "anything": 3}) == []


def test_dataclasses_tuples_functions_and_lists_of_nodes():
    assert problems({"_target_": "toy_models.nets.Settings", "seed": 0, "names": ["a"]}) == []
    (hidden,) = problems({"_target_": "toy_models.nets.Settings", "seed": 0, "hidden": 3})
    assert "no parameter 'hidden'" in hidden
    (low,) = problems({"_target_": "toy_models.nets.Pair"})
    assert low.startswith("network.low is required")
    (width,) = problems([{"_target_": "toy_models.nets.build", "width": 0}])
    assert width == "network[0].width=0 must be an int >= 1"


def test_lightning_and_torch_signatures():
    trainer = {
        "_target_": "pytorch_lightning.Trainer",
        "max_steps": 100,
        "precision": "bf16-mixed",
        "logger": False,
    }
    optimizer = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3, "betas": [0.9, 0.999]}
    assert problems(trainer) == problems(optimizer) == []
    faults = [
        ({**trainer, "max_stepz": 3}, "network.max_stepz=3", "did you mean 'max_steps'?"),
        ({**trainer, "max_epochs": "ten"}, "network.max_epochs=ten", "must be an int or null"),
        ({**trainer, "max_steps": -2}, "network.max_steps=-2", "must be >= -1"),
        (
            {**trainer, "precision": "bf17-mixed"},
            "network.precision=bf17-mixed",
            "did you mean 'bf16-mixed'?",
        ),
        ({**optimizer, "lr": "fast"}, "network.lr=fast", "must be a number or a Tensor"),
        ({**optimizer, "lr": -1}, "network.lr=-1", "must be > 0"),
        ({**optimizer, "weight_decay": -0.1}, "network.weight_decay=-0.1", "must be >= 0"),
    ]
    for node, key, allowed in faults:
        (problem,) = problems(node)
        assert problem.startswith(key)
        assert allowed in problem


def test_declared_keys():
    schema = {
        "seed": "NonNegativeInt",
        "name": "str",
        "sigma": "PositiveFloat | Literal['auto']",
        "network": "Node",
        "callbacks": "Nodes | None",
        "eval.every": "PositiveInt",
    }
    node = unet()
    sound = {
        "seed": 0,
        "name": "a",
        "sigma": "auto",
        "network": node,
        "callbacks": {"ema": node, "off": None},
    }
    assert check_config({**sound, "eval": {"every": 2}}, schema=schema) == []
    faults = [
        ({"seed": -1}, "seed=-1 must be an int >= 0"),
        ({"seeed": 1}, "seeed=1 is not a configuration key; did you mean 'seed'?"),
        ({"name": 2024}, "name=2024 must be a string; quote it"),
        ({"sigma": "atuo"}, "sigma=atuo must be auto or a number > 0; did you mean 'auto'?"),
        ({"sigma": 0}, "sigma=0 must be auto or a number > 0"),
        ({"network": 3}, "network=3 must be a node with _target_"),
        ({"callbacks": {"ema": 3}}, "callbacks={'ema': 3} must be a mapping of nodes"),
        ({"eval": {"evry": 2}}, "eval.evry=2 is not a configuration key; did you mean 'every'?"),
        ({"name": "???"}, "name is required: add name=VALUE (a string)"),
    ]
    for change, expected in faults:
        (problem,) = check_config({**sound, **change}, schema=schema)
        assert problem.startswith(expected)


def test_unresolved_interpolations_are_not_judged():
    assert problems(unet(width="${data.width}")) == []


def test_known_keys_include_parameters_not_written_in_the_file():
    known = known_keys({"seed": 0, "network": unet()})
    assert {"seed", "network", "network.channels", "network.dropout", "network.width"} <= {*known}
    assert "network._target_" not in known


def test_resolve_follows_methods_and_refuses_what_is_not_there():
    method = resolve("scoreexp.core.streams.ImageStreams.normal")
    assert isinstance(method, Definition)
    read = signature(method)
    assert read is not None
    assert list(read.parameters) == ["like"]
    with pytest.raises(TargetError, match="has no 'norml'"):
        resolve("scoreexp.core.streams.ImageStreams.norml")
