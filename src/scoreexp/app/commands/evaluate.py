"""Measure a trained model: how it denoises, how likely it finds the data, and how far its samples are from them."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from scoreexp.app.evaluation import results
from scoreexp.app.evaluation.of_denoised import measure_denoised, own_task
from scoreexp.app.evaluation.of_model import measure_against_oracle, measure_likelihood
from scoreexp.app.evaluation.of_samples import (
    collectors_of,
    generate,
    measure_by_model,
    measure_copies,
    measure_pictures,
    measure_points,
)
from scoreexp.app.evaluation.subject import Subject
from scoreexp.app.run_data import data_of_run
from scoreexp.app.run_settings import guided, sampler_settings
from scoreexp.app.signatures import suggest
from scoreexp.app.terminal import say
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.metrics.catalogue import metric_named, specs
from scoreexp.metrics.real_samples import real_samples
from scoreexp.metrics.spec import Kind, MetricSpec, Needs
from scoreexp.runs.directory import ANOTHER, dated_folder, empty_folder, home_of, new_folder, shown
from scoreexp.runs.model import load
from scoreexp.system.devices import choose_device

NEED_THE_MEAN: tuple[Needs, ...] = ("pairs", "likelihood", "oracle", "model")


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Measure the model of ``cfg.ckpt``, see ``conf/evaluate.yaml``; returns the values by name.

    Writes ``evaluation.json`` and, for metrics of generated samples, the samples.
    """
    started = time.perf_counter()
    device = choose_device(cfg.device)
    model, kind = _model(cfg, device)
    given = None if cfg.metrics is None else _asked([str(name) for name in cfg.metrics], kind)
    subject = _subject(cfg, model, device)
    metrics = given if given is not None else _asked(_usual(subject), kind)

    def needing(needs: Needs) -> dict[str, Any]:
        return {name: metric for name, metric in metrics.items() if metric.spec.needs == needs}

    if model.latent_channels:  # what it is asked for itself, not its samples
        asked = [name for name, metric in metrics.items() if metric.spec.needs in NEED_THE_MEAN]
        reason = "the model draws x_0 and has no posterior mean"
        subject.unmeasured.update(dict.fromkeys(asked, reason))
        metrics = {name: metric for name, metric in metrics.items() if name not in asked}
    if own_task(model.record) is not None:
        asked = [name for name, metric in metrics.items() if metric.spec.needs != "pairs"]
        reason = "the model restores observations and is the score of no images of its own"
        subject.unmeasured.update(dict.fromkeys(asked, reason))
        metrics = {name: metric for name, metric in metrics.items() if name not in asked}
    collectors = collectors_of(subject, needing("pictures"))
    generated = None
    with contextlib.ExitStack() as folders:
        home = home_of(cfg.ckpt) if cfg.out is None else folders.enter_context(empty_folder(cfg.out))
        measured = measure_denoised(subject, needing("pairs"))
        measured += measure_likelihood(subject, needing("likelihood"))
        measured += measure_against_oracle(subject, needing("oracle"))
        if collectors or needing("points") or needing("training set") or needing("model"):
            folder = home / "samples"
            if cfg.out is None:
                folder = folders.enter_context(dated_folder(home / "evaluations"))
            else:
                folders.enter_context(new_folder(folder, ANOTHER))
            generated = generate(subject, folder)
            measured += measure_pictures(subject, collectors, generated)
            measured += measure_points(subject, needing("points"), generated)
            measured += measure_copies(subject, needing("training set"), generated, folder)
            measured += measure_by_model(subject, needing("model"), generated)
        reasons = results.by_reason(subject.unmeasured)
        if not measured:
            raise UserError("; ".join(reasons))
        nfe = None if generated is None else generated.nfe
        file = home / "evaluation.json"
        results.write(subject, file, measured, nfe, time.perf_counter() - started)
    for line in results.table(measured):
        say(line)
    for reason, without in reasons.items():
        say(f"not measured   {', '.join(without)}: {reason}")
    if generated is not None:
        say(f"samples        {shown(folder)} ({cfg.n}, {nfe} network evaluations each)")
    say(f"values         {shown(file)}")
    return {item.name: item.value for item in measured}


# ------------------------------------------------------------------------------------------ what is measured


def _model(cfg: DictConfig, device: torch.device) -> tuple[Denoiser, Kind]:
    """The model of ``cfg.ckpt`` and the kind of its samples."""
    model = load(cfg.ckpt, weights=cfg.weights, device=str(device), trust=tuple(cfg.trust))
    kind = kind_of(model.event_shape)
    if kind is None:
        raise UserError(
            f"{cfg.ckpt} models samples of shape {model.event_shape}, neither images nor points: give another checkpoint"
        )
    if "spectrogram" in (model.record.get("config", {}).get("data") or {}):
        raise UserError(
            f"{cfg.ckpt} restores speech: its quality is given by restore with input=noisy.wav reference=clean.wav"
        )
    return model, "pictures" if isinstance(kind, Images) else "points"


def _subject(cfg: DictConfig, model: Denoiser, device: torch.device) -> Subject:
    """The model with guidance, sampler and data: the latter those of its run, or others."""
    how = sampler_settings(cfg, model.record)
    return Subject(guided(model, cfg), data_of_run(cfg, model), instantiate(how), how, device, cfg)


# ------------------------------------------------------------------------------------------------ what is asked


def _asked(names: Sequence[str], kind: Kind) -> dict[str, Any]:
    """The classes of the metrics that are asked for, each once; refuses those that do not exist, or not for this kind."""
    allowed = list(filter(None, (name for spec in specs(kind) for name in (spec.published, spec.name))))
    if not names:
        raise UserError(f"metrics=[] asks for nothing: give some of {', '.join(allowed)}")
    found = {}
    for name in names:
        try:
            found[name] = metric_named(name, kind)
        except KeyError:
            raise UserError(
                f"{name} is not a metric of {kind}{suggest(name, allowed)} (metrics: {', '.join(allowed)})"
            ) from None
    return found


def _usual(subject: Subject) -> list[str]:
    """The metrics of ``metrics=null``: the usual ones that these data allow."""

    def is_possible(spec: MetricSpec) -> bool:
        if spec.needs == "oracle":
            return hasattr(subject.data, "oracle")
        if spec.needs == "pictures":
            _, positions = real_samples(subject.data, subject.cfg.reference, subject.cfg.reference_n)
            return len(positions) > 1
        return True

    restores = own_task(subject.model.record) is not None
    usual = [spec for spec in specs(subject.kind) if spec.usual and (spec.needs == "pairs" or not restores)]
    return [spec.name for spec in usual if is_possible(spec)]
