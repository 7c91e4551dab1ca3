"""A run as its folder holds it, and the plan of a comparison."""

import hashlib
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from scoreexp.metrics.catalogue import spec_of

COMPARISON_FILE = "comparison.json"
AFTER = ("train", "evaluate")  # stages that are not pre-computation

State = Literal["done", "failed", "interrupted", "running", "unfinished", "not started"]


class Point(NamedTuple):
    """One evaluation: the seconds are those of pre-computation and training."""

    step: int
    seconds: float
    value: float


@dataclass(frozen=True)
class Plan:
    """What a comparison set out to do.

    >>> plan = Plan("two", methods={"ddpm": [], "ours": ["ema=null"]}, seeds=[0, 1], target=0.9)
    >>> plan.cases, plan.folder(Path("outputs"), "ours", seed=1).as_posix()
    ([(0, None), (1, None)], 'outputs/ours/seed_1')

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
        images: their names, one run for each; empty where the methods' settings name the data.
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
        """What every method is run on: seed and image (None where the methods' settings name the data)."""
        images: list[str | None] = [*self.images] or [None]
        return [(seed, image) for image in images for seed in self.seeds]

    def folder(self, root: Path, method: str, seed: int, image: str | None = None) -> Path:
        """Where a run lies in the comparison's folder."""
        below = root / slug(method)
        return (below if image is None else below / slug(image)) / f"seed_{seed}"


@dataclass(frozen=True)
class Run:
    """A run folder as it stands.

    >>> rows = [{"step": n, "val/psnr": 16 + n / 25, "time/total": n / 10} for n in (100, 200)]
    >>> run = Run(Path("outputs/ours/seed_0"), "ours", seed=0, manifest={"seed": 0}, rows=rows)
    >>> run.state, run.last("val/psnr"), run.reached("val/psnr", 23.0)
    ('unfinished', 24.0, Point(step=200, seconds=20.0, value=24.0))
    """

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
    """A method's name as that of a folder.

    >>> slug("photo32_ours"), slug("ours, no EMA")[:12]
    ('photo32_ours', 'ours__no_EMA')
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in method).strip("._")
    if kept == method:
        return kept
    return f"{kept or 'method'}-{hashlib.blake2b(method.encode(), digest_size=3).hexdigest()}"
