"""Methods held against each other: medians over seeds, speed-ups, and which results may be compared at all."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from scoreexp.metrics.catalogue import spec_of
from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.runs.reporting.settings import conditions

QUALITY = ("ssim", "ssim_global", "psnr")


class Spread(NamedTuple):
    """Median and range of one value over seeds; infinite values are those that were not reached.

    >>> Spread.of([3.0, 1.0, None, 2.0])
    Spread(median=2.0, low=1.0, high=3.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


class SpeedUp(NamedTuple):
    """How many times faster than the baseline; ``bound`` is ``>`` or ``<`` where one side did not reach the target."""

    ratio: float
    bound: str = ""


@dataclass(frozen=True)
class Summary:
    """The finished runs of one method.

    >>> from pathlib import Path
    >>> metrics = [{"step": 100, "seconds": {"train": seconds}} for seconds in (10.0, 11.0, 15.0)]
    >>> runs = [Run(Path(f"seed_{seed}"), "ours", seed, metrics=m) for seed, m in enumerate(metrics)]
    >>> summary = summarise("ours", runs, monitor="val/ssim", target=None)
    >>> len(summary.finished), summary.seconds
    (3, Spread(median=11.0, low=10.0, high=15.0))

    Attributes:
        method: its name.
        runs: all its runs.
        finished: those that count.
        reached: number of finished runs that reached the target.
        seconds: to the target (not reached: infinite), or spent where there is no target.
        spent: of pre-computation and training, to the end.
        precompute: seconds of pre-computation.
        steps: to the target, or made where there is no target.
        last: quality at the last evaluation, and the monitored value.
        best: quality at the best one.
        nfe: network evaluations per denoised image.
        parameters: weights of the network.
        untrained: whether it is the exact score.
    """

    method: str
    runs: list[Run]
    finished: list[Run]
    reached: int
    seconds: Spread | None
    spent: Spread | None
    precompute: Spread | None
    steps: Spread | None
    last: dict[str, Spread | None]
    best: dict[str, Spread | None]
    nfe: float | None
    parameters: int | None
    untrained: bool


class Column(NamedTuple):
    """A value that every method has and by which they are ranked.

    Attributes:
        kind: seconds, or a quality at the last or the best evaluation.
        name: the quality.
    """

    kind: Literal["seconds", "last", "best"]
    name: str = ""

    def of(self, row: Summary) -> Spread | None:
        return row.seconds if self.kind == "seconds" else getattr(row, self.kind)[self.name]

    def best(self, rows: Sequence[Summary]) -> set[str]:
        """The trained methods with the best median; none where only one can be compared."""
        spreads = {row.method: self.of(row) for row in rows if not row.untrained}
        medians = {m: s.median for m, s in spreads.items() if s is not None and math.isfinite(s.median)}
        if len(medians) < 2:
            return set()
        spec = spec_of(self.name)
        falls = self.kind == "seconds" or (spec is not None and spec.mode == "min")
        best = (min if falls else max)(medians.values())
        return {method for method, median in medians.items() if median == best}


SECONDS = Column("seconds")


@dataclass(frozen=True)
class Table:
    """Results that may be compared: the same data, observation, target and hardware.

    >>> from pathlib import Path
    >>> shared = {"config": {"data": {"size": 32}}, "metrics": {"step": 100, "seconds": {"train": 10.0}}}
    >>> finished = [
    ...     Run(Path(name), name, 0, rows=[{"step": 100, "val/ssim_confirmed": ssim, "val/ssim": ssim}], **shared)
    ...     for name, ssim in (("ddpm", 0.8), ("ours", 0.9))
    ... ]
    >>> [table] = tables(finished)
    >>> table.metric, table.conditions, table.at_end.best(table.rows)
    ('val/ssim', {'data.size': 32}, {'ours'})

    Attributes:
        conditions: what all its runs share, flat.
        device: on what they ran.
        monitor: the logged value of the target.
        target: the target, or None.
        rows: one per method, in the order given.
        speed_ups: against the baseline, by method.
    """

    conditions: dict[str, Any]
    device: str
    monitor: str
    target: float | None
    rows: list[Summary]
    speed_ups: dict[str, SpeedUp]

    @property
    def metric(self) -> str:
        """The evaluated value behind the monitor, such as ``val/ssim_global``."""
        return self.monitor.removesuffix("_confirmed")

    @property
    def at_end(self) -> Column:
        """The monitored quality at the last evaluation."""
        return Column("last", quality_of(self.monitor))

    def ranking(self, quality: Column) -> tuple[Column, set[str]]:
        """What ranks the methods, and the best: seconds to the target, or ``quality`` where these do not tell."""
        fastest = SECONDS.best(self.rows) if self.target is not None else set()
        return (SECONDS, fastest) if fastest else (quality, quality.best(self.rows))


def quality_of(monitor: str) -> str:
    """The quality that a logged value is about: ``ssim`` for ``val/ssim_confirmed``.

    >>> quality_of("val/ssim_confirmed")
    'ssim'
    """
    return monitor.removeprefix("val/").removesuffix("_confirmed")


def target_of(run: Run, plan: Plan | None) -> tuple[str, float | None]:
    """The value that a run was to reach and its target."""
    if plan is not None:
        return plan.monitor, plan.target
    stop = (run.config.get("callbacks") or {}).get("stop") or {}
    return str(stop.get("monitor", "val/ssim_confirmed")), stop.get("target")


def shared_conditions(run: Run) -> dict[str, Any]:
    """The conditions of a run, without the image where it is one of several that each method is run on."""
    shared = conditions(run.config)
    return shared if run.image is None else {k: v for k, v in shared.items() if k != "data.path"}


def by_image(table: Table) -> dict[str, list[Summary]]:
    """The rows of a table for each of its images alone; empty where it has only one."""
    runs = [run for row in table.rows for run in row.runs]
    images = list(dict.fromkeys(run.image for run in runs if run.image is not None))
    if len(images) < 2:
        return {}
    return {
        image: [
            summarise(row.method, [r for r in row.runs if r.image == image], table.monitor, table.target)
            for row in table.rows
        ]
        for image in images
    }


def tables(runs: Sequence[Run], plan: Plan | None = None, baseline: str | None = None) -> list[Table]:
    """Results in tables of what may be compared.

    Args:
        runs: all runs; those that have not begun are in no table.
        plan: the comparison that they belong to.
        baseline: the method that speed-ups refer to; by default the plan's.
    """
    baseline = baseline or (plan.baseline if plan is not None else None)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config:
            monitor, target = target_of(run, plan)
            key = [shared_conditions(run), run.manifest.get("device"), monitor, target]
            groups.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    return [_table(group, plan, baseline) for group in groups.values()]


def _table(runs: Sequence[Run], plan: Plan | None, baseline: str | None) -> Table:
    monitor, target = target_of(runs[0], plan)
    methods = list(dict.fromkeys(run.method for run in runs))
    rows = [summarise(name, [run for run in runs if run.method == name], monitor, target) for name in methods]
    device = str(runs[0].manifest.get("device", "unknown"))
    return Table(shared_conditions(runs[0]), device, monitor, target, rows, speed_ups(rows, baseline, target))


def summarise(method: str, runs: Sequence[Run], monitor: str, target: float | None) -> Summary:
    """The runs of one method on the same data."""
    finished = [run for run in runs if run.state == "done"]
    hits = [run.reached(monitor, target) if target is not None else None for run in finished]
    if target is None:
        seconds = Spread.of([run.cost for run in finished])
        steps = Spread.of([run.steps for run in finished])
    else:
        seconds = Spread.of([hit.seconds if hit else math.inf for hit in hits])
        steps = Spread.of([hit.step if hit else math.inf for hit in hits])
    known_nfe = [nfe for run in finished if (nfe := run.last("val/nfe")) is not None]
    parameters = [run.metrics["parameters"] for run in finished if "parameters" in run.metrics]
    return Summary(
        method=method,
        runs=list(runs),
        finished=finished,
        reached=sum(hit is not None for hit in hits),
        seconds=seconds,
        spent=Spread.of([run.cost for run in finished]),
        precompute=Spread.of([run.precompute for run in finished]),
        steps=steps,
        last={
            name: Spread.of([run.last(f"val/{name}") for run in finished])
            for name in dict.fromkeys((*QUALITY, quality_of(monitor)))
        },
        best={name: Spread.of([run.best(f"val/{name}") for run in finished]) for name in QUALITY},
        nfe=known_nfe[0] if known_nfe else None,
        parameters=parameters[0] if parameters else None,
        untrained=any(run.untrained for run in runs),
    )


def speed_ups(rows: Sequence[Summary], baseline: str | None, target: float | None) -> dict[str, SpeedUp]:
    """Median seconds of the baseline over those of each method; the exact score, which trains nothing, has none.

    Where the median run of one side did not reach the target, the seconds that it was granted are a bound.
    """
    reference = next((row for row in rows if row.method == baseline), None)
    if target is None or reference is None or reference.seconds is None:
        return {}
    ratios = {}
    for row in rows:
        if row.untrained or row.seconds is None:
            continue
        base, own = reference.seconds.median, row.seconds.median
        granted = [_granted(summary) for summary in (reference, row)]
        if math.isinf(base) and math.isinf(own):
            continue
        if math.isinf(base):
            ratios[row.method] = SpeedUp(granted[0] / own, ">")
        elif math.isinf(own):
            ratios[row.method] = SpeedUp(base / granted[1], "<")
        elif own > 0:
            ratios[row.method] = SpeedUp(base / own)
    return ratios


def _granted(summary: Summary) -> float:
    """Median seconds that the runs of a method have had."""
    return summary.spent.median if summary.spent is not None else math.nan


def median_curve(
    curves: Sequence[Sequence[tuple[float, float]]], points: int = 80
) -> list[tuple[float, float]]:
    """The median over runs of piecewise linear curves; a run that has ended keeps its last value.

    It reaches from where all runs have been evaluated to the median of their ends.
    """
    curves = [sorted(curve) for curve in curves if curve]
    if not curves:
        return []
    start = max(curve[0][0] for curve in curves)
    end = statistics.median(curve[-1][0] for curve in curves)
    if end <= start:
        return [(start, statistics.median(_at(curve, start) for curve in curves))]
    grid = [start + (end - start) * i / (points - 1) for i in range(points)]
    return [(x, statistics.median(_at(curve, x) for curve in curves)) for x in grid]


def _at(curve: Sequence[tuple[float, float]], x: float) -> float:
    if x >= curve[-1][0]:
        return curve[-1][1]
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1]
