"""Tests in ``tests/unit`` start no training and no program: what needs a run lies in ``tests/training`` or ``tests/app``."""

import ast
from pathlib import Path

import pytest

UNIT = sorted((Path(__file__).parents[1] / "unit").rglob("*.py"))
TRAINING = {
    "pytorch_lightning.Trainer",
    "scoreexp.app.commands.train.train",
    "scoreexp.train",
    "scoreexp.api.train",
}


def names(tree: ast.Module) -> set[str]:
    """Dotted names that a module reaches through its imports, each as it was defined."""
    found, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (dotted := ast.unparse(node)).partition(".")[0] in aliases:
            first, _, rest = dotted.partition(".")
            found.add(f"{aliases[first]}.{rest}")
    return found


def optimised_in_a_loop(tree: ast.Module) -> list[int]:
    """Lines of ``optimizer.step()`` inside of a loop."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    calls = (node for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Call))
    return [
        c.lineno for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "step" and not c.args
    ]


def started(tree: ast.Module) -> list[str]:
    """What a module trains or starts."""
    used = {name for name in names(tree) if name in TRAINING or name.split(".")[0] == "subprocess"}
    return sorted(used) + [f"optimizer.step() in line {line}" for line in optimised_in_a_loop(tree)]


@pytest.mark.parametrize("path", UNIT, ids=lambda path: path.name)
def test_a_unit_test_trains_nothing_and_starts_no_program(path):
    assert started(ast.parse(path.read_text())) == [], "move the test to tests/training or tests/app"


@pytest.mark.parametrize(
    "source",
    [
        "import pytorch_lightning as pl\npl.Trainer(max_steps=1)",
        "from pytorch_lightning import Trainer",
        "import subprocess",
        "from subprocess import run",
        "import scoreexp as se\nse.train(model, data)",
        "from scoreexp.app.commands.train import train",
        "for _ in range(9):\n    loss.backward()\n    optimizer.step()",
    ],
)
def test_what_trains_is_seen(source):
    assert started(ast.parse(source))
