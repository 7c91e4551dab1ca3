"""Metrics of restored images: those of a run's own evaluations, on the same observations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from scoreexp.app.evaluation.subject import Measured, Subject
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import own_sigma, require_reachable
from scoreexp.core.construct import construct
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model, to_unit
from scoreexp.observations import GaussianNoise, Identity, NoiseModel, Operator
from scoreexp.restorers import BySampling, Restorer
from scoreexp.restorers.denoising import denoise_observed, observe_through
from scoreexp.runs.model import require_trusted

CONVENTION = "values in [0, 1], predictions clamped, all colour channels alike, mean over images"


class Task(NamedTuple):
    """What is restored, and how.

    Attributes:
        operator: of the observation.
        noise: of the observation.
        restorer: how.
        card: what of these must agree for two values to be comparable.
        words: the same for a reader.
    """

    operator: Operator
    noise: NoiseModel
    restorer: Restorer
    card: dict[str, Any]
    words: str


def own_task(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Operator, noise and restorer of a run whose evaluations restored other observations than noisy images, or None.

    >>> own_task({"config": {"callbacks": {"monitor": {"sigma": 0.5}}}}) is None
    True
    """
    monitor = (record.get("config", {}).get("callbacks") or {}).get("monitor") or {}
    found = {key: monitor.get(key) for key in ("operator", "noise", "restorer")}
    return found if all(found.values()) else None


def measure_denoised(subject: Subject, metrics: Mapping[str, Any]) -> list[Measured]:
    """The values of metrics that need pairs, given by the names that they were asked for by."""
    if not metrics:
        return []
    task = _task(subject)
    collectors = {name: metric().to(subject.device) for name, metric in metrics.items()}
    nfe = _restore(subject, task, collectors)
    loader = subject.loader()
    settings = {**task.card, "noise_seed": subject.seed, "convention": CONVENTION, "nfe": nfe}
    memorised = subject.cfg.split == "val" and subject.data.validate_on == "train"
    caveat = "on the images that were trained on" if memorised else ""
    by = f"pixels, {task.words}, {nfe} evaluations"
    found = []
    for collector in collectors.values():
        name, direction = collector.spec.name, collector.spec.direction
        card = subject.card(name, loader, **settings)
        n = len(loader.dataset)
        found.append(Measured(name, float(collector.compute()), direction, n, by, card, caveat))
    return found


def _restore(subject: Subject, task: Task, collectors: dict[str, Any]) -> int:
    """Restore all images and count them; returns the evaluations for each. Drops collectors that refuse them."""
    loader, nfe = subject.loader(), 0
    with StepProgress("restoring", len(loader)) as progress:
        for done, batch in enumerate(loader):
            progress.part_done(done, len(loader))
            x, index = batch.x.to(subject.device), batch.index
            observation = observe_through(x, index, task.operator, task.noise, subject.seed)
            cond = None if batch.cond is None else batch.cond.to(subject.device)
            result = denoise_observed(
                task.restorer,
                subject.model,
                observation,
                index,
                subject.seed,
                cond=cond,
                callback=progress.step,
            )
            restored, nfe = to_unit(result.x), result.nfe
            for name, collector in list(collectors.items()):
                try:
                    collector.update(restored, to_unit(x))
                except ValueError as error:  # too small for it
                    subject.unmeasured[name] = str(error)
                    del collectors[name]
    return nfe


def _task(subject: Subject) -> Task:
    """By sampling from noisy images, or what the run's own evaluations restored.

    Raises:
        UserError: neither the command nor the run has a noise level, the model cannot denoise it, or the command gives one
            to a run of another task; the checkpoint names classes that are not trusted.
    """
    nodes = own_task(subject.model.record)
    if nodes is None:
        sigma = _sigma(subject)
        card = {"sigma": sigma, **subject.settings}
        words = f"sigma {sigma:g}, {subject.sampler_name}"
        noise = GaussianNoise(sigma_to_model(sigma))
        return Task(Identity(), noise, BySampling(subject.sampler), card, words)
    kinds = {key: str(node["_target_"]).rpartition(".")[2] for key, node in nodes.items()}
    words = f"{kinds['operator']} with {kinds['noise']}, {kinds['restorer']}"
    if subject.cfg.sigma is not None:
        raise UserError(f"sigma={subject.cfg.sigma:g}: this run restores {words}: leave sigma out")
    trusted = {"scoreexp.observations", "scoreexp.restorers", "scoreexp.samplers", *subject.cfg.trust}
    made = {}
    for key, node in nodes.items():
        require_trusted(node, f"callbacks.monitor.{key}", trusted)
        made[key] = construct(node, f"callbacks.monitor.{key}")
    return Task(card={"task": nodes}, words=words, **made)


def _sigma(subject: Subject) -> float:
    """The noise level that is denoised: that of ``cfg``, or of the run's own evaluations.

    Raises:
        UserError: neither has one, or the model cannot denoise it.
    """
    sigma = subject.cfg.sigma
    if sigma is None:
        sigma = own_sigma(subject.model.record)
    if sigma is None:
        raise UserError("the run denoised no images, so it has no noise level of its own: give sigma=0.5")
    require_reachable(subject.sampler, subject.model.schedule, float(sigma))
    return float(sigma)
