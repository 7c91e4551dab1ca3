"""Restorers and assumed noises side by side on the user's own noisy pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from scoreexp.api.denoise import chosen_restorer, estimated, judged, middle
from scoreexp.app.commands.restore import measured, reference_of
from scoreexp.app.commands.restore_comparison import read_conf
from scoreexp.app.early_checks import require_input
from scoreexp.app.picture_files import require_none_failed, with_each
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import prior_of_pictures
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.construct import construct, locate
from scoreexp.core.errors import UserError
from scoreexp.data.image_io import list_images, read_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations.noise.estimate import LAWS, Estimate
from scoreexp.restorers.images import restore_pixels
from scoreexp.runs.directory import shown
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json

USUAL, ESTIMATED = "usual", "estimated"  # beside the names of conf/restorer and conf/noise
COLUMNS = 4  # of the strip


class Row(NamedTuple):
    """What a restorer made of one picture, or the means over several.

    Attributes:
        restorer: name of conf/restorer, or ``usual``.
        assumed: name of conf/noise, or ``estimated``.
        picture: its file; of means, how many of the pictures were served.
        noise: in words, with its parameters; of means over pictures empty.
        kind: class of the noise.
        parameters: of the noise, in the units of the model.
        trust: in the estimate, and ``why``.
        why: see there.
        removed: share of the noise.
        correlation: how far those of the residual are from the noise's.
        expected: PSNR in dB, without a reference.
        by: how it is known.
        psnr: in dB, against the reference.
        ssim: the same.
        seconds: of the restorer.
        reason: why there is no result.
    """

    restorer: str
    assumed: str
    picture: str
    noise: str = ""
    kind: str = ""
    parameters: dict[str, float] = {}  # noqa: RUF012
    trust: str = ""
    why: str = ""
    removed: float | None = None
    correlation: float | None = None
    expected: float | None = None
    by: str | None = None
    psnr: float | None = None
    ssim: float | None = None
    seconds: float | None = None
    reason: str | None = None


def compare(cfg: DictConfig) -> list[Row]:
    """Compare ``cfg.restorers`` under ``cfg.noises``; see ``conf/compare_denoising.yaml``.

    One bad picture in a folder does not end the comparison; it is named at the end and makes the exit code 1.

    Raises:
        UserError: a name is not one of conf/, nothing is named, or pictures failed.
    """
    for key, group, own in (("restorers", "restorer", USUAL), ("noises", "noise", ESTIMATED)):
        if not (names := list(cfg[key])):
            raise UserError(f"{key}=[] names none: give some, such as {key}=[{own}]")
        for name in names:
            if name != own:
                read_conf(group, name)
    source = require_input(cfg.input)
    folder = Path(cfg.run_dir)
    paths = list_images(source)[: cfg.count] if source.is_dir() else [source]
    stems = [path.stem for path in paths]
    pairs = []
    for path in paths:
        place = path.relative_to(source).parent if source.is_dir() else Path()
        name = path.stem if stems.count(path.stem) == 1 else path.name
        pairs.append((path, folder / place / f"{name}_compared.png"))
    needs_model = any(name == USUAL or _restorer(name).needs_model for name in cfg.restorers)
    model = prior_of_pictures(cfg) if needs_model else None
    rows: list[Row] = []

    def work(source: Path, target: Path) -> None:
        rows.extend(_compared(cfg, model, source, target))
        write_json(folder / "denoisers.json", {"seed": cfg.seed, "rows": [row._asdict() for row in rows]})
        say_labelled("strip", shown(target))

    done, failed = with_each(pairs, work)
    for line in table(rows if len(pairs) == 1 else means(rows)).splitlines():
        say(line)
    if done:
        say_labelled("values", shown(folder / "denoisers.json"))
    require_none_failed(failed, len(pairs))
    return rows


def _restorer(name: str) -> Any:
    return construct(read_conf("restorer", name), "restorer")


def assumption(name: str, pixels: np.ndarray) -> Estimate:
    """The noise of an image ``[H, W, C]`` in [0, 1] where ``name`` of conf/noise is assumed, or ``estimated``.

    A law that cannot be estimated has the parameters of its file.

    Raises:
        ValueError: the image shows no noise, or too few counts.
    """
    if name == ESTIMATED:
        return estimated(pixels)
    node = read_conf("noise", name)
    law = locate(node["_target_"])
    return (
        estimated(pixels, law) if law in LAWS else Estimate(construct(node, "noise"), "good", "of its file")
    )


def _compared(cfg: DictConfig, model: DenoiserBase | None, source: Path, target: Path) -> list[Row]:
    """The rows of one picture, whose strip is written."""
    pixels = read_image(source, white_level=cfg.white_level).pixels
    reference = reference_of(cfg, source)
    if reference is not None and reference.shape != pixels.shape:
        raise UserError(
            f"the reference of {shown(source)} has shape {reference.shape}, the image {pixels.shape}: give one of its own"
        )
    cut = middle(pixels)
    panels, titles = [pixels[cut]], ["noisy"]
    if reference is not None:
        panels, titles = [*panels, reference[cut]], [*titles, "reference"]
    rows: list[Row] = []
    known: dict[tuple[Any, ...], tuple[Row, np.ndarray]] = {}  # two assumptions may come to one
    for assumed in cfg.noises:
        try:
            found = assumption(assumed, pixels)
        except ValueError as error:
            rows += [Row(name, assumed, source.name, reason=str(error)) for name in cfg.restorers]
            say_labelled("note", f"{assumed}: {error}")
            continue
        say_labelled("noise", f"{assumed}: {found.noise} ({found.trust}: {found.why})")
        noise = found.noise
        parameters = noise.parameters()
        for name in cfg.restorers:
            key = (name, type(noise), *parameters.values())
            row = Row(
                name,
                assumed,
                source.name,
                str(noise),
                type(noise).__name__,
                parameters,
                found.trust,
                found.why,
            )
            if key not in known:
                try:
                    known[key] = _denoised(cfg, model, name, row, found, pixels, reference)
                except (ValueError, FloatingPointError) as error:
                    rows.append(row._replace(reason=str(error)))
                    say_labelled("note", f"{name} does not serve {assumed}: {error}")
                    continue
            made, clean = known[key]
            rows.append(made._replace(assumed=assumed, trust=found.trust, why=found.why))
            panels.append(clean[cut])
            titles.append(f"{name}, {assumed}{_in_a_title(made)}")
    from scoreexp.figures.images import comparison  # matplotlib

    comparison(panels, titles, target, columns=COLUMNS)
    return rows


def _denoised(
    cfg: DictConfig,
    model: DenoiserBase | None,
    name: str,
    row: Row,
    found: Estimate,
    pixels: np.ndarray,
    reference: np.ndarray | None,
) -> tuple[Row, np.ndarray]:
    noise = found.noise
    restorer = chosen_restorer(None if name == USUAL else _restorer(name), noise, pixels, model)
    prior = model if restorer.needs_model else None
    with StepProgress(f"{row.picture}: {name}, {row.assumed}", part="tile") as progress:
        restored = restore_pixels(
            restorer,
            prior,
            pixels,
            noise,
            seed=cfg.seed,
            device=choose_device(cfg.device),
            callback=progress.step,
            progress=progress.part_done,
        )
    clean = restored.states[-1]
    told = judged(restorer, prior, pixels, clean, noise, is_known=False, seed=cfg.seed)
    residual = told.residual
    values = {} if reference is None else measured(clean, reference)
    return row._replace(
        removed=None if residual is None else residual.scale,
        correlation=None if residual is None else residual.correlation,
        expected=told.psnr,
        by=told.by,
        psnr=values.get("psnr"),
        ssim=values.get("ssim"),
        seconds=restored.seconds,
    ), clean


def _in_a_title(row: Row) -> str:
    if row.psnr is not None:
        return f"\n{row.psnr:.2f} dB"
    return "" if row.removed is None else f"\n{row.removed:.2f} of the noise removed"


def means(rows: Sequence[Row]) -> list[Row]:
    """A row for each restorer and assumed noise: the means over the pictures that were served.

    >>> a, b = Row("tv", "gaussian", "a.png", seconds=1.0), Row("tv", "gaussian", "b.png", reason="too small")
    >>> (row,) = means([a, b])
    >>> row.picture, row.seconds, row.reason
    ('1 of 2', 1.0, None)
    """
    found = []
    for restorer, assumed in dict.fromkeys((row.restorer, row.assumed) for row in rows):
        mine = [row for row in rows if (row.restorer, row.assumed) == (restorer, assumed)]
        served = [row for row in mine if row.reason is None]
        values: dict[str, Any] = {}
        for key in ("removed", "correlation", "expected", "psnr", "ssim", "seconds"):
            numbers = [value for row in served if (value := getattr(row, key)) is not None]
            values[key] = fmean(numbers) if numbers else None
        kinds = sorted({row.kind for row in served})
        found.append(
            Row(
                restorer,
                assumed,
                f"{len(served)} of {len(mine)}",
                noise=", ".join(kinds),
                by=next((row.by for row in served if row.by), None),
                reason=None if served else mine[0].reason,
                **values,
            )
        )
    return found


def table(rows: Sequence[Row]) -> str:
    """Markdown; the columns of a reference where there is one.

    >>> print(table([Row("tv", "gaussian", "a.png", "white, sigma 0.1", removed=0.97, correlation=0.02, seconds=0.5)]))
    | image | restorer | assumed | noise | removed | correlations | expected PSNR | by | s |
    | --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: |
    | a.png | tv | gaussian | white, sigma 0.1 | 0.97 | 0.02 | – | – | 0.50 |
    """
    reference = any(row.psnr is not None for row in rows)
    names = ["image", "restorer", "assumed", "noise", "removed", "correlations", "expected PSNR", "by"]
    names += ["PSNR", "SSIM"] * reference + ["s"]
    words = {"image", "restorer", "assumed", "noise", "by"}
    lines = [
        f"| {' | '.join(names)} |",
        f"| {' | '.join('---' if name in words else '---:' for name in names)} |",
    ]
    for row in rows:
        cells = [row.picture, row.restorer, row.assumed, row.noise or "–"]
        cells += [_number(row.removed), _number(row.correlation), _number(row.expected), row.by or "–"]
        cells += [_number(row.psnr), _number(row.ssim, 3)] * reference + [_number(row.seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
