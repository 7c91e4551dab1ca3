"""Denoise the pages of a scan: slices, frames or bands, an image each or as one volume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreexp.api.denoise import SMALLEST, Judgement, by_residual, name_of
from scoreexp.app.commands.denoise import (
    Denoised,
    Result,
    Task,
    assumed,
    facts,
    judgement_of,
    level,
    noise_of,
    residual,
    restored_of,
    write_dead,
)
from scoreexp.app.picture_files import require_absent
from scoreexp.app.progress import StepProgress
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import sigma_to_model
from scoreexp.data.image_io import write_image
from scoreexp.data.scan import Scan
from scoreexp.data.scan_io import read_scan
from scoreexp.data.suffixes import named_after
from scoreexp.observations import GaussianNoise, Identity, Observation
from scoreexp.observations.noise.estimate import Estimate
from scoreexp.observations.noise.level import CHANNEL_RATIO, estimate_sigma
from scoreexp.restorers.dead_pixels import restore_around
from scoreexp.restorers.images import RestoredPixels, Tiles, as_observed, restore_pixels
from scoreexp.restorers.usual import serving
from scoreexp.runs.directory import shown
from scoreexp.system.devices import choose_device


class _Pages(NamedTuple):
    """What became of the pages.

    Attributes:
        pages: ``[N, H, W, C]`` in [0, 1], NaN where a page is kept as it was.
        levels: of the noise of each page, None where it is kept.
        result: of the page that is shown; its evaluations are the most of a page or block, its seconds those of all.
        judgement: of the same page.
        refused: why the first of the pages that are kept is.
    """

    pages: np.ndarray
    levels: list[float | None]
    result: Result
    judgement: Judgement
    refused: str = ""


def denoise_scan(task: Task, source: Path, target: Path) -> Denoised:
    """Denoise the pages of one file and write them as the same kind of file."""
    cfg = task.cfg
    if cfg.gif or cfg.intermediate:
        raise UserError("gif=true and intermediate=N show the way of an image: leave them out for a scan")
    scan = read_scan(source, window=cfg.window, white_level=cfg.white_level)
    strip, removed, mask = (named_after(target, end, ".png") for end in ("_strip", "_residual", "_dead"))
    with_strip, with_residual = (
        task.extras if asked is None else asked for asked in (cfg.strip, cfg.residual)
    )
    for path, asked in ((strip, with_strip), (removed, with_residual), (mask, isinstance(task.dead, str))):
        if asked:
            require_absent(path, cfg.overwrite)
    unit = f" {scan.unit}" if scan.unit else ""
    low, high = scan.units(scan.low, scan.high)
    kept = ", values outside are kept" if scan.windowed else ""
    say_labelled("range", f"{low:g} to {high:g}{unit} become 0 and 1{kept}")
    made_of = _as_volume(task, scan) if cfg.volume else _page_by_page(task, scan)
    result = made_of.result
    levels = [found for found in made_of.levels if found is not None]
    rms = float(np.sqrt(np.mean(np.square(levels))))
    of_unit = (high - low) * rms
    say_labelled("noise level", f"sigma = {rms:.4f} of the range, {abs(of_unit):.4g}{unit}")
    if without := [number for number, found in enumerate(made_of.levels) if found is None]:
        kept = f"{len(without)} of {len(scan)} pages are kept as they were, the first is {without[0] + 1}"
        say_labelled("note", f"{kept}: {made_of.refused}")
    made = next((path for path in reversed(target.parents) if not path.exists()), None)
    scan.write(target, made_of.pages, overwrite=cfg.overwrite)
    if made is not None:
        say_labelled("made folder", shown(made))
    pages, height, width, _ = scan.values.shape
    size = f"{pages} pages of {width} x {height}" if pages > 1 else f"{width} x {height}"
    say_labelled(
        "denoised", f"{shown(target)} ({size}, {name_of(result.restorer)}, {result.restored.seconds:.1f} s)"
    )
    number = _middle(made_of.levels)
    of_page = f"of page {number + 1}: " if pages > 1 and not cfg.volume else ""
    say_labelled("residual", f"{of_page}{made_of.judgement}")
    before, after = scan.page(number), made_of.pages[number]
    dark, light = shown_range(before)
    if light - dark < 1 and (with_residual or with_strip):
        least, most = (low + share * (high - low) for share in (dark, light))
        say_labelled(
            "pictures", f"show {least:.5g} to {most:.5g}{unit}, all but 0.2 % of the values; the file has all"
        )
    before, after = ((part - dark) / (light - dark) for part in (before, after))
    if with_residual:
        write_image(removed, residual(before, after), overwrite=cfg.overwrite)
        say_labelled("removed", f"{shown(removed)} (gray is nothing)")
    if result.dead is not None and isinstance(task.dead, str):
        write_dead(mask, result.dead, cfg)
    if with_strip:
        from scoreexp.figures.images import comparison

        comparison([before, after, residual(before, after)], ["noisy", "denoised", "removed"], strip)
        say_labelled("comparison", shown(strip))
    values: dict[str, Any] = {
        "input": str(source),
        "output": str(target),
        "pages": pages,
        "volume": bool(cfg.volume),
        "range": {"low": low, "high": high, "unit": scan.unit, "values_outside_kept": scan.windowed},
        "page": number + 1,  # to which the following values belong
        **facts(result, made_of.judgement),
        "levels": made_of.levels,
    }
    return Denoised(source, target, rms, values)


def shown_range(page: np.ndarray) -> tuple[float, float]:
    """What pictures show of a page in [0, 1]: 0 and 1, or its 0.1 and 99.9 % where these are less than half as far apart.

    A hot pixel, or a type with room for far larger values, would make a black picture of it.

    >>> page = np.linspace(0, 0.2, 10000, dtype=np.float32)
    >>> page[-1] = 1
    >>> [round(value, 3) for value in shown_range(page)], shown_range(5 * page)
    ([0.0, 0.2], (0.0, 1.0))
    """
    low, high = (float(value) for value in np.quantile(page, (0.001, 0.999)))
    return (low, high) if 0 < high - low < 0.5 else (0.0, 1.0)


def _middle(levels: list[float | None]) -> int:
    """Of the pages that were denoised the middle one."""
    denoised = [number for number, found in enumerate(levels) if found is not None]
    return denoised[len(denoised) // 2]


def _page_by_page(task: Task, scan: Scan) -> _Pages:
    count = len(scan)
    pages = np.full(scan.values.shape, np.nan, np.float32)
    levels: list[float | None] = []
    done: dict[int, Result] = {}
    nfe, seconds, refused = 0, 0.0, ""
    with StepProgress(f"denoising {scan.path.name}", part="page" if count > 1 else "tile") as progress:
        for number in range(count):
            pixels = scan.page(number)
            try:
                if np.ptp(pixels) == 0:
                    raise UserError("all values of the page are equal")
                tell = say_labelled if count == 1 else None
                result = restored_of(task, pixels, scan.path.name, progress, tell=tell)
            except (
                UserError,
                ValueError,
            ) as error:  # no noise was found, or one that the model does not know
                if count == 1:
                    raise
                refused = refused or str(error)
                levels.append(None)
                continue
            pages[number] = result.restored.states[-1]
            levels.append(level(result.noise.noise, pages[number]))
            nfe, seconds = max(nfe, result.restored.nfe), seconds + result.restored.seconds
            done[number] = result._replace(restored=RestoredPixels([], 0, 0.0))  # its states are in pages
            if count > 1:
                progress.part_done(number + 1, count)
    if not done:
        raise UserError(f"none of the {count} pages of {scan.path} can be denoised: {refused}")
    number = _middle(levels)
    result = done[number]._replace(restored=RestoredPixels([], nfe, seconds))
    judgement = judgement_of(task, result, scan.page(number), pages[number])
    return _Pages(pages, levels, result, judgement, refused)


def _as_volume(task: Task, scan: Scan) -> _Pages:
    cfg, (bands, _, _, channels) = task.cfg, scan.values.shape
    if bands < 2 or channels != 1:
        what = "one page" if bands < 2 else "colours"
        raise UserError(
            f"{scan.path} has {what}, and a volume several pages of one value: leave volume=true out"
        )
    if task.restorer is None or (task.model is not None and cfg.ckpt is None):
        raise UserError(
            "volume=true needs a model of volumes, ckpt=RUN_DIR/checkpoints/best.ckpt of experiment=cube_score, or "
            "restorer=hyres; volume=false denoises each page with the bundled prior"
        )
    depth = task.model.event_shape[0] if task.model is not None and task.model.event_shape else bands
    if not 2 <= depth <= bands:
        raise UserError(
            f"{cfg.ckpt} models blocks of {depth} pages, and {scan.path} has {bands}: give a model of 2 to "
            f"{bands} (data.bands), or volume=false for a model of images"
        )
    cube = np.concatenate([scan.page(number) for number in range(bands)], axis=-1)  # [H, W, bands]
    found, dead, living = assumed(
        task, cube, lambda cube, tell: _noise_of_cube(task, cube, scan.path.name, tell), say_labelled
    )
    restorer = serving(task.restorer, found.noise)
    starts = sorted(
        {*range(0, bands - depth, max(1, depth // 2)), bands - depth}
    )  # blocks that share half of their pages
    progress = StepProgress(f"denoising {scan.path.name}", len(starts), part="block")

    def restore(cube: np.ndarray) -> RestoredPixels:
        total, count = np.zeros_like(cube), np.zeros(bands, np.float32)
        nfe, seconds = 0, 0.0
        for number, start in enumerate(starts):
            block = slice(start, start + depth)
            restored = restore_pixels(
                restorer,
                task.model,
                cube[..., block],
                found.noise,
                label=task.label,
                seed=cfg.seed,
                tiles=Tiles(cfg.tile, cfg.overlap),
                device=choose_device(cfg.device),
                callback=progress.step,
                warn=say,
            )
            total[..., block] += restored.states[-1]
            count[block] += 1
            nfe, seconds = max(nfe, restored.nfe), seconds + restored.seconds
            progress.part_done(number + 1, len(starts))
        return RestoredPixels([total / count], nfe, seconds)

    with progress:
        restored = restore(cube) if dead is None else restore_around(dead, cube, restore)
    (clean,) = restored.states
    if dead is not None:
        living = np.where(dead, clean, cube)
    observation = Observation(as_observed(living), Identity(), found.noise)
    small = min(cube.shape[:2]) < SMALLEST
    judgement = Judgement(None) if small else by_residual(observation, as_observed(clean))
    levels: list[float | None] = [level(found.noise, clean)] * bands
    pages = np.moveaxis(clean, -1, 0)[..., None]
    return _Pages(pages, levels, Result(found, restorer, restored, dead), judgement)


def _noise_of_cube(task: Task, cube: np.ndarray, name: str, tell: Callable[[str, str], object]) -> Estimate:
    """One noise for all bands, of the mean square of theirs where it is estimated."""
    if task.noise is not None:
        return noise_of(task, cube, name, tell)
    found = estimate_sigma(cube)
    least, most = min(found.per_channel), max(found.per_channel)
    if not found.sigma > 0:
        raise UserError(f"no noise was found in {name}: give sigma=... to denoise it all the same")
    uneven = most > CHANNEL_RATIO * least
    trust, why = (
        ("doubtful", f"its bands have from {least:.3g} to {most:.3g}") if uneven else (found.trust, found.why)
    )
    tell(
        "noise level", f"sigma = {found.sigma:.3f}, mean of {cube.shape[-1]} bands of {name} ({trust}: {why})"
    )
    return Estimate(GaussianNoise(sigma_to_model(found.sigma)), trust, why)
