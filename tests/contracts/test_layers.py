"""A file imports only from its own room or from lower floors, and only `app/` knows Hydra, OmegaConf and W&B."""

import ast
from pathlib import Path

import pytest

import scoreexp

ROOT = Path(scoreexp.__file__).parent

FLOORS = (
    {"core"},
    {"system"},
    {"numerics", "schedules"},
    {"observations", "networks", "optimizers"},
    {"denoisers", "data"},
    {"objectives", "samplers", "metrics"},
    {"diagnostics", "guidance", "restorers", "editing", "figures", "bridge"},
    {"runs"},
    {"embedding", "prior"},
    {"lit"},
    {"api"},
    {"app"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {
    "train", "sample", "denoise", "edit", "restore", "evaluate", "compare", "report", "precompute", "inspect",
    "doctor", "convert",
}  # fmt: skip
DOOR_LINES = 50
ONLY_IN_APP = {"hydra", "omegaconf", "wandb"}
LIGHTNING = {"pytorch_lightning", "torchmetrics"}
DRAWING = {"matplotlib"}

FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_its_own_room_or_lower_floors(path):
    mine = room(path)
    for module in imports(path):
        package, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if package == "scoreexp" and other and (ROOT / other).is_dir():
            assert other == mine or FLOOR[other] < FLOOR[mine], f"{mine} imports {module}"
        assert package not in ONLY_IN_APP or mine == "app", f"{mine} imports {package}"
        assert package not in LIGHTNING or FLOOR[mine] >= FLOOR["data"], f"{mine} imports {package}"
        assert package not in DRAWING or FLOOR[mine] >= FLOOR["figures"], f"{mine} imports {package}"


def test_private_packages_of_hydra_are_imported_in_one_place():
    users = [path for path in FILES if any(name.startswith("hydra._internal") for name in imports(path))]
    assert users == [ROOT / "app" / "hydra_internals.py"]


@pytest.mark.parametrize("bare", ["core/errors.py", "core/types.py", "numerics/fokker_planck"])
def test_what_is_checked_before_torch_is_imported_does_not_import_it(bare):
    place = ROOT / bare
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        assert not {module.split(".")[0] for module in imports(path)} & {"torch"}, path


def test_every_folder_has_a_floor_and_every_floor_a_folder():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.rglob("*.py"))}
    assert folders - {"conf"} == set(FLOOR)


def test_only_doors_lie_at_the_root():
    modules = {path.stem: path for path in ROOT.glob("*.py")}
    assert set(modules) - {"__init__", "__main__"} == DOORS
    for name in DOORS:
        assert len(modules[name].read_text().splitlines()) <= DOOR_LINES, f"{name}.py is no door"
