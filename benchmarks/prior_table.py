"""The bundled prior on the standard test images: PSNR and seconds for Gaussian noise of known level, beside PyPI's bm3d.

    python -m benchmarks.prior_table TESTSETS                         # prior alone
    python -m benchmarks.prior_table TESTSETS --bm3d VENV/bin/python  # a virtual environment with bm3d 4.0.3

Noise is drawn for the image's name (seed 0), added in float64 and not clipped unless ``--clipped``; estimates are clipped to
[0, 1] and not rounded; the bias of clipped noise is taken off, as the command does; the PSNR of a set is the mean over its
images. Published figures are those of the papers named in
docs/denoising.md. Results are stored image by image, so an interrupted run goes on; ``--every 4`` takes every fourth image.
Seconds are of the estimate alone, without start-up and files, with the same number of threads for both.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from scoreexp import prior
from scoreexp.api.denoise import declipped
from scoreexp.core.ranges import sigma_to_model
from scoreexp.core.streams import generator
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import PosteriorMean
from scoreexp.restorers.images import restore_pixels
from scoreexp.system.atomic import atomic_write
from scoreexp.system.machine import processor

RESULTS = Path(__file__).with_name("results") / "prior.json"
SETS = {"CBSD68": 3, "Kodak24": 3, "Set12": 1}
LEVELS = (15, 25, 50)  # of 255
_BM3D = """
import sys, time, numpy as np, bm3d
noisy, sigma = np.load(sys.argv[1]), float(sys.argv[2])
denoise = bm3d.bm3d_rgb if noisy.ndim == 3 else bm3d.bm3d
denoise(noisy[:64, :64], sigma)
start = time.perf_counter()
estimate = denoise(noisy, sigma)
print(time.perf_counter() - start)
np.save(sys.argv[3], estimate)
"""


def images(testsets: Path, name: str, every: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels ``[H, W, C]`` in [0, 1]."""
    files = sorted(
        p for p in (testsets / name).iterdir() if p.suffix.lower() in (".png", ".tif", ".bmp", ".jpg")
    )
    for file in files[::every]:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB" if SETS[name] == 3 else "L"), np.float64) / 255
        yield file.stem, pixels.reshape(*pixels.shape[:2], -1)


def observed(pixels: np.ndarray, name: str, level: int, clipped: bool) -> np.ndarray:
    stream = generator(0, "prior table", name, level)
    noise = torch.randn(pixels.shape, generator=stream, dtype=torch.float64).numpy()
    noisy = pixels + level / 255 * noise
    return noisy.clip(0, 1) if clipped else noisy


def by_prior(evaluations: int) -> Callable[[np.ndarray, int], tuple[np.ndarray, float]]:
    model, restorer = prior.load(), PosteriorMean(evaluations)

    def denoise(noisy: np.ndarray, level: int) -> tuple[np.ndarray, float]:
        noise = GaussianNoise(sigma_to_model(level / 255))
        result = restore_pixels(declipped(restorer, noise, noisy), model, noisy.astype(np.float32), noise)
        return result.states[-1], result.seconds

    return denoise


def by_bm3d(python: str) -> Callable[[np.ndarray, int], tuple[np.ndarray, float]]:
    def denoise(noisy: np.ndarray, level: int) -> tuple[np.ndarray, float]:
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "noisy.npy"), Path(folder, "estimate.npy")
            np.save(given, noisy if noisy.shape[2] == 3 else noisy[..., 0])
            command = [python, "-c", _BM3D, str(given), str(level / 255), str(made)]
            seconds = float(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
            )
            return np.load(made).reshape(noisy.shape), seconds

    return denoise


def psnr(estimate: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(estimate.clip(0, 1) - clean).mean()))


def stored() -> dict[str, dict[str, list[float]]]:
    return json.loads(RESULTS.read_text())["images"] if RESULTS.exists() else {}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Mean PSNR and seconds of each set, and of the images of which bm3d was measured too."""
    lines = [
        "| images | sigma | one evaluation | default | seconds of both | images beside bm3d "
        "| default | bm3d | seconds of both |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for name in SETS:
        for noise in ("", " clipped"):
            for level in LEVELS:
                one, default, theirs = (
                    found.get(f"{name} {level}{noise} {method}", {})
                    for method in ("prior", "default", "bm3d")
                )
                if not one:
                    continue
                cells = [
                    _mean(one, one, 0),
                    _mean(default, default, 0),
                    f"{_mean(one, one, 1)}, {_mean(default, default, 1)}",
                ]
                both = sorted(set(default) & set(theirs))
                seconds = f"{_mean(default, both, 1)}, {_mean(theirs, both, 1)}"
                beside = [str(len(both)), _mean(default, both, 0), _mean(theirs, both, 0), seconds]
                cells += beside if both else ["–"] * len(beside)
                lines.append(f"| {name}{noise} | {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _mean(cell: dict[str, list[float]], names: Iterable[str], column: int) -> str:
    values = [cell[name][column] for name in names]
    return f"{fmean(values):.2f}" if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("testsets", type=Path)
    parser.add_argument("--bm3d", help="Python of a virtual environment that has bm3d")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="of 255")
    parser.add_argument("--clipped", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure the prior anew, as after training")
    args = parser.parse_args()
    methods = {"prior": by_prior(1), "default": by_prior(8)}
    if args.bm3d:
        methods["bm3d"] = by_bm3d(args.bm3d)
    found = stored()
    if args.again:
        found = {key: value for key, value in found.items() if key.endswith("bm3d")}
    for name in args.sets:
        for image, pixels in images(args.testsets, name, args.every):
            for level in args.levels:
                noisy = observed(pixels, image, level, args.clipped)
                for method, denoise in methods.items():
                    cell = found.setdefault(f"{name} {level}{' clipped' * args.clipped} {method}", {})
                    if image not in cell:
                        estimate, seconds = denoise(noisy, level)
                        cell[image] = [round(psnr(estimate, pixels), 4), round(seconds, 4)]
            with atomic_write(RESULTS) as temporary:
                facts = {"processor": processor(), "threads": torch.get_num_threads(), "images": found}
                temporary.write_text(json.dumps(facts, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
