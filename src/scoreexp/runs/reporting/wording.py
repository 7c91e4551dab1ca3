"""How names and values are written on the page and in its tables."""

import math
from collections.abc import Sequence

from scoreexp.metrics.catalogue import spec_of
from scoreexp.runs.reporting.runs import Run
from scoreexp.runs.reporting.summary import quality_of

ABSENT = "–"
NOT_REACHED = "not reached"


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


def listed(words: Sequence[str]) -> str:
    """Words as an enumeration: ``a, b and c``.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
