"""What ``scoreexp.evaluate`` leaves: ``evaluation.json`` and a table on the terminal."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoreexp.app.composition import shell_command
from scoreexp.app.evaluation.subject import Measured, Subject
from scoreexp.metrics.card import library_versions
from scoreexp.runs.directory import git_revision
from scoreexp.system.json_files import read_json, write_json


def write(
    subject: Subject, file: Path, measured: Sequence[Measured], nfe: int | None, seconds: float
) -> None:
    """Add the values to ``evaluation.json``, or replace it if it is about other weights."""
    cfg = subject.cfg
    with open(cfg.ckpt, "rb") as checkpoint:
        digest = hashlib.file_digest(checkpoint, "sha256").hexdigest()
    stored = read_json(file)
    if (stored.get("checkpoint_sha256"), stored.get("weights")) != (digest, cfg.weights):
        stored = {}
    kept: dict[str, dict[str, Any]] = {
        key: dict(stored.get(key, {})) for key in ("values", "cards", "caveats", "how")
    }
    how = {
        "command": shell_command("scoreexp.evaluate", sys.argv[1:]),
        **subject.settings,
        "nfe_per_sample": nfe,
        "first_seed": cfg.first_seed,
        "seconds": round(seconds, 3),
        "versions": library_versions(),
        "revision": git_revision(),
    }
    for item in measured:
        kept["values"][item.name] = item.value
        kept["cards"][item.name] = item.card
        kept["how"][item.name] = how
        kept["caveats"].pop(item.name, None)
        if item.caveat:
            kept["caveats"][item.name] = item.caveat
    about = {"checkpoint": str(cfg.ckpt), "checkpoint_sha256": digest, "weights": cfg.weights}
    write_json(file, {**kept, **about, "command": how["command"]})


def table(measured: Sequence[Measured]) -> list[str]:
    """A line per value, and below it what a reader must know."""
    rows = [("metric", "value", "better", "n", "compared by")] + [
        (item.name, f"{item.value:.5g}", item.direction.replace("neither", "-"), str(item.n), item.by)
        for item in measured
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row, caveat in zip(rows, ["", *(item.caveat for item in measured)], strict=True):
        cells = (row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:])), row[4])
        lines.append("  ".join(cells).rstrip())
        if caveat:
            lines.append(f"    note: {caveat}")
    return lines


def by_reason(unmeasured: Mapping[str, str]) -> dict[str, list[str]]:
    """The metrics that each reason keeps from being measured."""
    found: dict[str, list[str]] = {}
    for name, reason in unmeasured.items():
        found.setdefault(reason, []).append(name)
    return found
