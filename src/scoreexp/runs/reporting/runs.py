"""What run folders hold, whatever state their runs are in."""

import csv
import hashlib
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from scoreexp.core.errors import UserError
from scoreexp.core.moves import with_current_names
from scoreexp.metrics.catalogue import spec_of
from scoreexp.system.json_files import read_json

COMPARISON_FILE = "comparison.json"
AFTER = ("train", "evaluate")  # stages that are not pre-computation

# Settings of the data that say how a method trains or where files lie, not what is measured.
_NOT_MEASURED = {
    "batch_size", "num_workers", "augment", "rotation", "seed", "root", "cache", "download", "on_bad_image",
}  # fmt: skip
_ONLY_SHOWN = {"monitor.pictures", "monitor.intermediate", "monitor.shown_levels"}
_NOT_SETTINGS = {"run_dir", "resume", "dry_run", "seed", "data.seed"} | {
    "callbacks.stop.mode", "callbacks.checkpoints.mode",  # follow from the metrics that are monitored
}  # fmt: skip

_MAX_DEPTH = 50

_ABSENT = "–"

State = Literal["done", "failed", "interrupted", "running", "unfinished", "not started"]


class Point(NamedTuple):
    """One evaluation: the seconds are those of pre-computation and training."""

    step: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Plan:
    """What a comparison set out to do.

    Attributes:
        name: short name.
        title: what is compared, one line.
        methods: method to its overrides.
        seeds: seeds of every method.
        mode: ``target`` or ``budget``.
        monitor: the logged value that the target is about.
        target: its target, or None.
        seconds: the budget, or the cap of a run that does not reach its target.
        baseline: the method that speed-ups refer to.
        shared: overrides of all methods.
        machine: the processor.
        images: the pictures, each a run of its own; empty where the methods' settings name the data.
        load: largest load average per core when it was started, by other programs.
    """

    name: str
    title: str = ""
    methods: dict[str, list[str]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    mode: Literal["target", "budget"] = "target"
    monitor: str = "val/ssim_confirmed"
    target: float | None = None
    seconds: float | None = None
    baseline: str | None = None
    shared: list[str] = field(default_factory=list)
    machine: str = ""
    load: float = 0.0
    images: list[str] = field(default_factory=list)

    @property
    def cases(self) -> list[tuple[int, str | None]]:
        """What every method is run on: seed and picture (None where the methods' settings name the data)."""
        images: list[str | None] = [*self.images] or [None]
        return [(seed, image) for image in images for seed in self.seeds]

    def folder(self, root: Path, method: str, seed: int, image: str | None = None) -> Path:
        """Where a run lies in the comparison's folder."""
        below = root / slug(method)
        return (below if image is None else below / slug(image)) / f"seed_{seed}"


@dataclass(frozen=True)
class Run:
    """A run folder as it stands."""

    folder: Path
    method: str
    seed: int
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    image: str | None = None

    @property
    def state(self) -> State:
        if self.status and self.status.get("status") != "done":
            return self.status["status"]
        if self.metrics:
            return "done"
        return "unfinished" if self.manifest else "not started"

    @property
    def descends(self) -> bool:
        """Whether the monitored value is to fall to its target."""
        stop = (self.config.get("callbacks") or {}).get("stop") or {}
        spec = spec_of(str(stop.get("monitor")))
        return (stop.get("mode") or (spec and spec.mode)) == "min"

    @property
    def untrained(self) -> bool:
        """Whether it is the exact score, which has nothing to train."""
        return str((self.config.get("model") or {}).get("_target_", "")).endswith(".ExactScore")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage; of a run that has not finished up to its last evaluation."""
        if self.metrics:
            return self.metrics["seconds"]
        timed = [row for row in self.rows if "time/total" in row]
        if not timed:
            return {}
        last = timed[-1]
        train, evaluate = last.get("time/train", 0.0), last.get("time/evaluate", 0.0)
        before = last["time/total"] - train - evaluate
        return ({"pre-computation": before} if before > 0 else {}) | {"train": train, "evaluate": evaluate}

    @property
    def precompute(self) -> float:
        return sum(value for stage, value in self.seconds.items() if stage not in AFTER)

    @property
    def cost(self) -> float:
        """Seconds of pre-computation and training."""
        return self.precompute + self.seconds.get("train", 0.0)

    @property
    def steps(self) -> int:
        return int(self.metrics.get("step", self.rows[-1]["step"] if self.rows else 0))

    def curve(self, name: str) -> list[Point]:
        """The evaluations of a logged value."""
        points = []
        for row in self.rows:
            if name in row and not math.isnan(row[name]):
                total = row.get("time/total", row.get("time/train", 0.0) + row.get("time/evaluate", 0.0))
                points.append(Point(int(row["step"]), total - row.get("time/evaluate", 0.0), row[name]))
        return points

    def last(self, name: str) -> float | None:
        """A logged value at its last evaluation."""
        values = [row[name] for row in self.rows if name in row]
        return values[-1] if values else None

    def best(self, name: str) -> float | None:
        values = [row[name] for row in self.rows if name in row and not math.isnan(row[name])]
        return max(values, default=None)

    def reached(self, name: str, target: float) -> Point | None:
        """The first evaluation at which a value is at the target or beyond it, as the run's stopping rule says."""
        sign = -1 if self.descends else 1
        return next((point for point in self.curve(name) if sign * point.value >= sign * target), None)

    @property
    def command(self) -> str:
        if "command" in self.status:
            _, _, rest = str(self.status["command"]).partition(" -m ")
            return f"python -m {rest}"
        words = [str(word) for word in self.manifest.get("command", [])]
        if words and words[0].endswith(".py"):  # as early runs wrote it
            words[:1] = ["python", "-m", f"scoreexp.{words[0].removesuffix('.py')}"]
        return shlex.join(words)

    @property
    def error(self) -> str | None:
        return self.status.get("error")


def slug(method: str) -> str:
    """A method's name as that of a folder."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in method).strip("._")
    if kept == method:
        return kept
    return f"{kept or 'method'}-{hashlib.blake2b(method.encode(), digest_size=3).hexdigest()}"


def read_config(folder: Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder; empty where there is none.

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


def _read_rows(path: Path) -> list[dict[str, float]]:
    """The table of metrics; a last line that is still being written is left out."""
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
        _read_rows(folder / "metrics.csv"),
    )


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], Plan | None]:
    """The runs in and below ``folders``; with the plan of a comparison, also those that have not started.

    Runs outside a comparison are named after their configuration: those that differ in more than their seed get
    different names.

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


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def method_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes up a method: everything but seed and folders, flat."""
    return {key: value for key, value in flattened(config).items() if key not in _NOT_SETTINGS}


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Settings in which the configurations differ: key to value by label; "–" where one has no such key.

    What only one side has as a whole, such as an embedding, is one row: the class that it is built by.
    """
    flat = {label: method_settings(config) for label, config in configs.items()}
    rows: dict[str, dict[str, str]] = {}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        values = {label: _show(key, settings.get(key, _ABSENT)) for label, settings in flat.items()}
        if key != "name" and len(set(values.values())) > 1:
            rows[key] = values
    for key in [key for key in rows if any(other.startswith(f"{key}.") for other in rows)]:
        target = rows.get(f"{key}._target_", {})
        rows[key] = {
            label: value if value != _ABSENT else target.get(label, _ABSENT)
            for label, value in rows[key].items()
        }
        having = [label for label, value in rows[key].items() if value != "null"]
        for other in [other for other in rows if other.startswith(f"{key}.")]:
            if (
                len({rows[other][label] for label in having}) <= 1
            ):  # else it differs between those that have it
                del rows[other]
    return {key.removesuffix("._target_"): values for key, values in rows.items()}


def _show(key: str, value: Any) -> str:
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def conditions(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for two results to be comparable: the data and the way they are measured, flat."""
    data = flattened(config.get("data") or {}, "data.")
    measured = {key: value for key, value in data.items() if key.split(".")[1] not in _NOT_MEASURED}
    monitor = flattened((config.get("callbacks") or {}).get("monitor") or {}, "monitor.")
    return measured | {key: value for key, value in monitor.items() if key not in _ONLY_SHOWN}
