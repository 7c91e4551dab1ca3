"""The files of a command on the user's own images: an image or a folder in, and the same out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from scoreexp.app.early_checks import require_input
from scoreexp.app.terminal import say_labelled
from scoreexp.core.errors import UserError
from scoreexp.data.image_io import WRITABLE, Picture, check_writable, list_images, read_image
from scoreexp.data.suffixes import READABLE, SCANS, named_after, scan_format
from scoreexp.runs.directory import shown

MAX_NAMED = 3  # files in the last line about those that failed
MAX_GRAY = 0.2  # of a mask, whose edges may be smooth

T = TypeVar("T")


def input_and_output(
    source: Path, output: str | None, done: str, *, scans: bool = False
) -> list[tuple[Path, Path]]:
    """Pairs of input and output file; a folder's tree and names are kept.

    Args:
        source: image or folder.
        output: that is asked for, or None for one beside the input.
        done: what is added to the input's name there, such as ``_denoised``.
        scans: whether files of measured values are taken too.

    Raises:
        UserError: there is no input, or two of them would be written to one file.
    """
    require_input(source)
    target = None if output is None else Path(output).expanduser()
    if not source.is_dir():
        if target is not None and target.is_dir():
            return [(source, writable_name(target / source.name, scans))]
        beside = writable_name(named_after(source, done), scans)
        if target is None and scan_format(source) is None and beside.suffix.lower() not in WRITABLE:
            raise UserError(
                f"input={source}: images with the suffix {source.suffix or 'none'} are not read, those with "
                f"{', '.join(READABLE)} are: convert it to PNG, or give output=FILE.png where only the name is another"
            )
        return [(source, target or beside)]
    folder = output_folder(source, output, done)
    found = list_images(source, more=SCANS if scans else ())
    names = [path for path in found if not path.resolve().is_relative_to(folder.resolve())]
    if len(names) < len(found):
        if not names:
            raise UserError(f"input={source} is the output folder itself: give output=DIR outside of it")
        say_labelled(
            "note", f"{len(found) - len(names)} images below the output {shown(folder)} are left out"
        )
    pairs = [(path, writable_name(folder / path.relative_to(source), scans)) for path in names]
    first: dict[Path, Path] = {}
    for path, made in pairs:
        if (other := first.setdefault(made, path)) is not path:
            raise UserError(
                f"{shown(other)} and {shown(path)} would both be written to {shown(made)}: rename one of them"
            )
    return pairs


def output_folder(source: Path, output: str | None, done: str) -> Path:
    """Where the results of an input folder go."""
    return source.with_name(source.name + done) if output is None else Path(output).expanduser()


def writable_name(path: Path, scans: bool = False) -> Path:
    """``path``, as PNG where its format can be read but not written."""
    is_written = path.suffix.lower() in WRITABLE or (scans and path.suffix.lower() not in READABLE)
    return path if is_written else path.with_suffix(".png")


def read_mask(key: str, path: str) -> np.ndarray:
    """The picture ``[H, W, C]`` of a mask, in [0, 1].

    Raises:
        UserError: it is no mask: too much of it is neither black nor white.
    """
    pixels = read_image(Path(path).expanduser()).pixels
    gray = float(((pixels > 0.25) & (pixels < 0.75)).mean())
    if gray > MAX_GRAY:
        raise UserError(
            f"{key}={path} is no mask, {gray:.0%} of it is gray: give a picture in black and white"
        )
    return pixels


def require_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise UserError(f"output {path} exists: add overwrite=true to replace it, or give another output")


def require_writable(path: Path, overwrite: bool, like: Picture | None = None) -> None:
    require_absent(path, overwrite)
    check_writable(path, like=like, overwrite=overwrite)


def with_each(
    pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], T]
) -> tuple[list[T], list[Path]]:
    """What ``work`` makes of each input and output, and the inputs that failed.

    One bad file in a folder does not end the batch: the error is printed. The error of a single file is raised.
    """
    done: list[T] = []
    failed: list[Path] = []
    for source, target in pairs:
        try:
            done.append(work(source, target))
        except (ValueError, OSError, FloatingPointError) as error:
            if len(pairs) == 1:
                raise
            failed.append(source)
            said = str(error) if str(source) in str(error) else f"{shown(source)}: {error}"
            say_labelled("failed", said)
    return done, failed


def require_none_failed(failed: Sequence[Path], count: int) -> None:
    """Refuse to end well where some of ``count`` images failed, naming the first of them."""
    if failed:
        more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
        names = ", ".join(shown(path) for path in failed[:MAX_NAMED])
        raise UserError(f"{len(failed)} of {count} images failed: {names}{more} (see above)")
