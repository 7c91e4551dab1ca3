"""What ``evaluation.json`` of the runs says, by metric and by how it was computed."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from scoreexp.runs.reporting.runs import Run
from scoreexp.runs.reporting.summary import Spread


class Evaluated(NamedTuple):
    """Values of one metric under one card.

    Attributes:
        metric: its name.
        card: how it was computed.
        values: per method.
        caveats: said about it by the runs.
        alone: whether no other card gives values of this name.
    """

    metric: str
    card: dict[str, Any]
    values: dict[str, Spread]
    caveats: list[str]
    alone: bool


def evaluations(runs: Sequence[Run]) -> list[Evaluated]:
    """What ``evaluation.json`` of the runs says; values with different cards stand apart."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    caveats: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for metric, value in (run.evaluation.get("values") or {}).items():
            card = (run.evaluation.get("cards") or {}).get(metric) or {}
            key = metric, json.dumps(card, sort_keys=True, default=str)
            groups.setdefault(key, {}).setdefault(run.method, []).append(float(value))
            said = (run.evaluation.get("caveats") or {}).get(metric) or []
            caveats.setdefault(key, []).extend([said] if isinstance(said, str) else said)
    names = Counter(metric for metric, _ in groups)
    found = []
    for (metric, card), by_method in groups.items():
        spreads = {m: spread for m, values in by_method.items() if (spread := Spread.of(values)) is not None}
        said = list(dict.fromkeys(caveats[metric, card]))
        found.append(Evaluated(metric, json.loads(card), spreads, said, alone=names[metric] == 1))
    return sorted(found, key=lambda e: e.metric)
