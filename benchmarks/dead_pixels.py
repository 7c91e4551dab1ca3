"""Dead pixels in noisy pictures: ``python -m benchmarks.dead_pixels TESTSETS --docs``

White Gaussian noise of known level is added to images of the test sets and to a rendered page of small print, clipped and
rounded to 8 bits. *false*: values that ``find_dead_pixels`` takes for dead where none is, in a million; *pictures*: how many
have any. Then one pixel in 500, in all channels, is stuck at black or white: *found* is the share of them that it finds.
PSNR of the default restorer in dB, mean squared errors averaged over the pictures, at these pixels and over the whole, of
squares from their middle: *alive* without dead pixels, *left in*, *auto* and *mask* (all of them are given).

    --every N    takes every N-th image of a set (default 6)
    --side N     of the squares in pixels (default 128)
    --docs       write the table into docs/denoising.md
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.pages import DOCS, write_table
from benchmarks.prior_table import SETS, images
from scoreexp.api.denoise import denoise
from scoreexp.core.ranges import sigma_to_model
from scoreexp.observations import GaussianNoise, find_dead_pixels
from scoreexp.restorers.images import as_observed

LEVELS = (5, 15, 25)  # of 255
SHARE = 1 / 500
RESULTS = ("alive", "left in", "auto", "mask")
COLUMNS = (
    "false",
    "pictures",
    "found",
    f"at them: {RESULTS[0]}",
    *RESULTS[1:],
    f"whole: {RESULTS[0]}",
    *RESULTS[1:],
)
PRINT = 'If it is set in small print, "i" and "." have dots... 3.14159; x:y'


def page() -> np.ndarray:
    """Small print, ``[H, W, 1]`` in [0, 1]."""
    image = Image.new("L", (384, 256), 255)
    for line in range(17):
        place = (4, 4 + 15 * line)
        ImageDraw.Draw(image).text(place, PRINT, fill=0, font=ImageFont.load_default(9 + line % 4))
    return np.asarray(image, np.float64)[..., None] / 255


def pictures(testsets: Path, name: str, every: int) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((name, page()),) if name == "print" else images(testsets, name, every)


def middle(pixels: np.ndarray, side: int) -> np.ndarray:
    top, left = ((n - min(n, side)) // 2 for n in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def row(testsets: Path, name: str, level: int, asked: Any) -> str:
    rng, noise = np.random.default_rng(0), GaussianNoise(sigma_to_model(level / 255))
    false, values, with_any, found, stuck, count = 0, 0, 0, 0, 0, 0
    errors: list[list[float]] = []
    for _, clean in pictures(testsets, name, asked.every):
        noisy = clean + level / 255 * rng.standard_normal(clean.shape)
        y = ((255 * noisy).round().clip(0, 255) / 255).astype(np.float32)
        dead = rng.random(clean.shape[:2]) < SHARE
        bad = np.where(dead[..., None], rng.integers(0, 2, clean.shape[:2])[..., None], y).astype(np.float32)
        alive, spoiled = (find_dead_pixels(as_observed(part)[0], noise).numpy() for part in (y, bad))
        false, values, count = false + int(alive.sum()), values + y.size, count + 1
        with_any += bool(alive.any())
        found, stuck = found + int((spoiled.any(0) & dead).sum()), stuck + int(dead.sum())
        x, y, bad, dead = (middle(part, asked.side) for part in (clean, y, bad, dead))
        made = [denoise(y, noise=noise), *(denoise(bad, noise=noise, dead=d) for d in (None, "auto", dead))]
        squares = [np.square(part - x) for part in made]
        errors.append([square[dead].mean() for square in squares] + [square.mean() for square in squares])
    psnr = -10 * np.log10(np.mean(errors, axis=0))
    cells = [f"{1e6 * false / values:.1f}", f"{with_any} of {count}", f"{found / stuck:.2f}"]
    return f"| {name} | {level} | {' | '.join([*cells, *(f'{value:.2f}' for value in psnr)])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("testsets", type=Path)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"| images | sigma | {' | '.join(COLUMNS)} |", "| --- |" + " ---: |" * (len(COLUMNS) + 1)]
    for name in (*SETS, "print"):
        for level in LEVELS:
            lines.append(row(asked.testsets, name, level, asked))
            print(lines[-1], flush=True)
    if asked.docs:
        what = f"Every {asked.every}th image of a set, PSNR of squares of {asked.side} pixels."
        write_table(DOCS / "denoising.md", "dead_pixels", f"{what}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
