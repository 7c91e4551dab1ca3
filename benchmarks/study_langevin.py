"""Score CNN, its Langevin denoising and the regression baseline on held-out photographs:
``python -m benchmarks.study_langevin [--score-cnn CKPT] [--regression CKPT] [--json [PATH]] [--figures [FOLDER]]``

Trains ``photo32_score_cnn`` and ``photo32_regression`` where no checkpoint is given (about 4 minutes on 2 CPU cores), then
denoises crops of two photographs that neither has seen from sigma = 0.1: by the regression, by the posterior mean of the
score CNN (one evaluation), and by Langevin dynamics with every step size of the published study and over the number of
steps. The same two studies on the pictures of a training run are ``python -m scoreexp.train
experiment=langevin_step_size`` and ``langevin_steps``.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoreexp
from benchmarks.pages import shrink
from scoreexp.core.ranges import sigma_to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.data import Photo
from scoreexp.lit.callbacks.langevin_study import Row, draw_langevin, langevin_table
from scoreexp.metrics import psnr, ssim

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "langevin.json"
FIGURES = ROOT / "docs" / "figures"
HELD_OUT = ["chelsea", "coffee"]
SIGMA, NOISE = 0.1, 0.1  # units of [0, 1]; kappa
STEP_SIZES = [5e-5, 1e-4, 5e-4, 1e-3, 5e-3]  # squared units of [0, 1]
PUBLISHED = {"step_size": 1e-4, "step": 100}


def trained(experiment: str, folder: Path) -> Path:
    """The last checkpoint of a run of ``experiment``."""
    command = [sys.executable, "-m", "scoreexp.train", f"experiment={experiment}", f"run_dir={folder}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "checkpoints" / "last.ckpt"


def held_out(crops: int) -> tuple[Tensor, Tensor]:
    """Clean and noisy crops of the held-out photographs, ``[B, C, H, W]`` in [-1, 1]."""
    data = Photo(name=HELD_OUT, crop="random", crops=crops // len(HELD_OUT), crop_side=64, crop_seed=1)
    split = data.split("train")
    clean = split.samples(data.train_positions)
    return clean, clean + sigma_to_model(SIGMA) * ImageStreams(range(len(clean)), "held-out noise").normal(
        clean
    )


@torch.no_grad()
def quality(prediction: Tensor, clean: Tensor) -> dict[str, Any]:
    """PSNR of each picture, its mean and standard error, and the mean SSIM."""
    pair = to_unit(prediction).clamp(0, 1), to_unit(clean)
    values = psnr(*pair)
    return {
        "psnr": float(values.mean()),
        "psnr_error": float(values.std() / math.sqrt(len(values))),
        "ssim": float(ssim(*pair).mean()),
        "pictures": [round(value, 3) for value in values.tolist()],
    }


def measure(score_cnn: Path, regression: Path, crops: int, steps: int) -> dict[str, Any]:
    """Everything the study reports, and the tables of its two curves."""
    clean, noisy = held_out(crops)
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
        "held_out": HELD_OUT,
        "crops": len(clean),
        "sigma": SIGMA,
        "kappa": NOISE,
        "rows": rows,
        "langevin_published": published,
        "langevin_best": best,
        "step_size_study": by_size,
        "steps_study": by_steps,
    }


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
    lines = [f"{result['crops']} crops of {', '.join(result['held_out'])}, sigma {result['sigma']:g}"]
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
    parser.add_argument("--crops", type=int, default=32)
    parser.add_argument("--steps", type=int, default=500, help="of the study over the number of steps")
    parser.add_argument(
        "--json", nargs="?", const=RESULT, type=Path, help=f"write the result (default {RESULT})"
    )
    parser.add_argument(
        "--figures", nargs="?", const=FIGURES, type=Path, help=f"draw the studies (default {FIGURES})"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    with tempfile.TemporaryDirectory() as folder:
        score_cnn = arguments.score_cnn or trained("photo32_score_cnn", Path(folder, "score_cnn"))
        regression = arguments.regression or trained("photo32_regression", Path(folder, "regression"))
        result = measure(score_cnn, regression, arguments.crops, arguments.steps)
    print(report(result))
    title = f"{result['crops']} held-out crops, sigma = {SIGMA:g}, kappa = {NOISE:g}"
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        stored = result | {key: curves(result[key]) for key in ("step_size_study", "steps_study")}
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n")
    if arguments.figures:
        draw_langevin(result["step_size_study"], arguments.figures / "langevin_step_size.png", title)
        draw_langevin(result["steps_study"], arguments.figures / "langevin_steps.png", title)
        for name in ("langevin_step_size", "langevin_steps"):
            shrink(arguments.figures / f"{name}.png")


if __name__ == "__main__":
    main()
