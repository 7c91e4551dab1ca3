"""Denoise the user's own images: any size, depth and number of channels."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from scoreexp import prior
from scoreexp.api.denoise import (
    GIVEN,
    Judgement,
    chosen_restorer,
    dead_in_words,
    estimated,
    judged,
    name_of,
    noise_and_dead_pixels,
)
from scoreexp.app.picture_files import (
    input_and_output,
    output_folder,
    read_mask,
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
from scoreexp.core.construct import construct, locate
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model, sigma_to_unit, to_uint8
from scoreexp.data.image_io import Picture, few_bits, read_image, write_image
from scoreexp.data.image_writing import check_place
from scoreexp.data.suffixes import named_after, scan_format
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise, NoiseModel
from scoreexp.observations.noise.estimate import LAWS, Estimate
from scoreexp.restorers import BySampling, Restorer
from scoreexp.restorers.dead_pixels import restore_around
from scoreexp.restorers.images import RestoredPixels, Tiles, restore_pixels
from scoreexp.runs.directory import shown
from scoreexp.samplers import sampler_of_one_level
from scoreexp.samplers.labels import Label
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json

GIF_STATES = 24  # between the first and the last, where their number is not given
GIF_FRAME, GIF_LAST = 100, 1500  # milliseconds
SHOWN = 1000  # pixels of a side in the comparison
DONE = "_denoised"  # added to the name of the input


class Denoised(NamedTuple):
    """One image's way through the command: its files, the noise level in [0, 1] units, and what the JSON file says of it."""

    source: Path
    target: Path
    sigma: float
    values: dict[str, Any]


class Task(NamedTuple):
    """What is the same for all images of a call.

    Attributes:
        restorer: None where the noise decides.
        model: None for a restorer without one.
        noise: None where it is to be estimated.
        law: of the noise, where that is known and its parameters are to be estimated.
        extras: whether to write a comparison and the residual, where nothing is said of them.
        dead: which pixels are, ``[H, W, C]`` of the user's own mask, ``"auto"`` where they are to be found.
    """

    restorer: Restorer | None
    model: DenoiserBase | None
    noise: NoiseModel | None
    law: type[NoiseModel] | None
    label: Label
    extras: bool
    dead: np.ndarray | Literal["auto"] | None
    cfg: DictConfig


class Result(NamedTuple):
    """What became of one image or page.

    Attributes:
        noise: of it.
        restorer: that was taken.
        restored: by it.
        dead: which pixels are, ``[H, W, C]``, None where none is.
    """

    noise: Estimate
    restorer: Restorer
    restored: RestoredPixels
    dead: np.ndarray | None


def denoise(cfg: DictConfig, words: Sequence[str] = ()) -> list[Denoised]:
    """Denoise ``cfg.input``, an image or a folder; see ``conf/denoise.yaml``.

    One bad file in a folder does not end the batch; it is named at the end and makes the exit code 1.

    Args:
        cfg: its values.
        words: the command line that ``cfg`` was made of, see ``named_law``; without one all values are as given.
    """
    source = Path(cfg.input).expanduser()
    pairs = input_and_output(source, cfg.output, DONE, scans=True)
    for path, target in pairs:
        if is_scan(path, cfg):
            require_absent(target, cfg.overwrite)
            check_place(target, overwrite=cfg.overwrite)
        else:
            require_writable(target, cfg.overwrite)
    folder = output_folder(source, cfg.output, DONE) if source.is_dir() else None
    values = named_after(pairs[0][1], "", ".json") if folder is None else folder / "denoised.json"
    require_absent(values, cfg.overwrite)
    task = _task(cfg, words, extras=folder is None)
    written: list[dict[str, Any]] = []

    def work(source: Path, target: Path) -> Denoised:
        if is_scan(source, cfg):
            from scoreexp.app.commands.denoise_scan import denoise_scan

            found = denoise_scan(task, source, target)
        else:
            found = _denoise_file(task, source, target)
        written.append(found.values)
        write_json(values, {"seed": cfg.seed, "pictures": written})
        return found

    done, failed = with_each(pairs, work)
    if done:
        say_labelled("values", shown(values))
    require_none_failed(failed, len(pairs))
    if folder is not None:
        say_labelled("done", f"{len(done)} of {len(pairs)} images")
    other = "sampler (sampler=ddpm)" if cfg.ckpt else "restorer (restorer=non_local_means)"
    ideas = [] if cfg.get("restorer") else ["another strength (sigma=...)", f"another {other}"]
    has_strip = task.extras if cfg.strip is None else cfg.strip
    if ideas := ideas + ["strip=true for a comparison"] * (not has_strip):
        say_labelled("try next", ", ".join(ideas))
    return done


def is_scan(path: Path, cfg: DictConfig) -> bool:
    """Whether a file is read as pages of measured values; TIFF files are where ``volume`` says how."""
    is_stack = cfg.volume is not None and path.suffix.lower() in (".tif", ".tiff")
    return is_stack or scan_format(path) is not None


def _task(cfg: DictConfig, words: Sequence[str], extras: bool) -> Task:
    """What restores, and its model: used as its run says, as far as ``cfg`` does not."""
    restorer, dead = restorer_of(cfg), _dead(cfg.dead)
    if restorer is not None and not restorer.needs_model:
        noise, law = _noise(cfg, words, {})
        return Task(restorer, None, noise, law, None, extras, dead, cfg)
    if cfg.ckpt is None:
        if given := [key for key in ("guidance", "label") if cfg.get(key) is not None]:
            raise UserError(
                f"the bundled prior takes no {' and no '.join(given)}: leave {' and '.join(given)} out, or add ckpt="
            )
        model = prior.load(choose_device(cfg.device))
    else:
        model = model_of_pictures(cfg)
    record = model.record
    if restorer is None and (cfg.ckpt is not None or cfg.get("sampler")):
        sampler = None if cfg.get("sampler") else sampler_of_one_level(model.schedule)
        restorer = BySampling(sampler or instantiate(sampler_settings(cfg, record)))
    noise, law = _noise(cfg, words, record)
    if isinstance(noise, GaussianNoise) and isinstance(restorer, BySampling):
        require_reachable(restorer.sampler, model.schedule, sigma_to_unit(noise.sigma))
    label = None if cfg.ckpt is None else label_of_pictures(cfg, model)
    return Task(restorer, model, noise, law, label, extras, dead, cfg)


def _dead(given: str | None) -> np.ndarray | Literal["auto"] | None:
    """The mask ``[H, W, C]`` of a file, true where it is black."""
    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    dead: np.ndarray = read_mask("dead", given) < 0.5
    if dead.all() or not dead.any():
        what = "all black, so nothing is known" if dead.all() else "without a dead pixel: paint them black"
        raise UserError(f"dead={given} is {what}")
    return dead


def dead_of(task: Task, shape: tuple[int, ...]) -> np.ndarray | Literal["auto"] | None:
    """The dead pixels of an image of this shape ``(H, W, C)``, or how they are to be found.

    Raises:
        UserError: the mask has another size.
    """
    if not isinstance(task.dead, np.ndarray):
        return task.dead
    mine = task.dead.shape
    if mine[:2] != shape[:2] or mine[2] not in (1, shape[2]):
        sizes = [f"{w} x {h} pixels in {c} channel{'s' * (c > 1)}" for h, w, c in (mine, shape)]
        raise UserError(f"dead={task.cfg.dead} is {sizes[0]}, the image {sizes[1]}: give a mask of its size")
    return np.broadcast_to(task.dead, shape)


def named_law(node: Mapping[str, Any], words: Sequence[str]) -> type[NoiseModel] | None:
    """The law that a command line names without its parameters, so that they are to be estimated; None: they are given.

    >>> named_law({"_target_": "scoreexp.observations.PoissonNoise", "peak": 30.0}, ["noise=poisson"]).__name__
    'PoissonNoise'

    Args:
        node: the noise of the configuration.
        words: the command line.

    Raises:
        UserError: some of its parameters are given and others not.
    """
    given = dict(word.lstrip("+").partition("=")[::2] for word in words)
    if not re.fullmatch(r"\w+", given.get("noise", "")) or (law := locate(node["_target_"])) not in LAWS:
        return None
    missing = [f"noise.{key}" for key in node if key != "_target_" and f"noise.{key}" not in given]
    if not any(key.startswith("noise.") for key in given):
        return law
    if missing:
        raise UserError(
            f"noise={given['noise']}: give {' and '.join(missing)} too, or no parameter, and all are estimated"
        )
    return None


def _noise(
    cfg: DictConfig, words: Sequence[str], record: Mapping[str, Any]
) -> tuple[NoiseModel | None, type[NoiseModel] | None]:
    """The noise of all images, None where it is to be estimated; and its law where that is known all the same."""
    if cfg.get("noise"):
        if cfg.sigma is not None:
            raise UserError(f"sigma={cfg.sigma} and noise=... are two answers: give one of them")
        node: Any = OmegaConf.to_container(cfg.noise, resolve=True)
        if (law := named_law(node, words)) is not None:
            return None, law
        return construct(node, "noise"), None
    if cfg.sigma == "auto" or (cfg.sigma is None and cfg.ckpt is None):
        return None, GaussianNoise if cfg.sigma == "auto" else None
    sigma = own_sigma(record) if cfg.sigma is None else float(cfg.sigma)
    if sigma is None:
        say_labelled(
            "note",
            "the run denoised no images, so it has no noise level of its own: estimates that of each",
        )
        return None, GaussianNoise
    if not sigma > 0:
        raise UserError(
            f"sigma={cfg.sigma}: allowed is > 0 in units of the [0, 1] range (25/255 = 0.098), or auto"
        )
    if cfg.sigma is None:
        say_labelled("noise level", f"sigma = {sigma:g}, that of the model's run (sigma=auto estimates it)")
    return GaussianNoise(sigma_to_model(sigma)), GaussianNoise


def _denoise_file(task: Task, source: Path, target: Path) -> Denoised:
    cfg = task.cfg
    picture = read_image(source, white_level=cfg.white_level)
    if (doubt := few_bits(picture)) is not None:
        say_labelled("warning", f"{source.name}: {doubt} Then give white_level=4095")
    require_writable(target, cfg.overwrite, like=picture)
    strip, gif = target.with_name(f"{target.stem}_strip.png"), target.with_name(f"{target.stem}.gif")
    removed, mask = (target.with_name(f"{target.stem}_{end}.png") for end in ("residual", "dead"))
    folder = target.with_name(f"{target.stem}_intermediate")
    with_strip, with_residual = (
        task.extras if asked is None else asked for asked in (cfg.strip, cfg.residual)
    )
    for path, asked in (
        (strip, with_strip),
        (removed, with_residual),
        (gif, cfg.gif),
        (folder, cfg.intermediate),
        (mask, isinstance(task.dead, str)),
    ):
        if asked:
            require_absent(path, cfg.overwrite)
    kept = cfg.intermediate or GIF_STATES * cfg.gif
    with StepProgress(f"denoising {source.name}", part="tile") as progress:
        result = restored_of(
            task,
            picture.pixels,
            source.name,
            progress,
            keep=kept + 1 if kept else 0,  # the first is the noisy image
        )
    noise, states = result.noise.noise, result.restored.states
    clean = states[-1]
    judgement = judgement_of(task, result, picture.pixels, clean)
    made = next((path for path in reversed(target.parents) if not path.exists()), None)
    write_image(target, dataclasses.replace(picture, pixels=clean), overwrite=cfg.overwrite)
    if made is not None:
        say_labelled("made folder", shown(made))
    height, width = picture.pixels.shape[:2]
    done = f"{width} x {height}, {name_of(result.restorer)}, {result.restored.seconds:.1f} s"
    say_labelled("denoised", f"{shown(target)} ({done})")
    say_labelled("residual", str(judgement))
    if with_residual:
        write_image(removed, residual(picture.pixels, clean), overwrite=cfg.overwrite)
        say_labelled("removed", f"{shown(removed)} (gray is nothing)")
    if result.dead is not None and isinstance(task.dead, str):
        write_dead(mask, result.dead, cfg)
    if with_strip:
        from scoreexp.figures.images import comparison  # matplotlib, for those who ask for it

        every = -(-max(height, width) // SHOWN)  # pixels are left out, not averaged, which would hide noise
        before, after = picture.pixels[::every, ::every], clean[::every, ::every]
        comparison([before, after, residual(before, after)], ["noisy", "denoised", "removed"], strip)
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
    sigma = level(noise, clean)
    return Denoised(source, target, sigma, {
        "input": str(source),
        "output": str(target),
        "sigma": sigma,
        **facts(result, judgement),
    })  # fmt: skip


def assumed(
    task: Task,
    pixels: np.ndarray,
    noise: Callable[[np.ndarray, Callable[[str, str], object]], Estimate],
    tell: Callable[[str, str], object] | None,
) -> tuple[Estimate, np.ndarray | None, np.ndarray]:
    """``noise_and_dead_pixels`` of an image, page or cube; ``tell`` hears what was assumed in the end."""
    lines: list[tuple[str, str]] = []

    def noise_of_it(pixels: np.ndarray) -> Estimate:
        lines.clear()  # what was assumed before dead pixels were found
        return noise(pixels, lambda *line: lines.append(line))

    found = noise_and_dead_pixels(pixels, dead_of(task, pixels.shape), noise_of_it)
    if task.dead is not None:
        lines.append(("dead pixels", dead_in_words(found[1])))
    for line in lines if tell is not None else ():
        tell(*line)
    return found


def restored_of(
    task: Task,
    pixels: np.ndarray,
    name: str,
    progress: StepProgress,
    *,
    keep: int = 0,
    tell: Callable[[str, str], object] | None = say_labelled,
) -> Result:
    """Denoise an image or page ``[H, W, C]``: its noise, what serves it, and dead pixels as not observed.

    Args:
        task: of the call.
        pixels: nominally in [0, 1].
        name: what the image is called.
        progress: is told of steps, and of tiles where ``tell`` is not None.
        keep: states on the way.
        tell: is told what was assumed.

    Raises:
        UserError: see ``noise_of`` and ``dead_of``.
        ValueError: see ``chosen_restorer``.
    """
    cfg = task.cfg
    found, dead, living = assumed(task, pixels, lambda pixels, tell: noise_of(task, pixels, name, tell), tell)
    restorer = chosen_restorer(task.restorer, found.noise, living, task.model)

    def restore(pixels: np.ndarray) -> RestoredPixels:
        return restore_pixels(
            restorer,
            task.model,
            pixels,
            found.noise,
            label=task.label,
            seed=cfg.seed,
            keep=keep,
            tiles=Tiles(cfg.tile, cfg.overlap),
            device=choose_device(cfg.device),
            callback=progress.step,
            progress=None if tell is None else progress.part_done,
            warn=say,
        )

    restored = restore(pixels) if dead is None else restore_around(dead, pixels, restore)
    return Result(found, restorer, restored, dead)


def judgement_of(task: Task, result: Result, pixels: np.ndarray, clean: np.ndarray) -> Judgement:
    """What a result says of itself, by the living pixels."""
    return judged(
        result.restorer,
        task.model,
        pixels if result.dead is None else np.where(result.dead, clean, pixels),
        clean,
        result.noise.noise,
        is_known=result.noise.why == GIVEN,
        label=task.label,
        seed=task.cfg.seed,
    )


def write_dead(path: Path, dead: np.ndarray, cfg: DictConfig) -> None:
    """Dead pixels ``[H, W, C]`` as an image that ``dead=`` takes, in which they are black; of a volume those of any band."""
    if dead.shape[2] != 3 or (dead == dead[..., :1]).all():
        dead = dead.any(-1, keepdims=True)
    write_image(path, Picture((~dead).astype(np.float32)), overwrite=cfg.overwrite)
    say_labelled("dead pixels", f"{shown(path)} (black; dead=FILE takes it)")


def facts(result: Result, judgement: Judgement) -> dict[str, Any]:
    """What the JSON file says of an image, or of a page of a scan."""
    found, restorer, restored = result.noise, result.restorer, result.restored
    return {
        "noise": {"kind": type(found.noise).__name__, **found.noise.parameters()},
        "noise_in_words": str(found.noise),
        "trust": found.trust,
        "why": found.why,
        "restorer": name_of(restorer),
        "dead_pixels": 0 if result.dead is None else int(result.dead.any(-1).sum()),
        "nfe": restored.nfe,
        "seconds": restored.seconds,
        "residual": None if judgement.residual is None else judgement.residual._asdict(),
        "psnr": judgement.psnr,
        "psnr_by": judgement.by,
    }


def residual(noisy: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """``y - x`` around gray."""
    return (noisy - clean + np.float32(0.5)).clip(0, 1)


def level(noise: NoiseModel, clean: np.ndarray) -> float:
    """Standard deviation of the noise in units of [0, 1], over the whole image where it depends on brightness."""
    if isinstance(noise, GaussianNoise):
        return sigma_to_unit(noise.sigma)
    brightness = torch.linspace(-1, 1, 256)[None]
    share, _ = np.histogram(clean, 256, (0, 1))
    variance = noise.variance(brightness)[0].numpy() @ share / share.sum()
    return sigma_to_unit(float(variance) ** 0.5)


def noise_of(
    task: Task, pixels: np.ndarray, name: str, tell: Callable[[str, str], object] = say_labelled
) -> Estimate:
    """The noise of an image; a level of Gaussian noise as far as a model that denoises by sampling knows it.

    Args:
        task: of the call.
        pixels: ``[H, W, C]`` in [0, 1].
        name: what the image is called.
        tell: is told what was assumed.

    Raises:
        UserError: no noise was found, or the model does not know it.
        ValueError: the image is too small to estimate it.
    """
    if task.noise is not None:
        if task.law is None:
            tell("noise", f"{task.noise}, {GIVEN}")
        return Estimate(task.noise, "good", GIVEN)
    found = estimated(pixels, task.law)
    if not isinstance(found.noise, GaussianNoise) or task.law is None:
        tell("noise", f"{found.noise}; estimated from {name} ({found.trust}: {found.why})")
        return found
    sigma = white = sigma_to_unit(found.noise.sigma)
    if task.model is not None and isinstance(task.restorer, BySampling):
        sigma = nearest_level(task.model.schedule, sigma)
        require_reachable(task.restorer.sampler, task.model.schedule, sigma)
    taken = "" if sigma == white else f"; denoises {sigma:.3f}, the model's nearest level"
    tell("noise level", f"sigma = {white:.3f} estimated from {name} ({found.trust}: {found.why}){taken}")
    return found._replace(noise=GaussianNoise(sigma_to_model(sigma)))


def _write_gif(path: Path, states: Sequence[np.ndarray]) -> None:
    """An endless animation of images ``[H, W, C]`` in [0, 1], which rests on the last."""
    values = [to_uint8(state) for state in states]
    frames = [Image.fromarray(v[..., 0] if v.shape[-1] == 1 else v) for v in values]
    durations = [GIF_FRAME] * (len(frames) - 1) + [GIF_LAST]
    with atomic_write(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        )
