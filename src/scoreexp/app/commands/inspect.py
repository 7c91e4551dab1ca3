"""A look at a data set: counts, shapes, values and a contact sheet."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from scoreexp.app.composition import shell_command
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_uint8, to_unit
from scoreexp.data import DataModule, Folder, Speech
from scoreexp.data.cache import verify
from scoreexp.runs.directory import shown
from scoreexp.system.atomic import atomic_write
from scoreexp.system.json_files import write_json

_ON_SHEET = 64
_BINS = 16
_SHEET_SIDE = 64  # smaller images are enlarged to about this many pixels, without smoothing


def inspect_data(cfg: DictConfig) -> dict[str, Any]:
    """Describe ``cfg.data`` on the terminal and in ``cfg.run_dir``: ``data.json`` and ``contact_sheet.png``.

    Every checksum of a prepared data set is compared on the way.

    Returns:
        What ``data.json`` holds.
    """
    data: DataModule = instantiate(cfg.data)
    counts = {}
    for name in ("train", "val", "test"):
        split = data.split(name)
        if isinstance(split.values, np.memmap):
            verify(Path(str(split.values.filename)))
        counts[name] = len(split)
    samples = _spaced(data, 1024)
    statistics = data.value_statistics
    share, edges = np.histogram(samples.numpy(), bins=_BINS, range=(-1, 1), weights=None)
    found: dict[str, Any] = {
        "data": type(data).__name__,
        "event_shape": list(data.event_shape),
        "samples": {**counts, "trained on": len(data.train_positions)},
        "classes": _class_counts(data),
        "values": statistics._asdict(),
        "histogram": {"edges": edges.tolist(), "share": (share / share.sum()).tolist()},
    }
    run_dir = Path(cfg.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "data.json", found)
    _print(found)
    if isinstance(data, Folder):
        survey = data.survey()
        print("sizes         ", _most_common(survey.sizes, lambda size: f"{size[0]} x {size[1]}"))
        print("modes         ", _most_common(survey.modes, str))
    for warning in data.warnings():
        print(f"warning        {warning}")
    if isinstance(kind_of(data.event_shape), Images):
        pictures = _spaced(data, _ON_SHEET)
        contact_sheet(
            amplitudes(pictures) if isinstance(data, Speech) else pictures, run_dir / "contact_sheet.png"
        )
        print(f"contact sheet  {shown(run_dir / 'contact_sheet.png')}")
    print(f"details        {shown(run_dir / 'data.json')}")
    keys = [argument for argument in sys.argv[1:] if argument.startswith("data")]
    print(f"try next       {shell_command('scoreexp.train', keys)}", flush=True)
    return found


def contact_sheet(x: Tensor, path: Path) -> None:
    """Write the images ``x[B, C, H, W]`` in [-1, 1] side by side in a near-square grid, of bands some (``visible``)."""
    columns = math.ceil(math.sqrt(len(x)))
    enlarge = max(1, _SHEET_SIDE // x.shape[-1])
    pixels = np.moveaxis(to_uint8(to_unit(x)).numpy(), 1, -1)
    if pixels.shape[-1] not in (1, 3):
        from scoreexp.figures.images import visible  # matplotlib, for bands alone

        pixels = visible(pixels).reshape(*pixels.shape[:3], -1)
    pixels = pixels.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    height, width = (side + 2 for side in pixels.shape[1:3])
    rows = math.ceil(len(x) / columns)
    sheet = np.full((rows * height, columns * width, pixels.shape[3]), 255, dtype=np.uint8)
    for number, picture in enumerate(pixels):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height - 2, left : left + width - 2] = picture
    with atomic_write(path) as temporary:
        Image.fromarray(sheet.squeeze(2) if sheet.shape[2] == 1 else sheet).save(temporary)


def amplitudes(x: Tensor) -> Tensor:
    """Spectrograms ``x[B, 2, F, T]`` of real and imaginary parts as pictures ``[B, 1, F, T]`` in [-1, 1]: white is the
    largest amplitude of all, low frequencies are at the bottom.

    >>> amplitudes(torch.tensor([[[[3.0], [0.0]], [[4.0], [0.0]]]])).flatten()
    tensor([-1.,  1.])
    """
    found = x.square().sum(1, keepdim=True).sqrt().flip(2)
    return 2 * found / found.max().clamp(min=1e-12) - 1


def _spaced(data: DataModule, most: int) -> Tensor:
    positions = data.train_positions
    spaced = np.linspace(0, len(positions) - 1, min(len(positions), most)).astype(np.int64)
    return data.split("train").samples(positions[spaced])


def _class_counts(data: DataModule) -> list[int] | None:
    labels = data.split("train").classes(data.train_positions)
    return None if labels is None else torch.bincount(labels, minlength=data.num_classes or 0).tolist()


def _most_common(counter: Any, describe: Any) -> str:
    return ", ".join(f"{describe(kind)} ({count})" for kind, count in counter.most_common(5))


def _print(found: dict[str, Any]) -> None:
    samples, values = found["samples"], found["values"]
    print(f"data           {found['data']}, samples of shape {tuple(found['event_shape'])}")
    print(
        f"samples        {samples['train']} train ({samples['trained on']} in use), "
        f"{samples['val']} val, {samples['test']} test"
    )
    if found["classes"] is not None:
        print(f"per class      {found['classes']}")
    rounded = {name: [f"{value:+.3f}" for value in values[name]] for name in ("mean", "std")}
    print(f"mean, std      {' '.join(rounded['mean'])}, {' '.join(rounded['std'])} (in [-1, 1], per channel)")
    print(f"extremes       {values['minimum']:+.3f} to {values['maximum']:+.3f}")
    tallest = max(found["histogram"]["share"])
    print("histogram")
    for edge, share in zip(found["histogram"]["edges"], found["histogram"]["share"]):
        print(f"  {edge:+.3f}  {'#' * round(40 * share / tallest):<40}  {share:6.2%}")
