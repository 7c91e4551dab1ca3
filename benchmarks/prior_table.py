"""The bundled prior on the standard test images: PSNR and seconds for Gaussian noise of known level, beside PyPI's bm3d.

    python -m benchmarks.prior_table TESTSETS                         # prior alone
    python -m benchmarks.prior_table TESTSETS --bm3d VENV/bin/python  # a virtual environment with bm3d 4.0.3

Noise is drawn for the image's name (seed 0), added in float64 and not clipped unless ``--clipped``; estimates are clipped to
[0, 1] and not rounded; the PSNR of a set is the mean over its images. Published figures are those of the papers named in
docs/denoising.md. Results are stored image by image, so an interrupted run goes on; ``--every 4`` takes every fourth image.
Seconds are of the estimate alone, without start-up and files, with the same number of threads for both.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from scoreexp import prior
from scoreexp.core.streams import generator
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


def by_prior(noisy: np.ndarray, level: int) -> tuple[np.ndarray, float]:
    model = prior.load()
    x = torch.from_numpy(noisy).float().permute(2, 0, 1)[None] * 2 - 1
    factor = model.downsampling_factor
    bottom, right = (-side % factor for side in x.shape[2:])
    start = time.perf_counter()
    with torch.inference_mode():
        padded = torch.nn.functional.pad(x, (0, right, 0, bottom), mode="reflect")
        t = model.schedule.t_of_sigma(torch.tensor([2 * level / 255], dtype=torch.float64))
        estimate = model(padded, t)[..., : x.shape[2], : x.shape[3]]
    seconds = time.perf_counter() - start
    return (estimate[0].permute(1, 2, 0).numpy() + 1) / 2, seconds


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
    """Mean PSNR and seconds over the images that both have, where bm3d was measured."""
    lines = [
        "| images | sigma | prior, dB | bm3d, dB | prior, s | bm3d, s | images of both |",
        "| --- " * 7 + "|",
    ]
    for name in SETS:
        for noise in ("", " clipped"):
            for level in LEVELS:
                ours, theirs = (
                    found.get(f"{name} {level}{noise} {method}", {}) for method in ("prior", "bm3d")
                )
                if not ours:
                    continue
                both = sorted(set(ours) & set(theirs))
                cells = [
                    f"{fmean(v[0] for v in ours.values()):.2f}",
                    "-",
                    f"{fmean(v[1] for v in ours.values()):.2f}",
                    "-",
                    "0",
                ]
                if both:
                    means = [fmean(of[k][i] for k in both) for i in (0, 1) for of in (ours, theirs)]
                    cells = [*(f"{mean:.2f}" for mean in means), str(len(both))]
                lines.append(f"| {name}{noise} | {level} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("testsets", type=Path)
    parser.add_argument("--bm3d", help="Python of a virtual environment that has bm3d")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--clipped", action="store_true")
    parser.add_argument("--again", action="store_true", help="measure the prior anew, as after training")
    args = parser.parse_args()
    methods: dict[str, Callable[[np.ndarray, int], tuple[np.ndarray, float]]] = {"prior": by_prior}
    if args.bm3d:
        methods["bm3d"] = by_bm3d(args.bm3d)
    found = stored()
    if args.again:
        found = {key: value for key, value in found.items() if not key.endswith("prior")}
    for name in SETS:
        for image, pixels in images(args.testsets, name, args.every):
            for level in LEVELS:
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
