"""Metrics of generated samples, and the samples themselves."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from scoreexp.app.evaluation.subject import Measured, Subject
from scoreexp.app.progress import StepProgress
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import to_model, to_uint8, to_unit
from scoreexp.data.split import Split
from scoreexp.figures.images import GRID, image_grid, save_pixels
from scoreexp.figures.points import scatter
from scoreexp.metrics import (
    FeatureExtractor,
    InceptionFeatures,
    MissingWeightsError,
    PixelFeatures,
    SampleMetric,
    nearest_neighbours,
    split_images,
)
from scoreexp.metrics.real_samples import TooFewPicturesError, data_recipe, real_samples, reference_of
from scoreexp.metrics.spec import Measurement, MetricSpec
from scoreexp.samplers import draw, knows_null_label, labels_for
from scoreexp.system.atomic import atomic_write

NEIGHBOUR_SIDE = 32  # pixels a side by which generated and training images are compared
PAIRS = GRID // 4  # of a generated image and the nearest one, in an overview


class Generated(NamedTuple):
    """Generated samples ``[n, *]``, images as 8-bit values, and the evaluations of the network for each."""

    samples: Tensor
    nfe: int


def generate(subject: Subject, folder: Path) -> Generated:
    """Draw ``cfg.n`` samples and write them into ``folder``."""
    cfg = subject.cfg
    seeds = range(cfg.first_seed, cfg.first_seed + cfg.n)
    batches = [seeds[i : i + cfg.batch_size] for i in range(0, cfg.n, cfg.batch_size)]
    drawn, nfe = [], 0
    with StepProgress("sampling", len(batches)) as progress:
        for done, batch in enumerate(batches):
            progress.part_done(done, len(batches))
            device = subject.device
            cond = labels_for(batch, subject.model.record, device=device)
            result = draw(
                subject.model, subject.sampler, batch, cond=cond, device=device, callback=progress.step
            )
            drawn.append((to_uint8(to_unit(result.x)) if subject.is_of_pictures else result.x).cpu())
            nfe = result.nfe
    generated = Generated(torch.cat(drawn), nfe)
    _write(subject, generated.samples, folder)
    return generated


def _write(subject: Subject, samples: Tensor, folder: Path) -> None:
    """``samples.npz`` (images ``[N, H, W, C]`` uint8, points ``[N, D]`` float32), an overview, and each image."""
    values = samples.movedim(1, -1) if subject.is_of_pictures else samples.float()
    first = subject.cfg.first_seed
    seeds = np.arange(first, first + len(samples))
    with atomic_write(folder / "samples.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, samples=values.numpy(), seeds=seeds)
    if subject.is_of_pictures:
        image_grid(samples[:GRID].float() / 255, folder / "grid.png")
        if subject.cfg.png:
            for seed, image in zip(seeds.tolist(), samples, strict=True):
                save_pixels(image.float() / 255, folder / f"seed_{seed:06d}.png")
    elif samples.shape[1] == 2:
        scatter(samples, folder / "points.png", title=f"{len(samples)} samples")


# ---------------------------------------------------------------------------------------- by features of images


def collectors_of(subject: Subject, metrics: Mapping[str, type[SampleMetric]]) -> list[SampleMetric]:
    """The metrics of sets of images with their references, made before anything is drawn."""
    by_extractor: dict[str, tuple[FeatureExtractor, list[type[SampleMetric]]]] = {}
    for name, metric in metrics.items():
        try:
            extractor = _extractor(subject, name, metric.spec)
        except UserError as error:
            subject.unmeasured[name] = str(error)
            continue
        wanted = by_extractor.setdefault(extractor.digest, (extractor, []))[1]
        if metric not in wanted:
            wanted.append(metric)
    cfg, found = subject.cfg, []
    for extractor, wanted in by_extractor.values():
        keep = any(metric.needs_features for metric in wanted)
        try:
            reference = reference_of(
                subject.data, extractor.to(subject.device), cfg.reference, cfg.reference_n, keep_features=keep
            )
        except TooFewPicturesError as error:
            subject.unmeasured.update(dict.fromkeys(metrics, str(error)))
            return []
        found += [metric(extractor, reference, cfg.n) for metric in wanted]
    return found


def _extractor(subject: Subject, name: str, spec: MetricSpec) -> FeatureExtractor:
    features, n = subject.cfg.features, subject.cfg.n
    is_inception = str(features._target_).endswith("InceptionFeatures")
    try:
        if name == spec.published and not is_inception:
            return InceptionFeatures()
        return instantiate(features, _partial_=True)()  # Hydra would wrap the error of a plain call
    except MissingWeightsError as error:
        other = spec.name
        raise UserError(
            f"metric {name}: {error}; that is features=inception features.path=FILE, or "
            f"metrics=[{other}] features=random_conv, which gives {other}_random_conv_{n}"
        ) from error


def measure_pictures(
    subject: Subject, collectors: Iterable[SampleMetric], generated: Generated
) -> list[Measured]:
    """The values of ``collectors_of``."""
    found, size, n = [], subject.cfg.batch_size, len(generated.samples)
    for collector in collectors:
        for i, images in enumerate(generated.samples.split(size)):
            collector.update(images, index=i * size + torch.arange(len(images)))
        for name, value in zip(collector.spec.value_names, collector.results(), strict=True):
            card = {key: item for key, item in value.card.to_dict().items() if key != "versions"}
            by, direction = collector.extractor.name, collector.spec.direction_of(name)
            found.append(Measured(value.name, value.value, direction, n, by, card, value.caveat))
    return _drawn(subject, found, generated.nfe)


# ------------------------------------------------------------------------------------------------ sample by sample


def measure_points(subject: Subject, metrics: Mapping[str, Any], generated: Generated) -> list[Measured]:
    """The values of metrics of generated points against those of ``cfg.reference``."""
    if not metrics:
        return []
    split, positions = real_samples(subject.data, subject.cfg.reference, subject.cfg.reference_n)
    real, n = split.samples(positions), len(generated.samples)
    card = _set_card(subject, subject.cfg.reference, split, positions, n)
    found = []
    for metric in metrics.values():
        values = metric()(generated.samples, real)
        found += [_of_set(metric.spec, value, f"{value.name}_{n}", n, "points", card) for value in values]
    return _drawn(subject, found, generated.nfe)


def measure_copies(
    subject: Subject, metrics: Mapping[str, Any], generated: Generated, folder: Path
) -> list[Measured]:
    """The values of metrics of generated samples against those trained on; of images also ``nearest.png``."""
    if not metrics:
        return []
    split, positions = real_samples(subject.data, "train", None)
    n = len(generated.samples)
    if subject.is_of_pictures:
        pixels = PixelFeatures(min(NEIGHBOUR_SIDE, *subject.data.event_shape[1:])).to(subject.device)
        by = pixels.name
        real = torch.cat([pixels(part) for part in split_images(split, positions)]).cpu()
        samples = torch.cat([pixels(part) for part in generated.samples.split(250)]).cpu()
        nearest = positions[nearest_neighbours(samples[:PAIRS], real).position[:, 0].numpy()]
        _draw_nearest(generated.samples[:PAIRS], split.samples(nearest), folder)
    else:
        by, real, samples = "points", split.samples(positions), generated.samples
    card = _set_card(subject, "train", split, positions, n) | {"compared_by": by}
    found = []
    for metric in metrics.values():
        values = metric()(samples, real)
        found += [_of_set(metric.spec, value, f"{value.name}_{by}_{n}", n, by, card) for value in values]
    return _drawn(subject, found, generated.nfe)


def measure_by_model(subject: Subject, metrics: Mapping[str, Any], generated: Generated) -> list[Measured]:
    """The values of what the model itself, without guidance, says of generated samples and of those of ``cfg.reference``."""
    if not metrics:
        return []
    record, n = subject.model.record, len(generated.samples)
    if record.get("num_classes") is not None and not knows_null_label(record):
        reason = "the model needs a class and was trained without label dropout"
        subject.unmeasured.update(dict.fromkeys(metrics, reason))
        return []
    split, positions = real_samples(subject.data, subject.cfg.reference, subject.cfg.reference_n)
    positions = positions[:n]
    samples = generated.samples
    if subject.is_of_pictures:
        samples = to_model(samples.float() / 255)
    card = _set_card(subject, subject.cfg.reference, split, positions, n)
    found = []
    for name, metric in metrics.items():
        try:
            values = metric()(subject.bare_model, samples, split.samples(positions), seed=subject.seed)
        except ValueError as error:  # a schedule that does not suit
            subject.unmeasured[name] = str(error)
            continue
        found += [_of_set(metric.spec, value, f"{value.name}_{n}", n, "the model", card) for value in values]
    return _drawn(subject, found, generated.nfe)


def _of_set(
    spec: MetricSpec, value: Measurement, name: str, n: int, by: str, card: Mapping[str, Any]
) -> Measured:
    whole = {"name": name, **card, **value.settings}
    return Measured(name, value.value, spec.direction_of(value.name), n, by, whole, value.caveat)


def _set_card(subject: Subject, name: str, split: Split, positions: np.ndarray, n: int) -> dict[str, Any]:
    return {
        "n_generated": n,
        "n_reference": len(positions),
        "split": name,
        "recipe": data_recipe(subject.data, split, positions),
    }


def _draw_nearest(images: Tensor, nearest: Tensor, folder: Path) -> None:
    originals = to_unit(nearest).clamp(0, 1)
    pairs = torch.cat([images.float() / 255, originals], dim=2)
    image_grid(pairs, folder / "nearest.png", "generated, and below it the nearest training image")


def _drawn(subject: Subject, measured: Sequence[Measured], nfe: int) -> list[Measured]:
    """The values, with how the samples were drawn."""
    drawn = {**subject.settings, "nfe": nfe}
    by = f"{subject.sampler_name}, {nfe} evaluations"
    return [item._replace(by=f"{item.by}, {by}", card=item.card | drawn) for item in measured]
