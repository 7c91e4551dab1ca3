"""``denoise`` on what scanners and microscopes record: ``python -m benchmarks.scanners [--imageio WHEEL] [--pictures DIR]``

The images come with packages: pydicom's test files (CT, MR and ultrasound; the extra ``medical``), scikit-image's
microscope and eye images, and imageio 2.9's CT volume of a stent, of which this takes one slice in sixteen, from the wheel
that ``pip download imageio==2.9.0 --no-deps`` brings (``--imageio``; without it these rows are left out). Nobody has clean
ones, so each result is judged by itself: whether all values lie in the range of the input and what is no measurement is
unchanged, the standard deviation of what was removed over that of the assumed noise, and two looks at its structure.
``correlation`` is that of neighbouring pixels of the residual, largest of both directions, less what the assumed noise has;
``edges`` is the correlation of the residual's magnitude with that of the result's gradient, both smoothed over 5 pixels: 0
where what was removed knows nothing of the picture. The residual is divided by the noise's standard deviation first.
"""

import argparse
import inspect
import json
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_gradient_magnitude, uniform_filter

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from scoreexp.app.commands.denoise import denoise
from scoreexp.data.image_io import read_image
from scoreexp.data.scan_io import read_scan
from scoreexp.data.suffixes import scan_format
from scoreexp.observations import noise as noises

RESULT = Path(__file__).parent / "results" / "scanners.json"
PAGE = DOCS / "scanners.md"
PYDICOM = {
    "CT_small.dcm": "CT, spine, 128 x 128",
    "693_J2KI.dcm": "CT, padding, lossy compression, 512 x 512",
    "MR_small.dcm": "MR, 64 x 64",
    "examples_overlay.dcm": "MR, 12 bits, 484 x 300",
    "JPEG2000.dcm": "scintigraphy, lossy compression, 256 x 1024",
    "examples_rgb_color.dcm": "ultrasound, 320 x 240, colour",
}
WINDOWED = {"CT_small.dcm": [-160.0, 240.0]}  # soft tissue, Hounsfield
OF_WHITE = ("CT_small.dcm", "MR_small.dcm", "examples_overlay.dcm")
SKIMAGE = {
    "cell.png": "phase contrast, a cell, 660 x 550",
    "microaneurysms.png": "retina, 102 x 102",
    "ihc.png": "bright field, stained tissue, 512 x 512, colour",
}
FAINTEST = 0.002  # of the range, noise by which a residual is divided
STENT = "CT volume of a stent, 1 slice in 16"


class Row(NamedTuple):
    name: str
    source: Path
    overrides: list[str]


def rows(folder: Path, wheel: Path | None) -> Iterator[Row]:
    """The files that are there, the volume once page by page and once as a volume."""
    import skimage

    try:
        import pydicom.data
    except ImportError:
        sys.exit("error: pydicom is not installed: pip install 'scoreexp[medical]'")
    for file, name in PYDICOM.items():
        found = next(iter(Path(pydicom.data.__file__).parent.rglob(file)), None)
        if found is None:
            print(f"{file} is not among this pydicom's files: left out")
            continue
        yield Row(name, found, [])
        if file in OF_WHITE:
            yield Row(f"{name}, white noise assumed", found, ["sigma=auto"])
        if file in WINDOWED:
            low, high = WINDOWED[file]
            yield Row(f"{name}, window {low:g} to {high:g} HU", found, [f"window=[{low},{high}]"])
    for file, name in SKIMAGE.items():
        yield Row(name, Path(skimage.__file__).parent / "data" / file, [])
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive, archive.open("imageio/resources/images/stent.npz") as file:
            volume = np.load(file)
            np.save(folder / "stent.npy", volume[volume.files[0]][::16])
        yield Row(STENT, folder / "stent.npy", [])
        yield Row(f"{STENT}, as a volume by HyRes", folder / "stent.npy", ["volume=true", "restorer=hyres"])


def measure(row: Row, folder: Path) -> dict[str, Any]:
    target = folder / f"{len(list(folder.iterdir()))}{row.source.suffix}"
    words = [
        f"input={row.source}",
        f"output={target}",
        "device=cpu",
        "strip=true",
        "residual=true",
        *row.overrides,
    ]
    cfg = composed_config(words)
    (done,) = denoise(cfg)
    told = done.values
    if scan_format(row.source) is not None:
        before, after = (read_scan(path, window=cfg.window) for path in (row.source, target))
        page = told["page"] - 1
        taken = before.taken(before.values[page])
        low, high = before.low, before.high
        outside = [
            int(((a < low) | (a > high))[before.taken(b)].sum())
            for a, b in zip(after.values, before.values, strict=True)
        ]
        changed = [
            int((a != b)[~before.taken(b)].sum()) for a, b in zip(after.values, before.values, strict=True)
        ]
        y, x = (scan.page(page).astype(np.float64) for scan in (before, replace(before, values=after.values)))
    else:
        y, x = (read_image(path).pixels.astype(np.float64) for path in (row.source, target))
        taken, outside, changed = np.ones(y.shape, bool), [int(((x < 0) | (x > 1)).sum())], [0]
    return {
        "name": row.name,
        "noise": told["noise_in_words"],
        "restorer": told["restorer"],
        "sigma": done.sigma,
        "values_out_of_range": sum(outside),
        "kept_values_changed": sum(changed),
        "seconds": told["seconds"],
        **structure(y, x, taken, told["noise"]),
    }


def composed_config(words: list[str]) -> Any:
    """The configuration of ``denoise`` with these words."""
    from hydra import compose, initialize_config_dir

    from scoreexp.app.conf_dir import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("denoise", words)


def structure(y: np.ndarray, x: np.ndarray, taken: np.ndarray, told: dict[str, Any]) -> dict[str, float]:
    """What the residual ``y - x`` of ``[H, W, C]`` in [0, 1] tells of the picture, by its first channel."""
    kind = getattr(noises, told["kind"])
    model = kind(**{key: told[key] for key in inspect.signature(kind.__init__).parameters if key in told})
    variance = model.variance(torch.from_numpy(2 * x[..., :1] - 1).float()).numpy() / 4
    inside = taken[..., :1] & (variance > FAINTEST**2)  # no noise is assumed of black by speckle and counts
    residual = (y - x)[..., :1] / np.sqrt(np.maximum(variance, FAINTEST**2))
    scale = float(np.sqrt(np.mean(np.square(residual[inside]))))
    r = np.where(inside, residual, 0)[..., 0]
    r = r - r.mean()
    own = float(getattr(model, "length", 0.0))
    expected = float(np.exp(-1 / (4 * own**2))) if own > 0 else 0.0  # of neighbours
    along = [float((r[1:] * r[:-1]).mean() / r.var()), float((r[:, 1:] * r[:, :-1]).mean() / r.var())]
    edges = gaussian_gradient_magnitude(x[..., 0], 1.0)
    smooth = [uniform_filter(values, 5)[inside[..., 0]] for values in (np.abs(r), edges)]
    return {
        "removed": scale,
        "correlation": max(abs(found - expected) for found in along),
        "edges": float(np.corrcoef(smooth[0], smooth[1])[0, 1]),
    }


def table(measured: list[dict[str, Any]]) -> str:
    lines = [
        "| image | assumed noise | sigma | removed | correlation | edges | out of range | kept, changed | seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in measured:
        if "refused" in row:
            lines.append(f"| {row['name']} | refused: {row['refused'].partition(':')[0]} |{' |' * 7}")
            continue
        numbers = [f"{row[key]:.3f}" for key in ("sigma",)] + [
            f"{row[key]:.2f}" for key in ("removed", "correlation", "edges")
        ]
        counts = [str(row["values_out_of_range"]), str(row["kept_values_changed"]), f"{row['seconds']:.1f}"]
        lines.append(f"| {' | '.join([row['name'], row['noise'], *numbers, *counts])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imageio", type=Path, help="the wheel of imageio 2.9.0")
    parser.add_argument("--pictures", type=Path, help="folder for the results, to be looked at")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.pictures or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measured = []
        for number, row in enumerate(rows(Path(temporary), args.imageio)):
            (one := folder / f"{number:02d}").mkdir(exist_ok=True)
            try:
                measured.append(measure(row, one))
            except ValueError as error:
                measured.append({"name": row.name, "refused": str(error)})
            print(json.dumps(measured[-1]), flush=True)
            RESULT.write_text(json.dumps({"machine": describe_machine(), "rows": measured}, indent=2) + "\n")
            write_table(PAGE, "benchmarks.scanners", table(measured))


if __name__ == "__main__":
    main()
