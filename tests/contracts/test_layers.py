"""A file imports only from its own layer or the ones below it, and only entry points know Hydra or W&B."""

import ast
from pathlib import Path

import pytest

import scoreexp

ROOT = Path(scoreexp.__file__).parent

LAYER = {
    # L0 pure mathematics, and what everything may use
    "ops": 0, "streams": 0, "batch": 0, "parameter_types": 0, "errors": 0, "atomic": 0, "oracles": 0, "linalg": 0,
    "fokker_planck": 0, "spectral_torch": 0, "ode": 0, "untrusted": 0, "signatures": 0, "config_check": 0,
    "stop_signals": 0,
    # L1 model algebra
    "schedules": 1, "preconditioning": 1, "networks": 1, "denoiser": 1, "angular_flow": 1,
    # L2 methods
    "objectives": 2, "samplers": 2, "embedding": 2, "likelihood": 2,
    # L3 data and measurement
    "data": 3, "metrics": 3, "tiling": 3, "figures": 3, "field_figures": 3, "point_figures": 3,
    # L4 Lightning
    "lit": 4, "callbacks": 4,
}  # fmt: skip
ENTRY = 5
L2 = {name for name, layer in LAYER.items() if layer == 2}
HEAVY = {"hydra", "omegaconf", "wandb"}
BARE = {"fokker_planck": {"torch", "pytorch_lightning"}, "parameter_types": {"torch"}, "errors": {"torch"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_from_lower_layers(path):
    mine = part(path)
    layer = LAYER.get(mine, ENTRY)
    for module in imports(path):
        package, _, rest = module.partition(".")
        if package == "scoreexp" and rest:
            other = rest.split(".")[0]
            assert LAYER.get(other, ENTRY) <= layer, f"{mine} (L{layer}) imports {module}"
            assert not (mine in L2 and other in L2 and mine != other), f"{mine} and {other} are both methods"
        assert layer == ENTRY or package not in HEAVY, f"{mine} (L{layer}) imports {package}"
        assert package not in BARE.get(mine, set()), f"{mine} imports {package}"
        if layer < 3:
            assert package not in {"pytorch_lightning", "matplotlib", "skimage", "torchmetrics"}, (
                f"{mine} imports {package}"
            )


def test_every_layer_entry_exists():
    planned = {"embedding", "linalg"}
    assert {name for name in LAYER if not list(ROOT.glob(f"{name}*"))} <= planned
