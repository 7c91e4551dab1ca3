"""Denoising with the noise known, estimated, and wrongly assumed: ``python -m benchmarks.denoise_misspecified``

Squares from the middle of photographs get noise of each law, not clipped and not rounded. Each restorer then removes it
three times: with its law given (``true``), with what ``observations.noise.estimate`` makes of the noisy picture
(``estimated``), and as white Gaussian noise of the level that the wavelet estimate gives (``as Gaussian``), which is what
most denoisers assume. PSNR in dB, the mean over the pictures, of results clipped to [0, 1]. A restorer of white Gaussian
noise gets the others through the stabilising transform; ``-`` is a noise that it cannot serve. ``usual`` is what
``scoreexp.denoise`` chooses for the assumed noise; it and ``posterior_mean`` (in 1 and in 8 evaluations) use the prior.

    --folder DIR     pictures, by default ../shared/testsets/Kodak24 beside the repository
    --count N        so many of them, evenly spaced (default 4); --side N their squares (default 192 pixels)
    --noises, --restorers NAME ...    some of the rows alone
    --no-prior       the classical restorers alone
    --json [PATH]    write the rows; --docs: write the table into docs/denoising.md
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import io

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from scoreexp import prior as bundled
from scoreexp.core.ranges import sigma_to_model, to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import (
    CorrelatedNoise,
    GammaNoise,
    GaussianNoise,
    NoiseModel,
    PoissonGaussianNoise,
    PoissonNoise,
)
from scoreexp.observations.noise.estimate import estimate
from scoreexp.observations.noise.level import estimate_sigma
from scoreexp.restorers import TV, Bilateral, NonLocalMeans, PosteriorMean, Restorer
from scoreexp.restorers.images import restore_pixels
from scoreexp.restorers.usual import serving, usual_restorer

RESULT = Path(__file__).parent / "results" / "denoise_misspecified.json"
KODAK = Path(__file__).parents[2] / "shared" / "testsets" / "Kodak24"
NOISES: dict[str, NoiseModel] = {
    "Gaussian, sigma 25/255": GaussianNoise(50 / 255),
    "Poisson, peak 1": PoissonNoise(1.0),
    "Poisson, peak 4": PoissonNoise(4.0),
    "Poisson, peak 30": PoissonNoise(30.0),
    "Poisson-Gaussian, peak 30, sigma 0.1": PoissonGaussianNoise(30.0, 0.2),
    "Gamma, 8 looks": GammaNoise(8.0),
    "correlated, sigma 25/255, length 0.7": CorrelatedNoise(50 / 255, 0.7),
}
RESTORERS: dict[str, Callable[[NoiseModel], Restorer]] = {
    "usual": lambda noise: usual_restorer(noise, 0),  # of a small picture
    "posterior_mean": lambda noise: serving(PosteriorMean(), noise),
    "posterior_mean, 8": lambda noise: serving(PosteriorMean(8), noise),
    "non_local_means": lambda noise: serving(NonLocalMeans(), noise),
    "tv": lambda noise: serving(TV(), noise),
    "bilateral": lambda noise: serving(Bilateral(), noise),
}
ASSUMED = ("true", "estimated", "as Gaussian")


def squares(folder: Path, count: int, side: int) -> list[tuple[str, np.ndarray]]:
    """Name and ``[side, side, 3]`` in [0, 1] from the middle of evenly spaced pictures."""
    paths = sorted(path for path in folder.glob("*") if path.suffix in (".png", ".tif"))
    if not paths:
        raise SystemExit(f"{folder} holds no pictures: give --folder=DIR")
    found = []
    for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int):
        image = io.imread(paths[i])[..., :3] / 255
        top, left = ((n - side) // 2 for n in image.shape[:2])
        found.append((paths[i].stem, image[top : top + side, left : left + side]))
    return found


def drawn(clean: np.ndarray, noise: NoiseModel, seed: int) -> np.ndarray:
    x = to_model(torch.from_numpy(np.moveaxis(clean, -1, 0))[None])
    return np.moveaxis(to_unit(noise.sample(x, ImageStreams([seed])))[0].numpy(), 0, -1)


def assumptions(y: np.ndarray, noise: NoiseModel) -> dict[str, NoiseModel]:
    level = sigma_to_model(estimate_sigma(y).sigma)
    return {"true": noise, "estimated": estimate(y).noise, "as Gaussian": GaussianNoise(level)}


def psnr(x: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((x.clip(0, 1) - clean) ** 2)))


def measure(
    images: list[tuple[str, np.ndarray]], noise: NoiseModel, names: list[str], prior: DenoiserBase | None
) -> dict[str, Any]:
    """Mean PSNR of the noisy pictures, and of each restorer under each assumption; what was estimated."""
    noisy, values, kinds = [], {name: {key: list[float]() for key in ASSUMED} for name in names}, []
    for seed, (_, clean) in enumerate(images):
        y = drawn(clean, noise, seed)
        noisy.append(psnr(y, clean))
        assumed = assumptions(y, noise)
        kinds.append(str(assumed["estimated"]))
        for name in names:
            for key, law in assumed.items():
                restorer = RESTORERS[name](law)
                model = prior if restorer.needs_model else None
                try:
                    result = restore_pixels(restorer, model, y.astype(np.float32), law)
                except ValueError:  # it does not serve this noise, or the model does not know its level
                    continue
                values[name][key].append(psnr(result.states[-1], clean))
    means = {
        name: {key: float(np.mean(v)) if len(v) == len(images) else None for key, v in of.items()}
        for name, of in values.items()
    }
    return {"noisy": float(np.mean(noisy)), "psnr": means, "estimated": kinds}


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    lines = [
        f"| noise | assumed | noisy | {' | '.join(names)} |",
        f"| --- | --- | ---: |{' ---: |' * len(names)}",
    ]
    for row in rows:
        for key in ASSUMED:
            values = [row["psnr"][name][key] for name in names]
            shown = " | ".join("-" if value is None else f"{value:.2f}" for value in values)
            noisy = f"{row['noise']} | {key} | {row['noisy']:.2f}" if key == ASSUMED[0] else f" | {key} | "
            lines.append(f"| {noisy} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=KODAK)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--restorers", nargs="+", choices=RESTORERS, default=list(RESTORERS))
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--json", nargs="?", type=Path, const=RESULT)
    parser.add_argument("--docs", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prior = None if asked.no_prior else bundled.load()
    needs_prior = {name for name, restorer in RESTORERS.items() if restorer(GaussianNoise(0.1)).needs_model}
    names = [name for name in asked.restorers if prior is not None or name not in needs_prior]
    images, rows, started = squares(asked.folder, asked.count, asked.side), [], time.perf_counter()
    for name in asked.noises:
        rows.append({"noise": name, **measure(images, NOISES[name], names, prior)})
        print(
            table(rows[-1:], names).splitlines()[-1],
            "  estimated:",
            "; ".join(rows[-1]["estimated"]),
            flush=True,
        )
    print(f"\n{table(rows, names)}\n\n{time.perf_counter() - started:.0f} s")
    if asked.json:
        known = {
            "machine": describe_machine(), "pictures": [name for name, _ in images], "side": asked.side,
            "seconds": time.perf_counter() - started, "rows": rows,
        }  # fmt: skip
        asked.json.write_text(json.dumps(known, indent=2) + "\n")
    if asked.docs:
        what = f"Mean over {len(images)} squares of {asked.side} x {asked.side} pixels."
        write_table(DOCS / "denoising.md", "denoise_misspecified", f"{what}\n\n{table(rows, names)}")


if __name__ == "__main__":
    main()
