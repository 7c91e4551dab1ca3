"""Score CNN, its Langevin denoising and the regression baseline on images that neither has seen:
``python -m benchmarks.study_langevin [--score-cnn CKPT] [--regression CKPT] [--json [PATH]] [--figures [FOLDER]]``

Trains ``photo32_score_cnn`` and ``photo32_regression`` where no checkpoint is given (about 4 minutes on 2 CPU cores), then
denoises crops of two photographs from sigma = 0.1: by the regression, by the posterior mean of the score CNN (one
evaluation), and by Langevin dynamics with every step size of the published study and over the number of steps. The same
two studies on the pictures of a training run are ``python -m scoreexp.train experiment=langevin_step_size`` and
``langevin_steps``.

``--cifar10 FOLDER`` takes the test images of CIFAR-10 instead, with two runs of ``cifar10_score_cnn`` and
``cifar10_regression`` that must be given, at whatever step they are; ``--docs`` writes the table of docs/data.md.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import scoreexp
from benchmarks.pages import DOCS, shrink, write_table
from scoreexp.core.ranges import sigma_to_model, to_unit
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.data import CIFAR10, Photo
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.lit.callbacks.langevin_study import Row, draw_langevin, langevin_table
from scoreexp.metrics import mse, psnr, ssim
from scoreexp.runs.reporting.reading import read_run
from scoreexp.samplers import ConstantGrid, Langevin
from scoreexp.system.json_files import write_json

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "langevin.json"
RESULT_CIFAR10 = RESULT.with_name("langevin_cifar10.json")
FIGURES = ROOT / "docs" / "figures"
HELD_OUT = ["chelsea", "coffee"]
SIGMA, NOISE = 0.1, 0.1  # units of [0, 1]; kappa
STEP_SIZES = [5e-5, 1e-4, 5e-4, 1e-3, 5e-3]  # squared units of [0, 1]
PUBLISHED = {"step_size": 1e-4, "step": 100}
PUBLISHED_STEPS = {"cifar10_score_cnn": 78125, "cifar10_regression": 3906}  # 200 and 10 epochs
STATIONARY = {"step_size": 5e-4, "steps": 200}  # ten times the relaxation time sigma^2 of flat directions


def trained(experiment: str, folder: Path) -> Path:
    """The last checkpoint of a run of ``experiment``."""
    command = [sys.executable, "-m", "scoreexp.train", f"experiment={experiment}", f"run_dir={folder}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "checkpoints" / "last.ckpt"


def held_out(crops: int) -> tuple[Tensor, Tensor]:
    """Clean and noisy crops of the held-out photographs, ``[B, C, H, W]`` in [-1, 1]."""
    data = Photo(name=HELD_OUT, crop="random", crops=crops // len(HELD_OUT), crop_side=64, crop_seed=1)
    return with_noise(data.split("train").samples(data.train_positions))


def cifar10_images(folder: Path, images: int) -> tuple[Tensor, Tensor]:
    """The first test images of CIFAR-10, clean and noisy, as ``held_out``."""
    return with_noise(CIFAR10(root=str(folder)).split("test").samples(np.arange(images)))


def with_noise(clean: Tensor) -> tuple[Tensor, Tensor]:
    """``clean``, and itself with noise of ``SIGMA``."""
    noise = ImageStreams(range(len(clean)), "held-out noise").normal(clean)
    return clean, clean + sigma_to_model(SIGMA) * noise


@torch.no_grad()
def quality(prediction: Tensor, clean: Tensor) -> dict[str, Any]:
    """PSNR of each picture, its mean and standard error, and the mean SSIM."""
    pair = to_unit(prediction).clamp(0, 1), to_unit(clean)
    values = psnr(*pair)
    return {
        "psnr": float(values.mean()),
        "psnr_error": float(values.std() / math.sqrt(len(values))),
        "mse": float(mse(*pair).mean()),
        "ssim": float(ssim(*pair).mean()),
        "pictures": [round(value, 3) for value in values.tolist()],
    }


def measure(score_cnn: Path, regression: Path, clean: Tensor, noisy: Tensor, steps: int) -> dict[str, Any]:
    """Everything the study reports, and the tables of its two curves."""
    models = {"regression": scoreexp.load(regression), "score CNN, posterior mean": scoreexp.load(score_cnn)}
    t = torch.ones(len(clean), dtype=torch.float64)
    with torch.no_grad():
        rows = {name: quality(model(noisy, t), clean) for name, model in models.items()}
    rows = {"noisy": quality(noisy, clean), **rows}
    common: dict[str, Any] = {"sigma": SIGMA, "noise": NOISE}
    model = models["score CNN, posterior mean"]
    by_size = langevin_table(model, clean, noisy, step_sizes=STEP_SIZES, steps=100, **common)
    by_steps = langevin_table(model, clean, noisy, step_sizes=[PUBLISHED["step_size"]], steps=steps, **common)
    chains = [row for row in by_size if row["method"] == "langevin"]
    published = next(row for row in chains if all(row[key] == value for key, value in PUBLISHED.items()))
    best = max(
        (row for row in [*chains, *by_steps] if row["method"] == "langevin"), key=lambda row: row["psnr"]
    )
    return {
        "images": len(clean),
        "sigma": SIGMA,
        "kappa": NOISE,
        "rows": rows,
        "langevin_published": published,
        "langevin_best": best,
        "step_size_study": by_size,
        "steps_study": by_steps,
    }


@torch.no_grad()
def stationary(model: DenoiserBase, noisy: Tensor) -> dict[str, dict[str, float]]:
    """What noisy images and the end of plain Langevin chains (kappa = 1, no clamp) that start there look like.

    A chain with the exact score leaves the law of noisy images as it is, so both would have the same statistics, but for
    the step's own error: mean and standard deviation over pixels in units of [0, 1], and the mean of ``sigma^2 score^2``.
    """
    sigma, t = sigma_to_model(SIGMA), torch.ones(len(noisy), dtype=torch.float64)
    size = sigma_to_model(math.sqrt(STATIONARY["step_size"])) ** 2
    chain = Langevin(ConstantGrid(int(STATIONARY["steps"])), size)
    start, at = chain.start(model.schedule, noisy, sigma)
    streams = ImageStreams([stream_seed(0, "langevin", i) for i in range(len(noisy))])
    sets = {"noisy": noisy, "chains": chain(model, start, streams=streams, t_start=at).x}
    return {
        name: {
            "mean": float(to_unit(x).mean()),
            "std": float(to_unit(x).std()),
            "score": float(((model(x, t) - x) / sigma).square().mean()),
        }
        for name, x in sets.items()
    }


def table_cifar10(result: dict[str, Any]) -> str:
    """Markdown: one way of denoising a line, and what the chains sample below."""
    noisy, chains = result["stationary"]["noisy"], result["stationary"]["chains"]
    first = f"{result['images']} test images, sigma {result['sigma']:g}"
    lines = [
        f"| {first} | steps of training | PSNR, dB | over the regression | MSE |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    regression = result["rows"]["regression"]
    steps = {"regression": "cifar10_regression", "score CNN, posterior mean": "cifar10_score_cnn"}
    for name, row in result["rows"].items():
        run = steps.get(name)
        trained_for = "–" if run is None else f"{result['steps'][run]:,} of {PUBLISHED_STEPS[run]:,}"
        apart = torch.tensor(row["pictures"]) - torch.tensor(regression["pictures"])
        versus = f"{float(apart.mean()):+.2f} ± {float(apart.std()) / math.sqrt(len(apart)):.2f}"
        quality_of = f"{row['psnr']:.2f} ± {row['psnr_error']:.2f} | {'–' if row is regression else versus}"
        lines.append(f"| {name} | {trained_for} | {quality_of} | {row['mse']:.5f} |")
    for name, title in (("langevin_published", "as published"), ("langevin_best", "at its best")):
        row = result[name]
        what = f"score CNN, Langevin {title}: eta {row['step_size']:g}, {row['step']} steps"
        versus = f"{row['psnr'] - regression['psnr']:+.2f}"
        lines.append(f"| {what} | as above | {row['psnr']:.2f} | {versus} | {row['mse']:.5f} |")
    lines += [
        "",
        f"| pixels | noisy images | after {STATIONARY['steps']} steps of plain Langevin from there |",
        "| --- | ---: | ---: |",
    ]
    for key, title in (("mean", "mean"), ("std", "standard deviation"), ("score", "mean of sigma² score²")):
        lines.append(f"| {title} | {noisy[key]:.3f} | {chains[key]:.3f} |")
    return "\n".join(lines)


def curves(rows: list[Row]) -> dict[str, str]:
    """PSNR after each step by step size, in dB with two decimals, as one line of text."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["method"] == "langevin":
            found.setdefault(f"{row['step_size']:g}", []).append(f"{row['psnr']:.2f}")
    return {step_size: " ".join(values) for step_size, values in found.items()}


def report(result: dict[str, Any]) -> str:
    """The result as text."""
    reference = torch.tensor(result["rows"]["regression"]["pictures"])
    lines = [f"{result['images']} images of {', '.join(result['held_out'])}, sigma {result['sigma']:g}"]
    for name, row in result["rows"].items():
        difference = torch.tensor(row["pictures"]) - reference
        error = float(difference.std()) / math.sqrt(len(difference))
        lines.append(
            f"{name:28} {row['psnr']:.2f} dB (SE {row['psnr_error']:.2f}), SSIM {row['ssim']:.3f}, "
            f"{float(difference.mean()):+.2f} dB of the regression (SE {error:.2f})"
        )
    for name in ("langevin_published", "langevin_best"):
        row = result[name]
        difference = row["psnr"] - result["rows"]["regression"]["psnr"]
        lines.append(
            f"{name:28} {row['psnr']:.2f} dB, {difference:+.2f} dB of the regression; eta {row['step_size']:g}, "
            f"{row['step']} steps"
        )
    for size in STEP_SIZES:
        chain = [r for r in result["step_size_study"] if r["method"] == "langevin" and r["step_size"] == size]
        peak = max(chain, key=lambda r: r["psnr"])
        lines.append(
            f"  eta {size:7g}: best {peak['psnr']:.2f} dB at step {peak['step']}, {chain[-1]['psnr']:.2f} dB at 100"
        )
    last = result["steps_study"][-1]
    peak = max((r for r in result["steps_study"] if r["method"] == "langevin"), key=lambda r: r["psnr"])
    lines.append(
        f"  eta {last['step_size']:7g}: best {peak['psnr']:.2f} dB at step {peak['step']}, {last['psnr']:.2f} dB at "
        f"{last['step']}"
    )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--score-cnn", type=Path, help="checkpoint of photo32_score_cnn; trained if not given"
    )
    parser.add_argument(
        "--regression", type=Path, help="checkpoint of photo32_regression; trained if not given"
    )
    parser.add_argument("--images", type=int, default=32, help="crops, or test images of CIFAR-10")
    parser.add_argument("--steps", type=int, default=500, help="of the study over the number of steps")
    parser.add_argument("--cifar10", type=Path, metavar="FOLDER", help="the data set, for both checkpoints")
    parser.add_argument("--docs", action="store_true", help="write the table of CIFAR-10 into docs/data.md")
    parser.add_argument(
        "--json", nargs="?", const="", help=f"write the result (default {RESULT}, or {RESULT_CIFAR10})"
    )
    parser.add_argument(
        "--figures", nargs="?", const=FIGURES, type=Path, help=f"draw the studies (default {FIGURES})"
    )
    given = parser.parse_args()
    if given.cifar10 and not (given.score_cnn and given.regression):
        parser.error("--cifar10 needs --score-cnn CKPT and --regression CKPT")
    if given.figures and given.cifar10:
        parser.error("--figures is for the photographs: leave --cifar10 out")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with tempfile.TemporaryDirectory() as folder:
        score_cnn = given.score_cnn or trained("photo32_score_cnn", Path(folder, "score_cnn"))
        regression = given.regression or trained("photo32_regression", Path(folder, "regression"))
        clean, noisy = (
            cifar10_images(given.cifar10, given.images) if given.cifar10 else held_out(given.images)
        )
        result = {"held_out": ["CIFAR-10"] if given.cifar10 else HELD_OUT}
        result |= measure(score_cnn, regression, clean, noisy, given.steps)
        if given.cifar10:
            runs = [read_run(ckpt.resolve().parents[1]) for ckpt in (score_cnn, regression)]
            result["steps"] = {run.method: int(run.rows[-1]["step"]) for run in runs}
            result["stationary"] = stationary(scoreexp.load(score_cnn), noisy)
    print(report(result))
    if given.json is not None:
        stored = result | {key: curves(result[key]) for key in ("step_size_study", "steps_study")}
        write_json(Path(given.json or (RESULT_CIFAR10 if given.cifar10 else RESULT)), stored)
    if given.docs and given.cifar10:
        write_table(DOCS / "data.md", "langevin_cifar10", table_cifar10(result))
    if given.figures:
        title = f"{result['images']} held-out crops, sigma = {SIGMA:g}, kappa = {NOISE:g}"
        for name, rows in (("langevin_step_size", "step_size_study"), ("langevin_steps", "steps_study")):
            draw_langevin(result[rows], given.figures / f"{name}.png", title)
            shrink(given.figures / f"{name}.png")


if __name__ == "__main__":
    main()
