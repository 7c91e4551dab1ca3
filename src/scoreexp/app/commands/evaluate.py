"""Measure a trained model: how it denoises, how likely it finds the data, and how far its samples are from them."""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from scoreexp.app.composition import shell_command
from scoreexp.app.config_check import check_config
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import own_sigma, require_reachable, sampler_settings
from scoreexp.app.signatures import suggest
from scoreexp.app.terminal import say
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_model, to_uint8, to_unit
from scoreexp.core.streams import ImageStreams, generator, stream_seed
from scoreexp.data import DataModule
from scoreexp.denoisers.denoiser import Denoiser
from scoreexp.diagnostics.likelihood import Likelihood, dequantise
from scoreexp.figures.images import image_grid, save_pixels
from scoreexp.figures.points import scatter
from scoreexp.lit.callbacks import PointsMonitor
from scoreexp.lit.callbacks.distribution_monitor import (
    GRID,
    SAMPLE_METRICS,
    TooFewPicturesError,
    data_recipe,
    real_samples,
    reference_of,
)
from scoreexp.metrics import (
    MSE,
    MSSSIM,
    PSNR,
    SSIM,
    FeatureExtractor,
    GlobalSSIM,
    InceptionFeatures,
    MissingWeightsError,
    PictureMetric,
    PixelFeatures,
    SampleMetric,
    gaussian_kernel,
    median,
    median_distance,
    memorisation,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
    split_images,
)
from scoreexp.metrics.card import library_versions
from scoreexp.restorers import BySampling
from scoreexp.restorers.denoising import denoise_observed, observe
from scoreexp.runs.directory import git_revision, new_folder, shown
from scoreexp.runs.model import load, require_trusted
from scoreexp.samplers import Sampler, draw, labels_for
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import read_json, write_json

DENOISING: dict[str, type[PictureMetric]] = {
    "ssim": SSIM,
    "ssim_global": GlobalSSIM,
    "ms_ssim": MSSSIM,
    "psnr": PSNR,
    "mse": MSE,
}
OF_INCEPTION = {"fid": "frechet", "kid": "kernel"}
OF_PICTURES = (*DENOISING, *OF_INCEPTION, *SAMPLE_METRICS, "nearest_neighbour", "bits_per_dim")
OF_POINTS = ("sliced_wasserstein", "mmd", "score_error", "nearest_neighbour", "nll")
CONVENTION = "values in [0, 1], predictions clamped, all colour channels alike, mean over pictures"
SCORE_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # noise levels, data units
NEIGHBOUR_SIDE = 32  # pixels a side by which generated and training pictures are compared


class Measured(NamedTuple):
    """A value, what it is a value of, and what a reader must know.

    Attributes:
        name: of the metric.
        value: the number.
        n: samples that it was measured on.
        by: what was compared: the features, or the unit.
        card: all that must agree for two values to be comparable.
        caveat: empty if there is none.
    """

    name: str
    value: float
    n: int
    by: str
    card: dict[str, Any]
    caveat: str = ""


@dataclass(frozen=True)
class Subject:
    """What is measured, on which data, and how.

    Attributes:
        model: the denoiser.
        data: of the run, or others of the same shape.
        sampler: how is denoised and drawn.
        how: the sampler's configuration.
        device: of the model.
        cfg: the command's configuration.
        unmeasured: metrics that these data or this machine do not allow, and why.
    """

    model: Denoiser
    data: DataModule
    sampler: Sampler
    how: Mapping[str, Any]
    device: torch.device
    cfg: DictConfig
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """That of the run: observations are the ones its evaluations denoised."""
        return int(self.model.record.get("config", {}).get("seed", 0))

    @property
    def is_of_pictures(self) -> bool:
        return isinstance(kind_of(self.data.event_shape), Images)

    @property
    def sampler_name(self) -> str:
        return str(self.how["_target_"]).rpartition(".")[2]


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Measure the model of ``cfg.ckpt``, see ``conf/evaluate.yaml``; returns the values by name.

    Writes ``evaluation.json`` and, for metrics of generated samples, the samples.
    """
    started = time.perf_counter()
    device = choose_device(cfg.device)
    model = load(cfg.ckpt, weights=cfg.weights, device=str(device), trust=tuple(cfg.trust))
    shape = model.event_shape
    if shape is None or kind_of(shape) is None:
        raise UserError(
            f"{cfg.ckpt} models samples of shape {shape}, neither pictures nor points: give another checkpoint"
        )
    given = None if cfg.metrics is None else [str(name) for name in cfg.metrics]
    if given is not None:
        _require_known(given, shape)
    how = sampler_settings(cfg, model.record)
    subject = Subject(model, _data(cfg, model.record, shape), instantiate(how), how, device, cfg)
    names = given if given is not None else _usual(subject)
    collectors = _collectors(subject, names)
    file, folder = _places(cfg)
    with new_folder(file.parent, "give out=DIR"):
        measured = _denoising(subject, [name for name in names if name in DENOISING])
        measured += _likelihood(subject, names)
        if "score_error" in names:
            measured += _score_error(subject)
        nfe = None
        if any(_needs_samples(name) for name in names if name not in subject.unmeasured):
            samples, nfe = _draw(subject)
            _write_samples(subject, samples, folder)
            measured += _distances(subject, names, collectors, samples, nfe, folder)
        if not measured:
            raise UserError("; ".join(_by_reason(subject.unmeasured)))
        _write(subject, file, measured, nfe, time.perf_counter() - started)
    _say_table(measured)
    for reason, without in _by_reason(subject.unmeasured).items():
        say(f"not measured   {', '.join(without)}: {reason}")
    if nfe is not None:
        say(f"samples        {shown(folder)} ({cfg.n}, {nfe} network evaluations each)")
    say(f"values         {shown(file)}")
    return {item.name: item.value for item in measured}


def _distances(
    subject: Subject,
    names: Sequence[str],
    collectors: Sequence[SampleMetric],
    samples: Tensor,
    nfe: int,
    folder: Path,
) -> list[Measured]:
    """The metrics of generated samples."""
    cfg, found = subject.cfg, []
    for collector in collectors:
        for i, images in enumerate(samples.split(cfg.batch_size)):
            collector.update(images, index=i * cfg.batch_size + torch.arange(len(images)))
        for value in collector.results():
            card = {key: item for key, item in value.card.to_dict().items() if key != "versions"}
            by = collector.extractor.name
            found.append(Measured(value.name, value.value, cfg.n, by, card, value.caveat))
    if not subject.is_of_pictures:
        found += _distances_of_points(subject, names, samples)
    if "nearest_neighbour" in names:
        found += _nearest_neighbours(subject, samples, folder)
    drawn = {"sampler": subject.how, "nfe": nfe}
    by = f"{subject.sampler_name}, {nfe} evaluations"
    return [item._replace(by=f"{item.by}, {by}", card=item.card | drawn) for item in found]


def _by_reason(unmeasured: Mapping[str, str]) -> dict[str, list[str]]:
    """The metrics that each reason keeps from being measured."""
    found: dict[str, list[str]] = {}
    for name, reason in unmeasured.items():
        found.setdefault(reason, []).append(name)
    return found


# ------------------------------------------------------------------------------------------------ what is asked


def _require_known(names: Sequence[str], shape: tuple[int, ...]) -> None:
    """Refuse metrics that do not exist, or not for samples of this shape."""
    allowed, kind = (OF_PICTURES, "pictures") if isinstance(kind_of(shape), Images) else (OF_POINTS, "points")
    for name in names:
        if name not in allowed:
            raise UserError(
                f"{name} is not a metric of {kind}{suggest(name, allowed)} (metrics: {', '.join(allowed)})"
            )
    if not names:
        raise UserError(f"metrics=[] asks for nothing: give some of {', '.join(allowed)}")


def _usual(subject: Subject) -> list[str]:
    """The metrics of ``metrics=null``."""
    if not subject.is_of_pictures:
        exact = ["score_error"] if hasattr(subject.data, "oracle") else []
        return ["sliced_wasserstein", "mmd", *exact]
    _, positions = real_samples(subject.data, subject.cfg.reference, subject.cfg.reference_n)
    return ["ssim", "ssim_global", "psnr", "mse"] + (["frechet", "kernel"] if len(positions) > 1 else [])


def _needs_samples(name: str) -> bool:
    return name not in DENOISING and name not in ("bits_per_dim", "nll", "score_error")


def _data(cfg: DictConfig, record: Mapping[str, Any], shape: Sequence[int]) -> DataModule:
    """The data of ``cfg``: those of the run, with the keys that ``cfg.data`` changes, or others.

    Raises:
        UserError: their configuration is wrong, or their samples have another shape than the model's.
    """
    given: Any = OmegaConf.to_container(cfg.data, resolve=True) if cfg.get("data") else {}
    node = given
    if "_target_" not in given:
        own = record.get("config", {}).get("data")
        if not own:
            raise UserError(f"{cfg.ckpt} does not say what it was trained on: give data=NAME")
        require_trusted(own, "data", {"scoreexp.data", *cfg.trust})
        node = {**own, **given}
    node = {"seed": cfg.seed, **node, "batch_size": cfg.batch_size}
    if problems := check_config({"data": node}, schema={"data": "Node"}):
        raise UserError(problems[0])
    data: DataModule = instantiate(node)
    if list(data.event_shape) != list(shape):
        raise UserError(
            f"the data have samples of shape {list(data.event_shape)}, the model {list(shape)}: "
            "give the data that it was trained on, or of the same shape"
        )
    return data


def _sigma(subject: Subject) -> float:
    """The noise level that is denoised: that of ``cfg``, or of the run's own evaluations.

    Raises:
        UserError: neither has one, or the model cannot denoise it.
    """
    sigma = subject.cfg.sigma
    if sigma is None:
        sigma = own_sigma(subject.model.record)
    if sigma is None:
        raise UserError("the run denoised no pictures, so it has no noise level of its own: give sigma=0.5")
    require_reachable(subject.sampler, subject.model.schedule, float(sigma))
    return float(sigma)


def _places(cfg: DictConfig) -> tuple[Path, Path]:
    """The file of the values, and a folder for samples."""
    if cfg.out is not None:
        home = Path(cfg.out).expanduser()
        if home.exists() and (not home.is_dir() or any(home.iterdir())):
            raise UserError(f"out={cfg.out} is not an empty folder: give a new one")
        folder = home / "samples"
    else:
        beside = Path(cfg.ckpt).expanduser().resolve().parent
        home = beside.parent if beside.name == "checkpoints" else beside
        folder = home / "evaluations" / time.strftime("%Y-%m-%d_%H-%M-%S")
    return home / "evaluation.json", folder


# ---------------------------------------------------------------------------------------- denoising, likelihood


def _batches(subject: Subject) -> Any:
    """The loader of the split that is denoised, whose samples are those that training evaluates."""
    data = subject.data
    return data.val_dataloader() if subject.cfg.split == "val" else data.test_dataloader()


def _card(subject: Subject, name: str, loader: Any, **settings: Any) -> dict[str, Any]:
    samples = loader.dataset
    return {
        "name": name,
        "n": len(samples),
        "split": subject.cfg.split,
        "recipe": data_recipe(subject.data, samples.split, samples.positions),
        **settings,
    }


def _denoising(subject: Subject, names: Sequence[str]) -> list[Measured]:
    """The metrics of a run's own evaluations, on the same noisy pictures."""
    if not names:
        return []
    cfg, model, sigma = subject.cfg, subject.model, _sigma(subject)
    metrics = {name: DENOISING[name]().to(subject.device) for name in dict.fromkeys(names)}
    loader, nfe = _batches(subject), 0
    with StepProgress("denoising", len(loader)) as progress:
        restorer = BySampling(subject.sampler)
        for done, batch in enumerate(loader):
            progress.part_done(done, len(loader))
            x, index = batch.x.to(subject.device), batch.index
            observation = observe(x, index, sigma, subject.seed)
            cond = None if batch.cond is None else batch.cond.to(subject.device)
            result = denoise_observed(
                restorer, model, observation, index, subject.seed, cond=cond, callback=progress.step
            )
            denoised, nfe = to_unit(result.x).clamp(0, 1), result.nfe
            for name, metric in list(metrics.items()):
                try:
                    metric.update(denoised, to_unit(x))
                except ValueError as error:  # too small for it
                    subject.unmeasured[name] = str(error)
                    del metrics[name]
    settings = {"sigma": sigma, "noise_seed": subject.seed, "convention": CONVENTION}
    settings |= {"sampler": subject.how, "nfe": nfe}
    memorised = cfg.split == "val" and subject.data.validate_on == "train"
    caveat = "on the pictures that were trained on" if memorised else ""
    by = f"pixels, sigma {sigma:g}, {subject.sampler_name}, {nfe} evaluations"
    return [
        Measured(
            name,
            float(metric.compute()),
            len(loader.dataset),
            by,
            _card(subject, name, loader, **settings),
            caveat,
        )
        for name, metric in metrics.items()
    ]


def _likelihood(subject: Subject, names: Sequence[str]) -> list[Measured]:
    """``bits_per_dim`` of pictures or ``nll`` of points, if asked for."""
    name = next((name for name in ("bits_per_dim", "nll") if name in names), None)
    if name is None:
        return []
    likelihood = Likelihood(trace="rademacher" if subject.is_of_pictures else "exact")
    values: list[Tensor] = []
    exact: list[Tensor] = []
    loader = _batches(subject)
    for batch in _counted(loader, "likelihood"):
        x, index = batch.x, batch.index.tolist()
        if hasattr(subject.data, "oracle"):
            exact.append(subject.data.oracle().log_prob(x.double(), torch.ones(len(x)), torch.zeros(len(x))))
        if subject.is_of_pictures:
            levels = to_model(to_uint8(to_unit(x)).float() / 255)
            draws = [generator(subject.seed, "dequantise", i) for i in index]
            x = torch.cat([dequantise(one[None], draw) for one, draw in zip(levels, draws, strict=True)])
        streams = ImageStreams([stream_seed(subject.seed, "likelihood", i) for i in index])
        cond = None if batch.cond is None else batch.cond.to(subject.device)
        result = likelihood(subject.model, x.to(subject.device), streams=streams, cond=cond)
        values.append((result.bits_per_dim() if subject.is_of_pictures else -result.log_prob).cpu())
    caveat = "" if not exact else f"the exact distribution has {-float(torch.cat(exact).mean()):.4g}"
    unit = "8-bit values" if subject.is_of_pictures else "nats"
    card = _card(subject, name, loader, unit=unit, trace=likelihood.trace)
    return [Measured(name, float(torch.cat(values).mean()), len(loader.dataset), unit, card, caveat)]


# --------------------------------------------------------------------------------------------- generated samples


def _collectors(subject: Subject, names: Sequence[str]) -> list[SampleMetric]:
    """The metrics of sets of pictures with their references, made before anything is drawn."""
    if not subject.is_of_pictures:
        return []
    cfg = subject.cfg
    wanted: dict[str, tuple[FeatureExtractor, list[str]]] = {}
    chosen = [name for name in dict.fromkeys(names) if name in OF_INCEPTION or name in SAMPLE_METRICS]
    for name in chosen:
        try:
            extractor = _extractor(subject, name)
        except UserError as error:
            subject.unmeasured[name] = str(error)
            continue
        kinds = wanted.setdefault(extractor.digest, (extractor, []))[1]
        if OF_INCEPTION.get(name, name) not in kinds:
            kinds.append(OF_INCEPTION.get(name, name))
    found = []
    for extractor, kinds in wanted.values():
        keep = any(kind != "frechet" for kind in kinds)
        try:
            reference = reference_of(
                subject.data, extractor.to(subject.device), cfg.reference, cfg.reference_n, keep_features=keep
            )
        except TooFewPicturesError as error:
            subject.unmeasured.update(dict.fromkeys(chosen, str(error)))
            return []
        found += [SAMPLE_METRICS[kind](extractor, reference, cfg.n) for kind in kinds]
    return found


def _extractor(subject: Subject, name: str) -> FeatureExtractor:
    features, n = subject.cfg.features, subject.cfg.n
    is_inception = str(features._target_).endswith("InceptionFeatures")
    try:
        if name in OF_INCEPTION and not is_inception:
            return InceptionFeatures()
        return instantiate(features, _partial_=True)()  # Hydra would wrap the error of a plain call
    except MissingWeightsError as error:
        other = OF_INCEPTION.get(name, name)
        raise UserError(
            f"metric {name}: {error}; that is features=inception features.path=FILE, or "
            f"metrics=[{other}] features=random_conv, which gives {other}_random_conv_{n}"
        ) from error


def _draw(subject: Subject) -> tuple[Tensor, int]:
    """Generated samples ``[n, *]``, pictures as 8-bit values, and the evaluations of the network for each."""
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
    return torch.cat(drawn), nfe


def _write_samples(subject: Subject, samples: Tensor, folder: Path) -> None:
    """``samples.npz`` (pictures ``[N, H, W, C]`` uint8, points ``[N, D]`` float32), an overview, and each picture."""
    folder.mkdir(parents=True, exist_ok=True)
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


def _real_points(subject: Subject) -> tuple[Tensor, dict[str, Any]]:
    cfg = subject.cfg
    split, positions = real_samples(subject.data, cfg.reference, cfg.reference_n)
    card = {
        "n_generated": cfg.n,
        "n_reference": len(positions),
        "split": cfg.reference,
        "recipe": data_recipe(subject.data, split, positions),
    }
    return split.samples(positions), card


def _distances_of_points(subject: Subject, names: Sequence[str], samples: Tensor) -> list[Measured]:
    real, card = _real_points(subject)
    n, found = len(samples), []
    if "sliced_wasserstein" in names:
        name = f"sliced_wasserstein_{n}"
        floor = ""
        if len(real) >= 2 * n:
            between = float(sliced_wasserstein(real[:n], real[n:]))
            floor = f"{n} of the real points have {between:.4g} from the others"
        value = float(sliced_wasserstein(samples, real))
        settings = {"name": name, **card, "settings": "128 lines, p = 2"}
        found.append(Measured(name, value, n, "points", settings, floor))
    if "mmd" in names:
        name, width = f"mmd_{n}", median_distance(real[::2], real[1::2])
        value = float(mmd(samples, real, kernel=gaussian_kernel(width)))
        settings = {"name": name, **card, "settings": f"unbiased, Gaussian kernel of width {width:.4g}"}
        found.append(Measured(name, value, n, "points", settings, "a squared distance; may be negative"))
    return found


def _score_error(subject: Subject) -> list[Measured]:
    """The relative squared error of the score against the exact one, as training logs it; empty where none is known."""
    if not hasattr(subject.data, "oracle"):
        subject.unmeasured["score_error"] = (
            "score_error needs data whose score is known, such as data=swiss_roll"
        )
        return []
    low, high = subject.model.schedule.sigma_range
    levels = tuple(level for level in SCORE_LEVELS if low <= level <= high)
    monitor = PointsMonitor(
        sampler=subject.sampler, folder="", samples=max(2, subject.cfg.n), levels=levels, seed=subject.seed
    )
    values, _ = monitor.measure(subject.model, subject.data, subject.device)
    card = {"name": "score_error", "n": monitor.samples, "levels": list(levels), "noise_seed": subject.seed}
    caveat = "0 is exact, 1 no better than predicting 0"
    return [Measured("score_error", values["score_error"], monitor.samples, "exact score", card, caveat)]


def _nearest_neighbours(subject: Subject, samples: Tensor, folder: Path) -> list[Measured]:
    """Are generated samples copies of those trained on?"""
    data, n = subject.data, len(samples)
    split, positions = real_samples(data, "train", None)
    if subject.is_of_pictures:
        pixels = PixelFeatures(min(NEIGHBOUR_SIDE, *data.event_shape[1:])).to(subject.device)
        by = pixels.name
        real = torch.cat([pixels(part) for part in split_images(split, positions)]).cpu()
        generated = torch.cat([pixels(part) for part in samples.split(250)]).cpu()
    else:
        by, real, generated = "points", split.samples(positions), samples
    card = {
        "n_generated": n,
        "n_reference": len(real),
        "split": "train",
        "recipe": data_recipe(data, split, positions),
        "compared_by": by,
    }
    near = nearest_neighbours(generated, real)
    distance = float(median(near.distance))
    name = f"nearest_neighbour_{by}_{n}"
    found = [Measured(name, distance, n, by, {"name": name, **card}, "median distance to the training set")]
    if len(real) > 1:
        name = f"memorised_share_{by}_{n}"
        share = float(memorisation(generated, real).share)
        what = "those three times nearer to one training sample than to any other"
        found.append(Measured(name, share, n, by, {"name": name, **card}, what))
    if subject.is_of_pictures:
        few = slice(0, GRID // 4)
        originals = to_unit(split.samples(positions[near.position[few, 0].numpy()])).clamp(0, 1)
        pairs = torch.cat([samples[few].float() / 255, originals], dim=2)
        image_grid(pairs, folder / "nearest.png", "generated, and below it the nearest training picture")
    return found


# ----------------------------------------------------------------------------------------------------- reporting


def _write(
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
        "sampler": subject.how,
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


def _say_table(measured: Sequence[Measured]) -> None:
    """A line per value, and below it what a reader must know."""
    rows = [("metric", "value", "better", "n", "compared by")] + [
        (item.name, f"{item.value:.5g}", _better(item.name), str(item.n), item.by) for item in measured
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row, caveat in zip(rows, ["", *(item.caveat for item in measured)], strict=True):
        cells = (row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:])), row[4])
        say("  ".join(cells).rstrip())
        if caveat:
            say(f"    note: {caveat}")


def _better(name: str) -> str:
    if name.startswith("nearest_neighbour"):
        return "-"
    kind = "precision_recall" if name.startswith(("precision_", "recall_")) else name
    metric = DENOISING.get(kind) or SAMPLE_METRICS.get(kind)
    return "higher" if metric is not None and metric.higher_is_better else "lower"


def _counted(batches: Any, what: str) -> Iterator[Any]:
    """The batches, with a word on each but the first, because a likelihood has no number of steps."""
    for done, batch in enumerate(batches):
        if done:
            sys.stderr.write(f"{what}  batch {done + 1}/{len(batches)}\n")
        yield batch
