"""Photographs with real noise and no clean reference: ``python -m benchmarks.real_noise TESTSETS/RNI15 --docs``

``scoreexp.denoise`` takes the folder as a user would, in one call, and nothing is told of the noise. Of each picture the
table has the noise that was estimated and what was done; of the whole residual, noisy minus denoised, its largest mean of a
channel (``shift``, units of 1/255) and its spectrum: the power in the lower, middle and upper third of the frequencies up to
0.5 cycles per pixel, in units of their mean (white noise: 1, 1, 1; texture that was lost raises the first).

    --keep DIR       where results, strips and residuals stay to be looked at; by default a temporary folder
    --names NAME ... only these pictures
    --bm3d PYTHON    of a virtual environment with bm3d 4.0.3: its result of the same level beside ours (DIR/beside_NAME.png)
    --docs           write the table into docs/denoising.md
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import DOCS, write_table
from benchmarks.prior_table import by_bm3d
from scoreexp.data.image_io import list_images, read_image
from scoreexp.figures.images import comparison

SHOWN = 320  # pixels of a side beside bm3d
HEADER = """\
| picture | noise, estimated | trust | restorer | removed | correlations | shift, 1/255 | spectrum | s |
| --- | --- | --- | --- | ---: | ---: | ---: | --- | ---: |"""


def spectrum(residual: np.ndarray) -> list[float]:
    """Power of ``residual [H, W, C]`` in each third of the frequencies, in units of their mean."""
    power = np.square(np.abs(np.fft.fft2(residual - residual.mean((0, 1)), axes=(0, 1)))).mean(-1)
    down, right = (np.fft.fftfreq(n) for n in power.shape)
    frequency = np.maximum(np.abs(down)[:, None], np.abs(right))
    thirds = [(frequency > low) & (frequency <= low + 1 / 6) for low in (0, 1 / 6, 2 / 6)]
    return [float(power[third].mean() / power[frequency > 0].mean()) for third in thirds]


def row(values: dict[str, Any], noisy: np.ndarray, clean: np.ndarray) -> str:
    residual, judged = noisy - clean, values["residual"] or {"scale": np.nan, "correlation": np.nan}
    return (
        f"| {Path(values['input']).stem} | {values['noise_in_words']} | {values['trust']} | {values['restorer']} "
        f"| {judged['scale']:.2f} | {judged['correlation']:.2f} | {255 * np.abs(residual.mean((0, 1))).max():.2f} "
        f"| {', '.join(f'{share:.2f}' for share in spectrum(residual))} | {values['seconds']:.1f} |"
    )


def beside(python: str, values: dict[str, Any], noisy: np.ndarray, clean: np.ndarray, path: Path) -> None:
    """The middles of the picture, of ours and of bm3d's, which is given the level that was estimated."""
    level = values["sigma"]
    theirs, seconds = by_bm3d(python)(noisy.astype(np.float64), 255 * level)
    height, width = noisy.shape[:2]
    top, left = (max(0, (n - SHOWN) // 2) for n in (height, width))
    cut = (slice(top, top + SHOWN), slice(left, left + SHOWN))
    titles = [
        "noisy",
        f"denoised, {values['seconds']:.1f} s",
        f"bm3d, sigma {255 * level:.1f}, {seconds:.1f} s",
    ]
    comparison([noisy[cut], clean[cut], theirs[cut]], titles, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--names", nargs="+")
    parser.add_argument("--bm3d")
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        given, made = Path(temporary, "noisy"), asked.keep or Path(temporary, "denoised")
        given.mkdir()
        for path in list_images(asked.folder):
            if asked.names is None or path.stem in asked.names:
                (given / path.name).symlink_to(path.resolve())
        command = [
            sys.executable,
            "-m",
            "scoreexp.denoise",
            f"input={given}",
            f"output={made}",
            "overwrite=true",
        ]
        subprocess.run([*command, "device=cpu", "strip=true", "residual=true"], check=True)
        found = json.loads((made / "denoised.json").read_text())["pictures"]
        rows = []
        for values in found:
            noisy, clean = (read_image(Path(values[key])).pixels for key in ("input", "output"))
            rows.append(row(values, noisy, clean))
            if asked.bm3d:
                beside(asked.bm3d, values, noisy, clean, made / f"beside_{Path(values['input']).stem}.png")
    table = "\n".join([HEADER, *rows])
    print(table)
    if asked.docs:
        write_table(DOCS / "denoising.md", "real_noise", table)


if __name__ == "__main__":
    main()
