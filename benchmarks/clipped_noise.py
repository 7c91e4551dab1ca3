"""What clipping costs, as in pictures of 8 bits: ``python -m benchmarks.clipped_noise TESTSETS --docs``

White Gaussian noise is added to images of CBSD68 and removed by the bundled prior: as it is, and clipped to [0, 1] and
rounded to 8 bits. *as it is*: the restorer that is usual for unclipped noise (of known level); *clipped*: the same of the
picture of 8 bits; *corrected*: ``Declipped``, which ``scoreexp.denoise`` takes by itself; *nothing given*: the same with
level and law estimated from the picture of 8 bits. PSNR in dB, the mean over the images; *clipped values*: the share that is
0 or 1.

    --count N     images, evenly spaced (default 6)
    --evaluations N    of the prior (default 1; the command's default for small images is 8, some 0.2 dB better throughout)
    --docs        write the table into docs/denoising.md
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import DOCS, write_table
from benchmarks.prior_table import images, observed, psnr
from scoreexp import prior
from scoreexp.api.denoise import declipped
from scoreexp.core.ranges import sigma_to_model
from scoreexp.observations import GaussianNoise, NoiseModel
from scoreexp.observations.noise.estimate import estimate
from scoreexp.restorers import PosteriorMean, Restorer
from scoreexp.restorers.images import restore_pixels
from scoreexp.restorers.usual import serving

LEVELS = (15, 25, 50)  # of 255
COLUMNS = ("clipped values", "noisy", "as it is", "clipped", "corrected", "nothing given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("testsets", type=Path)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--evaluations", type=int, default=1)
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = prior.load()

    def result(pixels: np.ndarray, noise: NoiseModel, restorer: Restorer) -> np.ndarray:
        return restore_pixels(restorer, model, pixels.astype(np.float32), noise).states[-1]

    chosen = list(images(asked.testsets, "CBSD68", 1))
    chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, asked.count).round().astype(int)]
    lines = [f"| sigma | {' | '.join(COLUMNS)} |", "| ---: " * (len(COLUMNS) + 1) + "|"]
    for level in LEVELS:
        rows = []
        known, plain = GaussianNoise(sigma_to_model(level / 255)), PosteriorMean(asked.evaluations)
        for name, clean in chosen:
            whole = observed(clean, name, level, clipped=False)
            stored = (255 * whole.clip(0, 1)).round() / 255
            guess = estimate(stored).noise
            made = [
                result(whole, known, plain),
                result(stored, known, plain),
                result(stored, known, declipped(plain, known, stored)),
                result(stored, guess, declipped(serving(plain, guess), guess, stored)),
            ]
            share = float(((stored == 0) | (stored == 1)).mean())
            rows.append([share, *(psnr(x, clean) for x in (stored, *made))])
            print(name, level, guess, " ".join(f"{value:.3f}" for value in rows[-1]), flush=True)
        share, *values = np.mean(rows, axis=0)
        lines.append(f"| {level} | {share:.1%} | {' | '.join(f'{value:.2f}' for value in values)} |")
    table = "\n".join(lines)
    print(table)
    if asked.docs:
        what = f"Mean over {len(chosen)} images; evaluations of the prior: {asked.evaluations}."
        write_table(DOCS / "denoising.md", "clipped_noise", f"{what}\n\n{table}")


if __name__ == "__main__":
    main()
