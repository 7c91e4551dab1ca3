"""Noise estimated from one picture: ``python -m benchmarks.noise_estimation [--folder DIR] [--json [PATH]]``

Each noise is drawn on each picture, the photographs bundled with scikit-image or those of a folder, and estimated. Of each
noise: how often it was estimated with trust, how often the right model was then named, and the error of its parameters
(the largest of a picture; Poisson and Poisson-Gaussian are one family, the gain counts). Counts are also given with a
little noise of reading, which takes away the step between their values, and clipped to 8 bits.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data, io

from benchmarks.fokker_planck import describe_machine
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
)
from scoreexp.observations.noise.estimate import estimate

RESULT = Path(__file__).parent / "results" / "noise_estimation.json"
BUNDLED = ("astronaut", "camera", "chelsea", "coffee", "coins", "moon", "rocket")
NOISES: dict[str, NoiseModel] = {
    **{f"Gaussian, sigma {255 * s:.0f}/255": GaussianNoise(2 * s) for s in (5 / 255, 15 / 255, 25 / 255, 50 / 255)},
    **{f"Poisson, peak {peak:g}": PoissonNoise(peak) for peak in (0.2, 0.5, 1.0, 4.0, 30.0, 255.0)},
    "Poisson-Gaussian, peak 30, sigma 0.05": PoissonGaussianNoise(30.0, 0.1),
    "Poisson-Gaussian, peak 255, sigma 0.02": PoissonGaussianNoise(255.0, 0.04),
    **{f"Gamma, {looks:g} looks": GammaNoise(looks) for looks in (1.0, 4.0, 16.0)},
    **{f"correlated, sigma 25/255, length {n:g}": CorrelatedNoise(50 / 255, n) for n in (0.5, 1.0)},
}  # fmt: skip
STORED = ("floating point", "no steps", "8 bits")


def pictures(folder: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name and ``[H, W, C]`` in [0, 1]."""
    if folder is None:
        found = ((name, getattr(data, name)()) for name in BUNDLED)
    else:
        found = ((path.stem, io.imread(path)) for path in sorted(folder.glob("*.png")))
    for name, image in found:
        yield name, (image.reshape(*image.shape[:2], -1)[..., :3] / 255).astype(np.float64)


def observed(clean: np.ndarray, noise: NoiseModel, stored: str) -> np.ndarray:
    x = to_model(torch.from_numpy(np.moveaxis(clean, -1, 0))[None])
    y = np.moveaxis(to_unit(noise.sample(x, ImageStreams([0])))[0].numpy(), 0, -1)
    if stored == "no steps":
        return y + 1e-4 * np.random.default_rng(0).standard_normal(y.shape)
    return np.round(y.clip(0, 1) * 255) / 255 if stored == "8 bits" else y


def family(noise: NoiseModel) -> type[NoiseModel]:
    return PoissonGaussianNoise if isinstance(noise, PoissonGaussianNoise) else type(noise)


def error(found: NoiseModel, noise: NoiseModel) -> float:
    """The largest relative error of the parameters; of the gain alone where there is one."""
    names = ("peak",) if hasattr(noise, "peak") else ("sigma", "length", "looks")
    return max(abs(getattr(found, n) / getattr(noise, n) - 1) for n in names if hasattr(noise, n))


def measure(images: list[tuple[str, np.ndarray]], noise: NoiseModel, stored: str) -> dict[str, Any]:
    trusted, named, errors, seconds, wrong = 0, 0, [], [], []
    for name, clean in images:
        pixels = observed(clean, noise, stored)
        start = time.perf_counter()
        found, trust, _ = estimate(pixels)
        seconds.append(time.perf_counter() - start)
        if trust != "good":
            continue
        trusted += 1
        if family(found) is family(noise):
            named += 1
            errors.append(error(found, noise))
        else:
            wrong.append(f"{name}: {type(found).__name__}")
    return {
        "pictures": len(images),
        "trusted": trusted,
        "right_model": named,
        "median_error": float(np.median(errors)) if errors else None,
        "largest_error": max(errors) if errors else None,
        "median_seconds": float(np.median(seconds)),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="pictures (PNG) instead of the bundled ones")
    parser.add_argument(
        "--json", nargs="?", type=Path, const=RESULT, help=f"write the rows (default {RESULT})"
    )
    arguments = parser.parse_args()
    images = list(pictures(arguments.folder))
    rows = []
    print(f"{'noise':40}{'stored':16}{'trusted':>9}{'right':>7}{'median':>8}{'largest':>9}{'s':>6}")
    for name, noise in NOISES.items():
        for stored in STORED:
            if stored == "no steps" and type(noise) is not PoissonNoise:
                continue
            row = {"noise": name, "stored": stored, **measure(images, noise, stored)}
            rows.append(row)
            known = "".join(
                f"{row[key]:>{width}.1%}" if row[key] is not None else " " * (width - 1) + "-"
                for key, width in (("median_error", 8), ("largest_error", 9))
            )
            print(
                f"{name:40}{stored:16}{row['trusted']:>6}/{len(images)}{row['right_model']:>7}{known}"
                f"{row['median_seconds']:>6.1f} {', '.join(row['wrong'])}",
                flush=True,
            )
    if arguments.json:
        result = {
            "machine": describe_machine(),
            "pictures": "scikit-image" if arguments.folder is None else arguments.folder.name,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
