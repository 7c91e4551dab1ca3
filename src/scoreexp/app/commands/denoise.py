"""Denoise the user's own images: any size, depth and number of channels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from scoreexp.app.picture_files import (
    input_and_output,
    require_absent,
    require_none_failed,
    require_writable,
    with_each,
)
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import (
    label_of_pictures,
    model_of_pictures,
    nearest_level,
    own_sigma,
    require_reachable,
    restorer_of,
    sampler_settings,
)
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model, to_uint8
from scoreexp.data.image_io import Picture, few_bits, read_image, write_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise
from scoreexp.observations.noise.level import estimate_sigma
from scoreexp.restorers import BySampling, Restorer
from scoreexp.restorers.images import Tiles, restore_pixels
from scoreexp.runs.directory import shown
from scoreexp.samplers import sampler_of_one_level
from scoreexp.samplers.labels import Label
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device

GIF_STATES = 24  # between the first and the last, where their number is not given
GIF_FRAME, GIF_LAST = 100, 1500  # milliseconds


class Denoised(NamedTuple):
    """One image's way through the command: its files, and the noise level in [0, 1] units."""

    source: Path
    target: Path
    sigma: float


class _Task(NamedTuple):
    """What is the same for all images of a call; ``sigma`` is None where each is to be estimated."""

    restorer: Restorer
    model: DenoiserBase | None
    sigma: float | None
    label: Label
    cfg: DictConfig


def denoise(cfg: DictConfig) -> list[Denoised]:
    """Denoise ``cfg.input``, an image or a folder, with the model of ``cfg.ckpt``; see ``conf/denoise.yaml``.

    One bad file in a folder does not end the batch; it is named at the end and makes the exit code 1.
    """
    pairs = input_and_output(Path(cfg.input).expanduser(), cfg.output, "_denoised")
    for _, target in pairs:
        require_writable(target, cfg.overwrite)
    task = _task(cfg)
    done, failed = with_each(pairs, lambda source, target: _denoise_file(task, source, target))
    require_none_failed(failed, len(pairs))
    ideas = [] if cfg.get("restorer") else ["another strength (sigma=...)", "another sampler (sampler=ddpm)"]
    if ideas := ideas + ["strip=true for a comparison"] * (not cfg.strip):
        say_labelled("try next", ", ".join(ideas))
    return done


def _task(cfg: DictConfig) -> _Task:
    """What restores, and its model: used as its run says, as far as ``cfg`` does not."""
    restorer = restorer_of(cfg)
    if restorer is not None and not restorer.needs_model:
        return _Task(restorer, None, None if cfg.sigma is None else _sigma(cfg, {}), None, cfg)
    model = model_of_pictures(cfg)
    record = model.record
    if restorer is None:
        sampler = None if cfg.get("sampler") else sampler_of_one_level(model.schedule)
        restorer = BySampling(sampler or instantiate(sampler_settings(cfg, record)))
    sigma = _sigma(cfg, record)
    if sigma is not None and isinstance(restorer, BySampling):
        require_reachable(restorer.sampler, model.schedule, sigma)
    label = label_of_pictures(cfg, model)
    return _Task(restorer, model, sigma, label, cfg)


def _sigma(cfg: DictConfig, record: Mapping[str, Any]) -> float | None:
    """The noise level of all images, or None where it is to be estimated."""
    if cfg.sigma == "auto":
        return None
    sigma = own_sigma(record) if cfg.sigma is None else float(cfg.sigma)
    if sigma is None:
        say_labelled(
            "note",
            "the run denoised no images, so it has no noise level of its own: estimates that of each",
        )
        return None
    if not sigma > 0:
        raise UserError(
            f"sigma={cfg.sigma}: allowed is > 0 in units of the [0, 1] range (25/255 = 0.098), or auto"
        )
    if cfg.sigma is None:
        say_labelled("noise level", f"sigma = {sigma:g}, that of the model's run (sigma=auto estimates it)")
    return sigma


def _denoise_file(task: _Task, source: Path, target: Path) -> Denoised:
    cfg = task.cfg
    picture = read_image(source, white_level=cfg.white_level)
    if (doubt := few_bits(picture)) is not None:
        say_labelled("warning", f"{source.name}: {doubt} Then give white_level=4095")
    require_writable(target, cfg.overwrite, like=picture)
    strip, gif = target.with_name(f"{target.stem}_strip.png"), target.with_name(f"{target.stem}.gif")
    folder = target.with_name(f"{target.stem}_intermediate")
    for path, asked in ((strip, cfg.strip), (gif, cfg.gif), (folder, cfg.intermediate)):
        if asked:
            require_absent(path, cfg.overwrite)
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
            keep=kept + 1 if kept else 0,  # the first is the noisy image
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
        say_labelled("intermediate", f"{shown(folder)} ({len(states) - 2} images)")
    if cfg.gif:
        _write_gif(gif, states)
        say_labelled("animation", f"{shown(gif)} ({len(states)} frames)")
    return Denoised(source, target, sigma)


def _estimated(task: _Task, picture: Picture, source: Path) -> float:
    """The noise level of an image, as far as a model that denoises by sampling knows it."""
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
    """An endless animation of images ``[H, W, C]`` in [0, 1], which rests on the last."""
    values = [to_uint8(state) for state in states]
    frames = [Image.fromarray(v[..., 0] if v.shape[-1] == 1 else v) for v in values]
    durations = [GIF_FRAME] * (len(frames) - 1) + [GIF_LAST]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
