"""Metrics of the model itself, without samples: how likely it finds data, and how far its score is from the exact one."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scoreexp.app.evaluation.subject import Measured, Subject
from scoreexp.core.ranges import to_model, to_uint8, to_unit
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.diagnostics.likelihood import Likelihood, dequantise


def measure_likelihood(subject: Subject, metrics: Mapping[str, Any]) -> list[Measured]:
    """The values of metrics of log-densities, of images after dequantisation."""
    if not metrics:
        return []
    if subject.cfg.get("guidance"):
        reason = "a guided model is the score of no distribution, so it has no likelihood: leave guidance out"
        subject.unmeasured.update(dict.fromkeys(metrics, reason))
        return []
    likelihood = Likelihood(trace="rademacher" if subject.is_of_pictures else "exact")
    wanted = {metric.spec: metric() for metric in metrics.values()}
    values: dict[Any, list[Tensor]] = {spec: [] for spec in wanted}
    exact: list[Tensor] = []
    loader = subject.loader()
    for batch in _counted(loader):
        x, index = batch.x, batch.index.tolist()
        if hasattr(subject.data, "oracle"):
            exact.append(subject.data.oracle().log_prob(x.double(), torch.ones(len(x)), torch.zeros(len(x))))
        if subject.is_of_pictures:
            x = _dequantised(x, index, subject.seed)
        streams = ImageStreams([stream_seed(subject.seed, "likelihood", i) for i in index])
        cond = None if batch.cond is None else batch.cond.to(subject.device)
        result = likelihood(subject.model, x.to(subject.device), streams=streams, cond=cond)
        for spec, metric in wanted.items():
            values[spec].append(metric.per_sample(result.log_prob, x[0].numel()).cpu())
    caveat = "" if not exact else f"the exact distribution has {-float(torch.cat(exact).mean()):.4g}"
    found = []
    for spec, parts in values.items():
        card = subject.card(spec.name, loader, unit=spec.unit, trace=likelihood.trace)
        mean, n = float(torch.cat(parts).mean()), len(loader.dataset)
        found.append(Measured(spec.name, mean, spec.direction, n, spec.unit, card, caveat))
    return found


def measure_against_oracle(subject: Subject, metrics: Mapping[str, Any]) -> list[Measured]:
    """The values of metrics that need the exact distribution; those of data that have none are unmeasured."""
    found, n = [], max(2, subject.cfg.n)
    for name, metric in metrics.items():
        if not hasattr(subject.data, "oracle"):
            subject.unmeasured[name] = f"{name} needs data whose score is known, such as data=swiss_roll"
            continue
        oracle, device = subject.data.oracle(), subject.device
        try:
            measurements = metric()(subject.model, oracle, n=n, seed=subject.seed, device=device)
        except ValueError as error:  # a schedule that does not suit
            subject.unmeasured[name] = str(error)
            continue
        for one in measurements:
            direction, card = metric.spec.direction_of(one.name), {"name": one.name, **one.settings}
            found.append(Measured(one.name, one.value, direction, n, "exact score", card, one.caveat))
    return found


def _dequantised(x: Tensor, index: list[int], seed: int) -> Tensor:
    """Images rounded to 8 bits and dequantised; the noise of each is a function of its place."""
    levels = to_model(to_uint8(to_unit(x)).float() / 255)
    draws = [generator(seed, "dequantise", i) for i in index]
    return torch.cat([dequantise(one[None], draw) for one, draw in zip(levels, draws, strict=True)])


def _counted(batches: Any) -> Iterator[Any]:
    """The batches, with a word on each but the first, because a likelihood has no number of steps."""
    for done, batch in enumerate(batches):
        if done:
            sys.stderr.write(f"likelihood  batch {done + 1}/{len(batches)}\n")
        yield batch
