"""How names and values are written on the page and in its tables."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scoreexp.metrics.catalogue import spec_of
from scoreexp.runs.reporting.runs import Run
from scoreexp.runs.reporting.summary import quality_of

ABSENT = "–"
NOT_REACHED = "not reached"
_DIGEST = re.compile(r"\b[0-9a-f]{12,}\b")


def label(method: str) -> str:
    """A method's name as text.

    >>> label("photo32_ours")
    'photo32 ours'
    """
    return method.replace("_", " ")


def metric_name(monitor: str) -> str:
    """A logged value's name as text.

    >>> metric_name("val/psnr")
    'PSNR'
    """
    spec = spec_of(monitor)
    return quality_of(monitor) if spec is None else spec.title


def target_text(monitor: str, target: float, runs: Sequence[Run]) -> str:
    """A target as the runs hold their value against it: ``SSIM ≥ 0.99``."""
    return f"{metric_name(monitor)} {'≤' if any(run.descends for run in runs) else '≥'} {target:g}"


def seconds_text(value: float) -> str:
    if math.isinf(value):
        return NOT_REACHED
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def steps_text(value: float) -> str:
    return ABSENT if math.isinf(value) else f"{value:.0f}"


def quality_text(value: float, name: str) -> str:
    if math.isinf(value):
        return "∞"
    spec = spec_of(name)
    return f"{value:{'.4g' if spec is None else spec.digits}}"


def with_unit(value: float, name: str) -> str:
    spec = spec_of(name)
    return f"{quality_text(value, name)} {'' if spec is None else spec.unit}".rstrip()


def parameters_text(count: int | None) -> str:
    if count is None:
        return ABSENT
    return "none" if count == 0 else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"


def card_text(card: Mapping[str, Any]) -> str:
    """How a value was computed, without its name; of a digest the first eight characters.

    >>> card_text({"name": "fid", "n_generated": 500, "sampler": {"_target_": "scoreexp.samplers.DDIM", "eta": 0.0}})
    'n generated 500, sampler DDIM (eta 0.0)'
    """
    return ", ".join(_entries({key: value for key, value in card.items() if key != "name"}))


def _entries(values: Mapping[str, Any]) -> list[str]:
    shown = {key: _in_words(value) for key, value in values.items() if key != "_target_"}
    return [f"{key.replace('_', ' ')} {text}" for key, text in shown.items() if text]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        name, arguments = str(value.get("_target_", "")).rpartition(".")[2], ", ".join(_entries(value))
        return f"{name} ({arguments})" if name and arguments else name or arguments
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_in_words(entry) or 'none' for entry in value)}]"
    if isinstance(value, str):
        return _DIGEST.sub(lambda found: found[0][:8], value)
    return "" if value is None else str(value)


def listed(words: Sequence[str]) -> str:
    """Words as an enumeration: ``a, b and c``.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
