"""Metrics of denoised images: those of a run's own evaluations, on the same noisy images."""

from collections.abc import Mapping
from typing import Any

from scoreexp.app.evaluation.subject import Measured, Subject
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import own_sigma, require_reachable
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_unit
from scoreexp.restorers import BySampling
from scoreexp.restorers.denoising import denoise_observed, observe

CONVENTION = "values in [0, 1], predictions clamped, all colour channels alike, mean over images"


def measure_denoised(subject: Subject, metrics: Mapping[str, Any]) -> list[Measured]:
    """The values of metrics that need pairs, given by the names that they were asked for by."""
    if not metrics:
        return []
    sigma = _sigma(subject)
    collectors = {name: metric().to(subject.device) for name, metric in metrics.items()}
    nfe = _denoise(subject, sigma, collectors)
    loader = subject.loader()
    settings = {"sigma": sigma, "noise_seed": subject.seed, "convention": CONVENTION}
    settings |= {**subject.settings, "nfe": nfe}
    memorised = subject.cfg.split == "val" and subject.data.validate_on == "train"
    caveat = "on the images that were trained on" if memorised else ""
    by = f"pixels, sigma {sigma:g}, {subject.sampler_name}, {nfe} evaluations"
    found = []
    for collector in collectors.values():
        name, direction = collector.spec.name, collector.spec.direction
        card = subject.card(name, loader, **settings)
        n = len(loader.dataset)
        found.append(Measured(name, float(collector.compute()), direction, n, by, card, caveat))
    return found


def _denoise(subject: Subject, sigma: float, collectors: dict[str, Any]) -> int:
    """Denoise all images and count them; returns the evaluations for each. Drops collectors that refuse them."""
    loader, nfe = subject.loader(), 0
    with StepProgress("denoising", len(loader)) as progress:
        restorer = BySampling(subject.sampler)
        for done, batch in enumerate(loader):
            progress.part_done(done, len(loader))
            x, index = batch.x.to(subject.device), batch.index
            observation = observe(x, index, sigma, subject.seed)
            cond = None if batch.cond is None else batch.cond.to(subject.device)
            result = denoise_observed(
                restorer, subject.model, observation, index, subject.seed, cond=cond, callback=progress.step
            )
            denoised, nfe = to_unit(result.x).clamp(0, 1), result.nfe
            for name, collector in list(collectors.items()):
                try:
                    collector.update(denoised, to_unit(x))
                except ValueError as error:  # too small for it
                    subject.unmeasured[name] = str(error)
                    del collectors[name]
    return nfe


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
