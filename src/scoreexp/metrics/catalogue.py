"""The metrics that are found by name: the one list of them, and what is said of a logged value.

A metric says of itself what it is in ``spec``, a ``MetricSpec`` in the body of its class. Reports read it from the source
text, without importing the class, for that would import torch.
"""

import ast
import re
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scoreexp.core.construct import locate
from scoreexp.core.errors import UserError
from scoreexp.metrics.spec import Kind, MetricSpec

METRICS: tuple[str, ...] = (
    "scoreexp.metrics.picture_metrics.SSIM",
    "scoreexp.metrics.picture_metrics.GlobalSSIM",
    "scoreexp.metrics.picture_metrics.MSSSIM",
    "scoreexp.metrics.picture_metrics.PSNR",
    "scoreexp.metrics.picture_metrics.MSE",
    "scoreexp.metrics.sample_metrics.FrechetDistance",
    "scoreexp.metrics.sample_metrics.KernelDistance",
    "scoreexp.metrics.sample_metrics.PrecisionRecall",
    "scoreexp.metrics.sample_metrics.SlicedWasserstein",
    "scoreexp.metrics.set_metrics.SlicedWassersteinOfPoints",
    "scoreexp.metrics.set_metrics.MMD",
    "scoreexp.metrics.score_error.ScoreError",
    "scoreexp.metrics.set_metrics.NearestNeighbour",
    "scoreexp.metrics.minority.MinorityScore",
    "scoreexp.metrics.likelihood_metrics.BitsPerDim",
    "scoreexp.metrics.likelihood_metrics.NLL",
)  # in the order of tables

_MEASURED_ON = r"(_confirmed|_(\w+_)?[\d.]+k?)?"  # what follows a name: random_conv_500, 5k, a noise level


def specs(kind: Kind | None = None) -> tuple[MetricSpec, ...]:
    """What the metrics say of themselves, in the order of ``METRICS``; those for one kind of samples, or all.

    >>> [spec.name for spec in specs("points")]
    ['sliced_wasserstein', 'mmd', 'score_error', 'nearest_neighbour', 'minority_score', 'nll']
    """
    return tuple(spec for spec in map(_spec_in_source, METRICS) if kind is None or kind in spec.kinds)


def spec_of(logged: str) -> MetricSpec | None:
    """What is said of a logged value; None where no metric has that name.

    >>> [spec_of(name).direction for name in ("val/ssim_confirmed", "best/psnr", "fid_inception_50k", "recall_pixels8_500")]
    ['higher', 'higher', 'lower', 'higher']
    >>> spec_of("train/loss")

    Args:
        logged: such as ``val/ssim``, ``best/ssim``, ``frechet_random_conv_500``, ``val/score_error_0.1``.

    Returns:
        The metric's spec, with name, title and direction of the value: ``recall`` of precision_recall, ``fid`` of frechet.
    """
    name = logged.rpartition("/")[2]
    found = {
        value: spec
        for spec in reversed(specs())  # of two with one name the first
        for value in (*spec.value_names, spec.name, *filter(None, [spec.published]))
        if re.fullmatch(re.escape(value) + _MEASURED_ON, name)
    }
    if not found:
        return None
    value = max(found, key=len)
    spec = found[value]
    title = (spec.title if value == spec.name else "") or value.replace("_", " ")
    return replace(spec, name=value, title=title, direction=spec.direction_of(value), values=())


def metric_named(name: str, kind: Kind) -> Any:
    """The class of a metric: of one for this kind of samples by its name, or any by its dotted name.

    >>> metric_named("fid", "pictures").__name__
    'FrechetDistance'

    Raises:
        KeyError: no metric for such samples has that name.
        UserError: a dotted name leads to no metric for such samples.
    """
    if "." in name:
        return _located(name, kind)
    for target, spec in zip(METRICS, specs(), strict=True):
        if kind in spec.kinds and name in (spec.name, spec.published):
            return locate(target)
    raise KeyError(name)


def _located(name: str, kind: Kind) -> Any:
    try:
        found = locate(name)
    except ImportError as error:
        raise UserError(f"metric {name} cannot be imported ({error}): give MODULE.CLASS") from error
    spec = getattr(found, "spec", None)
    if not isinstance(spec, MetricSpec) or kind not in spec.kinds:
        raise UserError(
            f"{name} is not a metric of {kind}: give a class with a MetricSpec of such as its spec"
        )
    return found


@cache
def _spec_in_source(target: str) -> MetricSpec:
    module, _, name = target.rpartition(".")
    bodies = (
        node.body for node in _statements(module) if isinstance(node, ast.ClassDef) and node.name == name
    )
    for node in next(bodies, []):
        match node:
            case ast.Assign(targets=[ast.Name("spec")], value=ast.Call(args=args, keywords=keywords)):
                named = {str(word.arg): ast.literal_eval(word.value) for word in keywords}
                return MetricSpec(*map(ast.literal_eval, args), **named)
    raise TypeError(
        f"{target} is in METRICS, but has no spec: write spec = MetricSpec(...) into the body of the class"
    )


@cache
def _statements(module: str) -> list[ast.stmt]:
    found = find_spec(module)
    return ast.parse(Path(str(found and found.origin)).read_text(encoding="utf-8")).body
