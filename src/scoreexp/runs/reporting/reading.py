"""Reading run folders, whatever state their runs are in."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from scoreexp.core.errors import UserError
from scoreexp.core.moves import with_current_names
from scoreexp.runs.reporting.runs import COMPARISON_FILE, Plan, Run
from scoreexp.runs.reporting.settings import differences, method_settings
from scoreexp.system.json_files import read_json

_MAX_DEPTH = 50


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder; empty where there is none.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.yaml").write_text("{name: ours, seed: 7}")
    ...     read_config(Path(folder))
    {'name': 'ours', 'seed': 7}

    Raises:
        UserError: it is no configuration as a run writes it.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        _require_plain(text)
        config: Any = with_current_names(yaml.safe_load(text)) if text.strip() else {}
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        _require_mappings({name: config.get(name) for name in ("data", "model", "callbacks")})
        _require_mappings(config.get("callbacks") or {})
    except Exception as error:  # yaml raises a dozen types for a bad file
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{path} cannot be read as a configuration ({reason}): delete the damaged file"
        ) from error
    return config


def _require_mappings(nodes: Mapping[str, Any]) -> None:
    for name, node in nodes.items():
        if node is not None and not isinstance(node, Mapping):
            raise ValueError(f"{name} is {node!r}, not a mapping")


def _require_plain(text: str) -> None:
    """Refuse what takes a YAML reader time or memory out of proportion: aliases and deep nesting."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            raise ValueError("aliases or deep nesting, which no run writes")


def read_rows(path: Path) -> list[dict[str, float]]:
    """The table of metrics, empty where there is none; a last line that is still being written is left out."""
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
        return [
            {name: float(value) for name, value in row.items() if name and value not in ("", None)}
            for row in csv.DictReader(lines)
        ]
    except (ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} cannot be read ({reason}): mend or delete the damaged file") from error


def read_run(folder: Path, method: str | None = None, seed: int | None = None) -> Run:
    """A run folder, which may be empty or absent.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "config.yaml").write_text("{name: ours, seed: 7}")
    ...     run = read_run(Path(folder))
    >>> run.method, run.seed, run.state
    ('ours', 7, 'not started')

    Raises:
        UserError: one of its files is damaged.
    """
    config = read_config(folder)
    own_seed = config.get("seed") or 0
    if not isinstance(own_seed, int):
        raise UserError(
            f"{folder / 'config.yaml'} has seed {own_seed!r}, not a whole number: delete the damaged file"
        )
    return Run(
        folder,
        method if method is not None else str(config.get("name", folder.name)),
        seed if seed is not None else own_seed,
        config,
        read_json(folder / "manifest.json"),
        read_json(folder / "metrics.json"),
        read_json(folder / "status.json"),
        read_json(folder / "evaluation.json"),
        read_rows(folder / "metrics.csv"),
    )


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], Plan | None]:
    """The runs in and below ``folders``; with the plan of a comparison, also those that have not started.

    Runs outside a comparison are named after their configuration: those that differ in more than their seed get
    different names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("ddpm", "ours"):
    ...         Path(folder, name).mkdir()
    ...         _ = Path(folder, name, "config.yaml").write_text(f"name: {name}")
    ...     runs, plan = find_runs([Path(folder)])
    >>> [run.method for run in runs], plan
    (['ddpm', 'ours'], None)

    Raises:
        UserError: a folder does not exist, or holds a damaged file.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: give run folders, or a folder that contains some")
    if len(folders) == 1 and (stored := read_json(folders[0] / COMPARISON_FILE)):
        plan = Plan(**stored)
        runs = [
            replace(read_run(plan.folder(folders[0], method, seed, image), method, seed), image=image)
            for method in plan.methods
            for seed, image in plan.cases
        ]
        return runs, plan
    found = sorted({path for folder in folders for path in _run_folders(folder)})
    return _named([read_run(path) for path in found]), None


def _run_folders(folder: Path) -> Iterator[Path]:
    if any((folder / name).is_file() for name in ("manifest.json", "status.json", "config.yaml")):
        yield folder
        return
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink():
            yield from _run_folders(child)


def _named(runs: list[Run]) -> list[Run]:
    """Give runs with the same name but other settings names that say what differs."""
    named = []
    for run in runs:
        namesakes = [other for other in runs if other.method == run.method and other.config]
        settings = {json.dumps(method_settings(other.config), sort_keys=True) for other in namesakes}
        if len(settings) > 1 and run.config:
            rows = differences({str(i): other.config for i, other in enumerate(namesakes)})
            mine = str(next(i for i, other in enumerate(namesakes) if other is run))
            said = [f"{key}={values[mine]}" for key, values in rows.items()][:3]
            run = Run(**{**vars(run), "method": f"{run.method} {' '.join(said)}"})
        named.append(run)
    return named
