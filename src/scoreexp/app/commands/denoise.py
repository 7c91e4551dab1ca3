"""Denoise the user's own pictures: any size, depth and number of channels."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from scoreexp.app.early_checks import require_input
from scoreexp.app.progress import Followed, StepProgress
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model, to_model, to_uint8, to_unit
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.data.image_io import (
    WRITABLE,
    Picture,
    check_writable,
    list_images,
    read_image,
    write_image,
)
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.observations.noise.level import estimate_sigma
from scoreexp.restorers.tiling import apply_tiled
from scoreexp.runs.directory import shown
from scoreexp.runs.model import load
from scoreexp.samplers import Sampler
from scoreexp.schedules import Schedule
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device

WHOLE_SIDE, TILE = 512, 256
GIF_STATES = 24  # between the first and the last, where their number is not given
GIF_FRAME, GIF_LAST = 100, 1500  # milliseconds
MAX_NAMED = 3  # files in the last line about those that failed


class Denoised(NamedTuple):
    """One picture's way through the command: files, noise level in [0, 1] units, and an error if it failed."""

    source: Path
    target: Path
    sigma: float
    error: str | None = None


def denoise(cfg: DictConfig) -> list[Denoised]:
    """Denoise ``cfg.input`` (a picture or a folder) with the model of ``cfg.ckpt``; see ``conf/denoise.yaml``.

    One bad file in a folder does not end the batch; it is named at the end and makes the exit code 1.
    """
    sigma = None if cfg.sigma == "auto" else float(cfg.sigma)
    if sigma is not None and not sigma > 0:
        raise UserError(
            f"sigma={cfg.sigma}: allowed is > 0 in units of the [0, 1] range (25/255 = 0.098), or auto"
        )
    pairs = _files(Path(cfg.input).expanduser(), cfg.output)
    for _, target in pairs:
        _require_writable(target, cfg.overwrite)
    device = choose_device(cfg.device)
    model = load(cfg.ckpt, weights=cfg.weights, device=str(device))
    if model.event_shape is None or len(model.event_shape) != 3:
        raise UserError(
            f"{cfg.ckpt} models samples of shape {model.event_shape}, not pictures: give another checkpoint"
        )
    sampler: Sampler = instantiate(cfg.sampler)
    if sigma is not None:
        require_reachable(sampler, model.schedule, sigma)
    if trained_on_one_picture(model.record["config"]):
        print("note           this model was trained on 1 picture: it knows no other", flush=True)
    done = []
    for source, target in pairs:
        try:
            done.append(_denoise_file(model, sampler, source, target, sigma, cfg))
        except (UserError, OSError) as error:
            if len(pairs) == 1:
                raise
            done.append(Denoised(source, target, float("nan"), str(error)))
            said = str(error) if str(source) in str(error) else f"{shown(source)}: {error}"
            print(f"failed         {said}", flush=True)
    failed = [shown(item.source) for item in done if item.error]
    if failed:
        more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        raise UserError(
            f"{len(failed)} of {len(done)} pictures failed: {', '.join(failed[:MAX_NAMED])}{more} (see above)"
        )
    beside = "" if cfg.strip else ", strip=true for a comparison"
    print(f"try next       another strength (sigma=...), another sampler (sampler=ddpm){beside}")
    return done


def require_reachable(sampler: Sampler, schedule: Schedule, sigma: float) -> None:
    """Refuse a noise level, in units of the [0, 1] range, from which the sampler cannot start on ``schedule``."""
    try:
        sampler.start(schedule, torch.zeros(1, 1), sigma_to_model(sigma))
    except ValueError as error:
        low, high = (level / sigma_to_model(1.0) for level in schedule.sigma_range)
        if low <= sigma <= high:
            raise
        hint = f"; {sigma:g} of 255 is {sigma / 255:.3f}" if sigma > 1 else ""
        inside = f"{_rounded(low, 1):g} to {_rounded(high, -1):g}"
        raise UserError(f"sigma={sigma:g}: this model denoises {inside} (units of [0, 1]{hint})") from error


def _rounded(level: float, sign: Literal[1, -1]) -> float:
    """Three digits of a noise level that limits a range from below (1) or above (-1), rounded into the range."""
    near = float(f"{level:.3g}")
    outside = (near - level) * sign < 0
    return near + sign * 10.0 ** (math.floor(math.log10(level)) - 2) if outside else near


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
    """Pairs of input and output file; a folder's tree and names are kept."""
    require_input(source)
    target = None if output is None else Path(output).expanduser()
    if source.is_dir():
        folder = target or source.with_name(source.name + "_denoised")
        names = list_images(source)
        if not names:
            raise UserError(
                f"input={source} holds no pictures: give a folder with PNG, JPEG, TIFF or WebP files"
            )
        return [(path, _writable_name(folder / path.relative_to(source))) for path in names]
    if target is not None and target.is_dir():
        return [(source, _writable_name(target / source.name))]
    return [(source, target or _writable_name(source.with_name(f"{source.stem}_denoised{source.suffix}")))]


def _writable_name(path: Path) -> Path:
    """``path``, as PNG where its format can be read but not written."""
    return path if path.suffix.lower() in WRITABLE else path.with_suffix(".png")


def _require_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"output {path} exists: add overwrite=true to replace it, or give another output")


def _require_writable(path: Path, overwrite: bool, like: Picture | None = None) -> None:
    _require_absent(path, overwrite)
    check_writable(path, like=like, overwrite=overwrite)


def _denoise_file(
    model: DenoiserBase, sampler: Sampler, source: Path, target: Path, sigma: float | None, cfg: DictConfig
) -> Denoised:
    picture = read_image(source)
    _require_writable(target, cfg.overwrite, like=picture)
    strip, gif = target.with_name(f"{target.stem}_strip.png"), target.with_name(f"{target.stem}.gif")
    folder = target.with_name(f"{target.stem}_intermediate")
    for path, asked in ((strip, cfg.strip), (gif, cfg.gif), (folder, cfg.intermediate)):
        if asked:
            _require_absent(path, cfg.overwrite)
    if sigma is None:
        estimate = estimate_sigma(picture.pixels)
        sigma = estimate.sigma
        print(
            f"noise level    sigma = {sigma:.3f} estimated from {source.name} ({estimate.trust}: {estimate.why})",
            flush=True,
        )
        if not sigma > 0:
            raise UserError(f"no noise was found in {source}: give sigma=... to denoise it all the same")
        require_reachable(sampler, model.schedule, sigma)
    height, width = picture.pixels.shape[:2]
    tile = cfg.tile
    if tile == "auto":
        tile = None if max(height, width) <= WHOLE_SIDE else TILE
    with StepProgress(f"denoising {source.name}", part="tile") as progress:
        states = denoise_states(
            model,
            Followed(sampler, progress.step),
            picture.pixels,
            sigma,
            intermediate=cfg.intermediate or GIF_STATES * cfg.gif,
            seed=cfg.seed,
            tile=tile,
            overlap=cfg.overlap,
            progress=progress.part_done,
        )
    clean = states[-1]
    made = next((path for path in reversed(target.parents) if not path.exists()), None)
    write_image(target, dataclasses.replace(picture, pixels=clean), overwrite=cfg.overwrite)
    if made is not None:
        print(f"made folder    {shown(made)}", flush=True)
    print(f"denoised       {shown(target)} ({width} x {height}, sigma {sigma:.3g})", flush=True)
    if cfg.strip:
        from scoreexp.figures.images import comparison  # matplotlib, for those who ask for it

        comparison([picture.pixels, clean], ["noisy", f"denoised, sigma {sigma:.3g}"], strip)
        print(f"comparison     {shown(strip)}", flush=True)
    if cfg.intermediate:
        for stale in folder.glob("state_*.png"):
            stale.unlink()
        for i, state in enumerate(states[1:-1], start=1):
            write_image(folder / f"state_{i:03d}.png", state)
        print(f"intermediate   {shown(folder)} ({len(states) - 2} pictures)", flush=True)
    if cfg.gif:
        _write_gif(gif, states)
        print(f"animation      {shown(gif)} ({len(states)} frames)", flush=True)
    return Denoised(source, target, sigma)


def _write_gif(path: Path, states: Sequence[np.ndarray]) -> None:
    """An endless animation of pictures ``[H, W, C]`` in [0, 1], which rests on the last."""
    values = [to_uint8(state) for state in states]
    frames = [Image.fromarray(v[..., 0] if v.shape[-1] == 1 else v) for v in values]
    durations = [GIF_FRAME] * (len(frames) - 1) + [GIF_LAST]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )


def denoise_pixels(
    model: DenoiserBase,
    sampler: Sampler,
    pixels: np.ndarray,
    sigma: float,
    *,
    seed: int = 0,
    tile: int | None = None,
    overlap: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Denoise one picture in memory: the last of ``denoise_states``, float32 ``[H, W, C]`` in [0, 1]."""
    return denoise_states(
        model, sampler, pixels, sigma, seed=seed, tile=tile, overlap=overlap, progress=progress
    )[-1]


def denoise_states(
    model: DenoiserBase,
    sampler: Sampler,
    pixels: np.ndarray,
    sigma: float,
    *,
    intermediate: int = 0,
    seed: int = 0,
    tile: int | None = None,
    overlap: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> list[np.ndarray]:
    """Denoise one picture in memory, and keep states on the way, scaled to the clean picture.

    A grey picture goes through a colour model as three equal channels whose mean is taken; a colour picture goes
    through a grey model channel by channel.

    Args:
        model: the denoiser, with a network whose event shape is (C, h, w).
        sampler: runs from the noise level to clean data.
        pixels: ``[H, W, C]`` in [0, 1], C in {1, 3}, any H and W.
        sigma: standard deviation of the noise, in units of the [0, 1] range.
        intermediate: number of evenly spaced states between the noisy and the denoised picture, at most all that the
            sampler visits; those of tiles are blended as the result is.
        seed: names the noise of stochastic samplers.
        tile: side of the tiles, or None for the whole picture at once.
        overlap: pixels that neighbouring tiles share.
        progress: called with (tiles done, tiles in all).

    Returns:
        The noisy picture, the intermediate ones and the denoised one (without intermediate ones that alone), each float32
        ``[H, W, C]``, clipped to [0, 1].
    """
    network = getattr(model, "network", None)
    multiple = int(getattr(network, "downsampling_factor", 1))
    channels = model.event_shape[0] if model.event_shape else pixels.shape[-1]
    parameter = next(network.parameters(), None) if network is not None else None
    observed = to_model(torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float())
    batch = observed[:, None] if channels == 1 else observed.expand(channels, -1, -1)[None]
    if parameter is not None:
        batch = batch.to(parameter.device)

    _, t_start = sampler.start(model.schedule, batch[..., :1, :1], sigma_to_model(sigma))
    visited = len(sampler.grid(model.schedule, t_start=t_start)) + sampler.denoise_last
    count = min(intermediate + 2, visited) if intermediate else 1

    def run(part: Tensor, corner: tuple[int, int]) -> Tensor:
        part = part[: len(batch)]
        start, t_start = sampler.start(model.schedule, part, sigma_to_model(sigma))
        streams = ImageStreams([stream_seed(seed, "denoise", *corner, i) for i in range(len(part))])
        result = sampler(model, start, streams=streams, t_start=t_start, keep=count)
        before = zip(result.trajectory[:-1], result.times[:-1].tolist(), strict=True)
        return torch.cat([*(state / model.schedule.at(t)[0] for state, t in before), result.x])

    if tile is not None:
        tile = max(multiple, tile // multiple * multiple)
        overlap = min(overlap, tile - multiple)
    result = apply_tiled(
        run,
        batch.repeat(count, 1, 1, 1),  # one copy for each state, because tiles keep their shape
        tile=tile,
        overlap=overlap,
        multiple=multiple,
        progress=progress,
        on_out_of_memory=lambda side: print(
            f"out of memory: going on with tiles of {side} pixels", flush=True
        ),
    )
    states = to_unit(result).reshape(count, *batch.shape)
    states = states[:, :, 0] if channels == 1 else states[:, 0]
    if pixels.shape[-1] == 1 and channels != 1:
        states = states.mean(1, keepdim=True)
    return list(states.clamp(0, 1).movedim(1, -1).cpu().numpy().astype(np.float32))
