"""The runs as a table for other programs."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from scoreexp.runs.reporting.runs import Plan, Run
from scoreexp.runs.reporting.summary import QUALITY, target_of


def as_csv(runs: Sequence[Run], plan: Plan | None = None) -> str:
    """One row per run."""
    extra = sorted({name for run in runs for name in run.evaluation.get("values") or {}})
    columns = [
        "method", "image", "seed", "state", "data", "resolution", "monitor", "target", "reached", "seconds_to_target",
        "steps_to_target", "seconds_precompute", "seconds_train", "seconds_evaluate", "steps",
        *(f"{kind}_{name}" for name in QUALITY for kind in ("last", "best")), "nfe", "parameters", "device", "folder",
        *(f"evaluation_{name}" for name in extra), "error",
    ]  # fmt: skip
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="")
    writer.writeheader()
    for run in runs:
        monitor, target = target_of(run, plan)
        hit = run.reached(monitor, target) if target is not None else None
        data = run.config.get("data") or {}
        row: dict[str, Any] = {
            "method": run.method,
            "image": run.image,
            "seed": run.seed,
            "state": run.state,
            "data": str(data.get("_target_", "")).rpartition(".")[2],
            "resolution": data.get("size", ""),
            "monitor": monitor,
            "target": target,
            "reached": "" if target is None else hit is not None,
            "seconds_to_target": hit.seconds if hit else None,
            "steps_to_target": hit.step if hit else None,
            "seconds_precompute": run.precompute if run.seconds else None,
            "seconds_train": run.seconds.get("train"),
            "seconds_evaluate": run.seconds.get("evaluate"),
            "steps": run.steps,
            "nfe": run.last("val/nfe"),
            "parameters": run.metrics.get("parameters"),
            "device": run.manifest.get("device"),
            "folder": str(run.folder),
            "error": run.error,
        }
        row |= {f"last_{name}": run.last(f"val/{name}") for name in QUALITY}
        row |= {f"best_{name}": run.best(f"val/{name}") for name in QUALITY}
        row |= {f"evaluation_{name}": (run.evaluation.get("values") or {}).get(name) for name in extra}
        writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return buffer.getvalue()
