"""Denoise the user's own pictures: any size, depth and number of channels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from scoreexp.app.early_checks import require_input
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import (
    guided,
    nearest_level,
    own_sigma,
    require_reachable,
    sampler_settings,
)
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.construct import construct
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import sigma_to_model, to_uint8
from scoreexp.data.image_io import (
    WRITABLE,
    Picture,
    check_writable,
    few_bits,
    list_images,
    read_image,
    write_image,
)
from scoreexp.denoisers import DenoiserBase
from scoreexp.guidance.base import LabelGuidance
from scoreexp.observations import GaussianNoise
from scoreexp.observations.noise.level import estimate_sigma
from scoreexp.restorers import BySampling, Restorer
from scoreexp.restorers.images import Tiles, restore_pixels
from scoreexp.runs.directory import shown
from scoreexp.runs.model import load
from scoreexp.samplers import label_of_observed, sampler_of_one_level
from scoreexp.samplers.labels import Label
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device

GIF_STATES = 24  # between the first and the last, where their number is not given
GIF_FRAME, GIF_LAST = 100, 1500  # milliseconds
MAX_NAMED = 3  # files in the last line about those that failed


class Denoised(NamedTuple):
    """One picture's way through the command: files, noise level in [0, 1] units, and an error if it failed."""

    source: Path
    target: Path
    sigma: float
    error: str | None = None


class _Task(NamedTuple):
    """What is the same for all pictures of a call; ``sigma`` is None where each is to be estimated."""

    restorer: Restorer
    model: DenoiserBase | None
    sigma: float | None
    label: Label
    cfg: DictConfig


def denoise(cfg: DictConfig) -> list[Denoised]:
    """Denoise ``cfg.input``, a picture or a folder, with the model of ``cfg.ckpt``; see ``conf/denoise.yaml``.

    One bad file in a folder does not end the batch; it is named at the end and makes the exit code 1.
    """
    pairs = _files(Path(cfg.input).expanduser(), cfg.output)
    for _, target in pairs:
        _require_writable(target, cfg.overwrite)
    task = _task(cfg)
    done = []
    for source, target in pairs:
        try:
            done.append(_denoise_file(task, source, target))
        except (ValueError, OSError, FloatingPointError) as error:
            if len(pairs) == 1:
                raise
            done.append(Denoised(source, target, float("nan"), str(error)))
            said = str(error) if str(source) in str(error) else f"{shown(source)}: {error}"
            say_labelled("failed", said)
    failed = [shown(item.source) for item in done if item.error]
    if failed:
        more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        raise UserError(
            f"{len(failed)} of {len(done)} pictures failed: {', '.join(failed[:MAX_NAMED])}{more} (see above)"
        )
    ideas = [] if cfg.get("restorer") else ["another strength (sigma=...)", "another sampler (sampler=ddpm)"]
    if ideas := ideas + ["strip=true for a comparison"] * (not cfg.strip):
        say_labelled("try next", ", ".join(ideas))
    return done


def _task(cfg: DictConfig) -> _Task:
    """What restores, and its model: used as its run says, as far as ``cfg`` does not."""
    restorer = _restorer(cfg)
    if restorer is not None and not restorer.needs_model:
        return _Task(restorer, None, None if cfg.sigma is None else _sigma(cfg, {}), None, cfg)
    device = str(choose_device(cfg.device))
    model = guided(load(cfg.ckpt, weights=cfg.weights, device=device, trust=tuple(cfg.trust)), cfg)
    if not isinstance(kind_of(model.event_shape), Images):
        raise UserError(
            f"{cfg.ckpt} models samples of shape {model.event_shape}, not pictures: give another checkpoint"
        )
    record = model.record
    if restorer is None:
        sampler = None if cfg.get("sampler") else sampler_of_one_level(model.schedule)
        restorer = BySampling(sampler or instantiate(sampler_settings(cfg, record)))
    sigma = _sigma(cfg, record)
    if sigma is not None and isinstance(restorer, BySampling):
        require_reachable(restorer.sampler, model.schedule, sigma)
    label, doubt = label_of_observed(record, cfg.seed, cfg.label)
    if isinstance(model, LabelGuidance) and not isinstance(label, int):
        raise UserError(
            f"guidance leads towards a class: give that of the picture, label=0 to {record['num_classes'] - 1}"
        )
    if doubt is not None:
        say_labelled("warning", doubt)
    if trained_on_one_picture(record.get("config", {})):
        say_labelled("note", "this model was trained on 1 picture: it knows no other")
    return _Task(restorer, model, sigma, label, cfg)


def _restorer(cfg: DictConfig) -> Restorer | None:
    """The restorer of ``cfg``, or None where it names none, which means by sampling.

    Raises:
        UserError: it needs a model that is not given, or something is given that it does not use.
    """
    if not cfg.get("restorer"):
        return None
    restorer: Restorer = construct(OmegaConf.to_container(cfg.restorer, resolve=True), "restorer")
    name = type(restorer).__name__
    if restorer.needs_model and cfg.ckpt is None:
        raise UserError(f"restorer: {name} needs a model: add ckpt=RUN_DIR/checkpoints/best.ckpt")
    unused = ["sampler"] if restorer.needs_model else ["sampler", "ckpt", "guidance", "label"]
    if given := [key for key in unused if cfg.get(key) is not None]:
        raise UserError(
            f"restorer: {name} takes no {' and no '.join(given)}: leave {' and '.join(given)} out"
        )
    return restorer


def _sigma(cfg: DictConfig, record: Mapping[str, Any]) -> float | None:
    """The noise level of all pictures, or None where it is to be estimated."""
    if cfg.sigma == "auto":
        return None
    sigma = own_sigma(record) if cfg.sigma is None else float(cfg.sigma)
    if sigma is None:
        say_labelled(
            "note",
            "the run denoised no pictures, so it has no noise level of its own: estimates that of each",
        )
        return None
    if not sigma > 0:
        raise UserError(
            f"sigma={cfg.sigma}: allowed is > 0 in units of the [0, 1] range (25/255 = 0.098), or auto"
        )
    if cfg.sigma is None:
        say_labelled("noise level", f"sigma = {sigma:g}, that of the model's run (sigma=auto estimates it)")
    return sigma


def trained_on_one_picture(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a run says that its training set was a single picture."""
    data = config.get("data") or {}
    if data.get("num_images") == 1 or len(data.get("indices") or ()) == 1:
        return True
    if not str(data.get("_target_")).endswith(".Photo"):
        return False
    names = data.get("name")
    pictures = 1 if names is None or isinstance(names, str) else len(names)
    return pictures * (data.get("crops", 16) if data.get("crop") == "random" else 1) == 1


def _files(source: Path, output: str | None) -> list[tuple[Path, Path]]:
    """Pairs of input and output file; a folder's tree and names are kept.

    Raises:
        UserError: there is no input, or two of them would be written to one file.
    """
    require_input(source)
    target = None if output is None else Path(output).expanduser()
    if not source.is_dir():
        if target is not None and target.is_dir():
            return [(source, _writable_name(target / source.name))]
        return [
            (source, target or _writable_name(source.with_name(f"{source.stem}_denoised{source.suffix}")))
        ]
    folder = target or source.with_name(source.name + "_denoised")
    found = list_images(source)
    names = [path for path in found if not path.resolve().is_relative_to(folder.resolve())]
    if len(names) < len(found):
        if not names:
            raise UserError(f"input={source} is the output folder itself: give output=DIR outside of it")
        say_labelled(
            "note", f"{len(found) - len(names)} pictures below the output {shown(folder)} are left out"
        )
    pairs = [(path, _writable_name(folder / path.relative_to(source))) for path in names]
    first: dict[Path, Path] = {}
    for path, made in pairs:
        if (other := first.setdefault(made, path)) is not path:
            raise UserError(
                f"{shown(other)} and {shown(path)} would both be written to {shown(made)}: rename one of them"
            )
    return pairs


def _writable_name(path: Path) -> Path:
    """``path``, as PNG where its format can be read but not written."""
    return path if path.suffix.lower() in WRITABLE else path.with_suffix(".png")


def _require_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"output {path} exists: add overwrite=true to replace it, or give another output")


def _require_writable(path: Path, overwrite: bool, like: Picture | None = None) -> None:
    _require_absent(path, overwrite)
    check_writable(path, like=like, overwrite=overwrite)


def _denoise_file(task: _Task, source: Path, target: Path) -> Denoised:
    cfg = task.cfg
    picture = read_image(source, white_level=cfg.white_level)
    if (doubt := few_bits(picture)) is not None:
        say_labelled("warning", f"{source.name}: {doubt} Then give white_level=4095")
    _require_writable(target, cfg.overwrite, like=picture)
    strip, gif = target.with_name(f"{target.stem}_strip.png"), target.with_name(f"{target.stem}.gif")
    folder = target.with_name(f"{target.stem}_intermediate")
    for path, asked in ((strip, cfg.strip), (gif, cfg.gif), (folder, cfg.intermediate)):
        if asked:
            _require_absent(path, cfg.overwrite)
    sigma = _estimated(task, picture, source) if task.sigma is None else task.sigma
    kept = cfg.intermediate or GIF_STATES * cfg.gif
    with StepProgress(f"denoising {source.name}", part="tile") as progress:
        states = restore_pixels(
            task.restorer,
            task.model,
            picture.pixels,
            GaussianNoise(sigma_to_model(sigma)),
            label=task.label,
            seed=cfg.seed,
            keep=kept + 1 if kept else 0,  # the first is the noisy picture
            tiles=Tiles(cfg.tile, cfg.overlap),
            device=choose_device(cfg.device),
            callback=progress.step,
            progress=progress.part_done,
            warn=say,
        )
    clean = states[-1]
    made = next((path for path in reversed(target.parents) if not path.exists()), None)
    write_image(target, dataclasses.replace(picture, pixels=clean), overwrite=cfg.overwrite)
    if made is not None:
        say_labelled("made folder", shown(made))
    height, width = picture.pixels.shape[:2]
    say_labelled("denoised", f"{shown(target)} ({width} x {height}, sigma {sigma:.3g})")
    if cfg.strip:
        from scoreexp.figures.images import comparison  # matplotlib, for those who ask for it

        comparison([picture.pixels, clean], ["noisy", f"denoised, sigma {sigma:.3g}"], strip)
        say_labelled("comparison", shown(strip))
    if cfg.intermediate:
        for stale in folder.glob("state_*.png"):
            stale.unlink()
        for i, state in enumerate(states[1:-1], start=1):
            write_image(folder / f"state_{i:03d}.png", state)
        say_labelled("intermediate", f"{shown(folder)} ({len(states) - 2} pictures)")
    if cfg.gif:
        _write_gif(gif, states)
        say_labelled("animation", f"{shown(gif)} ({len(states)} frames)")
    return Denoised(source, target, sigma)


def _estimated(task: _Task, picture: Picture, source: Path) -> float:
    """The noise level of a picture, as far as a model that denoises by sampling knows it."""
    estimate = estimate_sigma(picture.pixels)
    if not estimate.sigma > 0:
        raise UserError(f"no noise was found in {source}: give sigma=... to denoise it all the same")
    sigma = estimate.sigma
    if task.model is not None and isinstance(task.restorer, BySampling):
        sigma = nearest_level(task.model.schedule, sigma)
        require_reachable(task.restorer.sampler, task.model.schedule, sigma)
    taken = "" if sigma == estimate.sigma else f"; denoises {sigma:.3f}, the model's nearest level"
    say_labelled(
        "noise level",
        f"sigma = {estimate.sigma:.3f} estimated from {source.name} ({estimate.trust}: {estimate.why}){taken}",
    )
    return sigma


def _write_gif(path: Path, states: Sequence[np.ndarray]) -> None:
    """An endless animation of pictures ``[H, W, C]`` in [0, 1], which rests on the last."""
    values = [to_uint8(state) for state in states]
    frames = [Image.fromarray(v[..., 0] if v.shape[-1] == 1 else v) for v in values]
    durations = [GIF_FRAME] * (len(frames) - 1) + [GIF_LAST]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
