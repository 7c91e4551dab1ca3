"""What a report says around its results: facts, what does not count, settings, hardware, reading aids."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.runs.reporting.settings import conditions, differences, shown_value
from scoreexp.runs.reporting.summary import Table, target_of
from scoreexp.runs.reporting.wording import label, target_text

BUSY = 0.5  # load average per core above which timings are not to be trusted


class Notice(NamedTuple):
    """What keeps the results from being the whole story; ``errors`` are pairs of run and message."""

    text: str
    stress: str = ""
    errors: Sequence[tuple[str, str]] = ()


class Differences(NamedTuple):
    """Settings in which the methods differ: pairs of key and its value by method."""

    methods: list[str]
    rows: list[tuple[str, list[str]]]


def facts(runs: Sequence[Run], plan: Plan | None) -> dict[str, str]:
    """The comparison in figures."""
    methods, seeds = {run.method for run in runs}, sorted({run.seed for run in runs})
    done = sum(run.state == "done" for run in runs)
    listed = f"{len(seeds)} ({', '.join(map(str, seeds[:6]))}{', …' if len(seeds) > 6 else ''})"
    said = {
        "methods": str(len(methods)),
        **({"seed": str(seeds[0])} if len(seeds) == 1 else {"seeds": listed}),
        "runs finished": f"{done} of {len(runs)}",
    }
    if plan is not None and plan.mode == "budget" and plan.seconds is not None:
        said["budget per run"] = f"{plan.seconds:g} s of pre-computation and training"
    elif plan is not None and plan.target is not None:
        said["trained until"] = target_text(plan.monitor, plan.target, runs)
        if plan.seconds is not None:
            said["given up after"] = f"{plan.seconds:g} s"
    days = sorted(str(run.manifest["started"])[:10] for run in runs if "started" in run.manifest)
    if days:
        said["measured"] = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    return said


def notices(runs: Sequence[Run], plan: Plan | None, compared: Sequence[Table]) -> list[Notice]:
    """What the reader has to know before any of the results."""
    return [
        *_without_results(runs),
        *_not_counted(runs),
        *_separate_tables(runs, plan, compared),
        *_busy(plan),
    ]


def _without_results(runs: Sequence[Run]) -> Iterator[Notice]:
    if not runs:
        yield Notice("There is no run in these folders.")
    elif not any(run.state == "done" for run in runs):
        yield Notice("There is nothing to compare yet.", "No run has finished.")


def _not_counted(runs: Sequence[Run]) -> Iterator[Notice]:
    what_of = {
        "failed": "failed",
        "interrupted": "were interrupted",
        "running": "are still marked as running (or were killed)",
        "unfinished": "have not finished",
        "not started": "have not been started",
    }
    for state, what in what_of.items():
        those = [(f"{label(run.method)} seed {run.seed}", run.error) for run in runs if run.state == state]
        if those:
            names = ", ".join(name for name, _ in those)
            yield Notice(
                f"{len(those)} of {len(runs)} runs {what} and do not count: {names}.",
                errors=[(name, error) for name, error in those if error],
            )


def _separate_tables(runs: Sequence[Run], plan: Plan | None, compared: Sequence[Table]) -> Iterator[Notice]:
    if len(compared) > 1:
        yield Notice(
            "These runs were not all measured in the same way, so they stand in separate tables and are not ranked "
            f"against each other. They differ in {_what_differs(runs, plan)}."
        )


def _busy(plan: Plan | None) -> Iterator[Notice]:
    if plan is not None and plan.load > BUSY:
        yield Notice(
            f"The machine was busy with other work when this was started (load average {plan.load:.1f} per core): seconds "
            "are longer than on a quiet one, and not comparable between runs. Steps are."
        )


def _what_differs(runs: Sequence[Run], plan: Plan | None) -> str:
    described = []
    for run in runs:
        if run.config:
            monitor, target = target_of(run, plan)
            own = {"hardware": run.manifest.get("device"), "target": f"{monitor} {target}"}
            described.append(conditions(run.config) | own)
    parts = []
    for key in dict.fromkeys(key for one in described for key in one):
        values = dict.fromkeys(shown_value(key, one.get(key, "–")) for one in described)
        if len(values) > 1:
            parts.append(f"{key.removesuffix('._target_')} ({' / '.join(values)})")
    return ", ".join(parts)


def setting_differences(runs: Sequence[Run]) -> Differences | None:
    """The settings in which the methods differ; None where none do."""
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.config:
            first.setdefault(run.method, run.config)
    rows = differences(first)
    if not rows:
        return None
    return Differences(
        [label(method) for method in first],
        [(key, [values[method] for method in first]) for key, values in rows.items()],
    )


def reading(runs: Sequence[Run], compared: Sequence[Table]) -> list[str]:
    """What the figures mean and where they stop."""
    said = [
        "SSIM is windowed (11 × 11 Gaussian, σ 1.5), global SSIM has one window over the whole image and all its "
        "channels; their values are not comparable with each other. Data range 1, colour channels counted alike, "
        "results clamped to [0, 1], observations not clipped.",
        "Seconds are pre-computation and training by the clock; evaluation is left out. Score fields from a cache count "
        "with the seconds that solving them took.",
    ]
    if any(table.conditions.get("data.validate_on") == "train" for table in compared):
        said.append(
            "Quality is measured on the images that were trained on. Reaching a target there is memorisation: it says how "
            "fast a method learns these images, not how well it denoises others."
        )
    seeds = max((len(row.finished) for table in compared for row in table.rows), default=0)
    if 0 < seeds < 5:
        said.append(
            f"{seeds} {'seed says' if seeds == 1 else 'seeds say'} little about spread: ranges are the smallest and the "
            "largest value, no confidence intervals."
        )
    at_once = max((int(run.status.get("jobs_at_once") or 1) for run in runs), default=1)
    if at_once > 1:
        said.append(f"{at_once} runs shared the machine: their seconds are those of a busy machine.")
    again = sum(int(run.status.get("attempts") or 1) > 1 for run in runs)
    if again:
        said.append(f"{again} runs were interrupted and resumed; their seconds are added up over the parts.")
    return said


def hardware(runs: Sequence[Run], plan: Plan | None) -> dict[str, list[str]]:
    """On what the runs were made, and with what: each value once."""
    rows: dict[str, list[str]] = {"processor": [plan.machine] if plan else []}
    for run in runs:
        for name in ("device", "platform", "revision"):
            rows.setdefault(name, []).append(str(run.manifest.get(name) or ""))
        rows.setdefault("host", []).append(str(run.status.get("hostname") or ""))
        versions = run.manifest.get("versions") or {}
        rows.setdefault("software", []).append(", ".join(f"{k} {v}" for k, v in versions.items() if v))
    known = {name: [value for value in dict.fromkeys(values) if value] for name, values in rows.items()}
    return {name: values for name, values in known.items() if values}
