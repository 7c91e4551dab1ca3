"""Quality of samples against network evaluations: ``python -m benchmarks.study_samplers [--ckpt PATH] [--quick]``

Draws points of the Swiss Roll on the VP schedule with every sampler at 5, 10, 20, 50 and 100 evaluations (NFE; a
sampler that cannot spend exactly that many takes the next smaller number it can), all from the same noise, and measures
the sliced Wasserstein distance to as many exact draws. Two models: the exact denoiser, where all of the distance is
the sampler's discretisation, and the network of experiment=swiss_roll_vp, trained first unless --ckpt names its
checkpoint, where its error is added. Two grids of times, the same for all samplers: even in time, and Karras et al.'s
powers of the noise level. The adaptive probability flow takes no grid: its points belong to tolerances.

Two sets of exact draws are not at distance 0 either: the grey band holds 90 % of 100 such distances, and inside it the
measure sees no difference. All samplers of a model start from one set of noise, so the converged deterministic ones
agree on one value. Its place is the luck of that noise: 0.048 here with the exact denoiser, and 0.020, 0.030, 0.030 from
three other sets.

Writes benchmarks/results/samplers.json, docs/figures/samplers.png and the table of docs/samplers.md. About 10 minutes
on one CPU core (OMP_NUM_THREADS=1), of which 1 is the training.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, shrink, write_table
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.data import SwissRoll
from scoreexp.denoisers.denoiser import DenoiserBase, OracleDenoiser
from scoreexp.figures.images import COLOURS
from scoreexp.metrics import sliced_wasserstein
from scoreexp.numerics.ode import RK45, RungeKutta
from scoreexp.numerics.oracles import Oracle
from scoreexp.runs.directory import git_revision
from scoreexp.runs.model import load
from scoreexp.samplers import (
    DDIM,
    DDPM,
    PNDM,
    DPMSolverPP,
    EulerMaruyama,
    Heun,
    KarrasGrid,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    TimeGrid,
    UniformGrid,
    start_from_prior,
)
from scoreexp.schedules import VP

ROOT = Path(__file__).parents[1]
PAGE = DOCS / "samplers.md"
RESULT = ROOT / "benchmarks" / "results" / "samplers.json"
FIGURE = ROOT / "docs" / "figures" / "samplers.png"
EXPERIMENT = "swiss_roll_vp"

POINTS = 1000
BUDGETS = (5, 10, 20, 50, 100)
TOLERANCES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
QUICK_POINTS, QUICK_BUDGETS, QUICK_TOLERANCES = 50, (5, 10), (1e-1,)
GRIDS: dict[str, Callable[[int], TimeGrid]] = {"uniform": UniformGrid, "karras": KarrasGrid}
# name: (sampler on a grid, number of times that stays within a number of evaluations)
SAMPLERS: dict[str, tuple[Callable[[TimeGrid], Sampler], Callable[[int], int]]] = {
    "DDPM": (DDPM, lambda nfe: nfe),
    "Euler-Maruyama": (EulerMaruyama, lambda nfe: nfe),
    "predictor-corrector": (PredictorCorrector, lambda nfe: (nfe + 1) // 2),
    "DDIM": (DDIM, lambda nfe: nfe),
    "Heun": (Heun, lambda nfe: (nfe + 1) // 2),
    "DPM-Solver++(2M)": (DPMSolverPP, lambda nfe: nfe),
    "S-PNDM": (lambda grid: PNDM(grid, "S"), lambda nfe: nfe - 1),
    "F-PNDM": (lambda grid: PNDM(grid, "F"), lambda nfe: max(nfe - 9, (nfe + 3) // 4)),
    "probability flow, RK4": (
        lambda grid: ProbabilityFlow(grid, RungeKutta("rk4")),
        lambda nfe: (nfe + 3) // 4,
    ),
}
ADAPTIVE = "probability flow, RK45"


def trained_checkpoint(quick: bool) -> Path:
    """Train the experiment and return its checkpoint."""
    from scoreexp.app.commands.train import train

    run_dir = ROOT / "outputs" / "study_samplers" / time.strftime("%Y-%m-%d_%H-%M-%S")
    overrides = [f"experiment={EXPERIMENT}", f"run_dir={run_dir}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides + ["trainer.max_steps=20", "trainer.val_check_interval=20"] * quick)
    result = train(cfg)
    return Path(result.checkpoint)


def distance(samples: Tensor, reference: Tensor) -> float:
    """Sliced Wasserstein distance along 512 fixed lines."""
    return sliced_wasserstein(samples.double(), reference, projections=512).item()


def floor(oracle: Oracle, reference: Tensor) -> list[float]:
    """5 %, 50 % and 95 % quantiles of the distance of exact draws."""
    draws = (oracle.sample(len(reference), generator(k, "study_samplers", "floor")) for k in range(100))
    distances = torch.tensor([distance(draw, reference) for draw in draws])
    return distances.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()


def run_one(
    model: DenoiserBase, sampler: Sampler, n: int, dtype: torch.dtype, reference: Tensor
) -> dict[str, Any]:
    """NFE, seconds and distance of one sampler."""
    streams = ImageStreams(range(n))
    x = start_from_prior(model, (2,), streams, dtype=dtype)
    start = time.perf_counter()
    result = sampler(model, x, streams=streams)
    seconds = time.perf_counter() - start
    return {"nfe": result.nfe, "seconds": seconds, "distance": distance(result.x, reference)}


def study(
    models: dict[str, tuple[DenoiserBase, torch.dtype]], reference: Tensor, quick: bool
) -> list[dict[str, Any]]:
    """One row per model, grid, sampler and budget."""
    n = len(reference)
    rows: list[dict[str, Any]] = []
    for model_name, (model, dtype) in models.items():
        for grid_name, grid in GRIDS.items():
            for name, (build, times) in SAMPLERS.items():
                for budget in QUICK_BUDGETS if quick else BUDGETS:
                    measured = run_one(model, build(grid(times(budget))), n, dtype, reference)
                    rows.append({"model": model_name, "grid": grid_name, "sampler": name, **measured})
                    print(row_text(rows[-1]), flush=True)
        for tolerance in QUICK_TOLERANCES if quick else TOLERANCES:
            sampler = ProbabilityFlow(UniformGrid(2), RK45(tolerance, tolerance))
            measured = run_one(model, sampler, n, dtype, reference)
            rows.append(
                {"model": model_name, "grid": "none", "sampler": ADAPTIVE, "tolerance": tolerance, **measured}
            )
            print(row_text(rows[-1]), flush=True)
    return rows


def row_text(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:8}  {row['grid']:8}  {row['sampler']:22}  NFE {row['nfe']:4}  "
        f"{row['seconds']:7.2f} s  distance {row['distance']:.4f}"
    )


def table(result: dict[str, Any]) -> str:
    """Markdown: a line per sampler on the trained model and the Karras grid, its best distance within each budget."""
    rows = [row for row in result["rows"] if row["model"] == "trained" and row["grid"] in ("karras", "none")]
    lines = [
        "| sampler | " + " | ".join(f"{n} NFE" for n in BUDGETS) + " |",
        "| --- |" + " ---: |" * len(BUDGETS),
    ]
    for name in [*SAMPLERS, ADAPTIVE]:
        cells = []
        for low, high in pairwise([0, *BUDGETS]):
            found = [r["distance"] for r in rows if r["sampler"] == name and low < r["nfe"] <= high]
            cells.append(f"{min(found):.3f}" if found else "–")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    low, middle, high = result["floor"]
    lines.append(
        f"\nTwo sets of {result['points']} exact draws: {middle:.3f} (90 %: {low:.3f} to {high:.3f})."
    )
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each model and grid."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    figure, axes = plt.subplots(
        len(models), len(GRIDS), figsize=(10, 3.6 * len(models)), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for i, model in enumerate(models):
        for j, grid in enumerate(GRIDS):
            panel = axes[i, j]
            drawn = 0, 0
            for name in [*SAMPLERS, ADAPTIVE]:
                points = sorted(
                    (row["nfe"], row["distance"])
                    for row in result["rows"]
                    if (row["model"], row["sampler"]) == (model, name) and row["grid"] in (grid, "none")
                )
                is_random = name in ("DDPM", "Euler-Maruyama", "predictor-corrector")
                colour, style = COLOURS[drawn[is_random]], "--" if is_random else "-"
                drawn = drawn[0] + (not is_random), drawn[1] + is_random
                panel.loglog(*zip(*points), style, color=colour, marker="o", markersize=3, label=name)
            low, _, high = result["floor"]
            panel.axhspan(low, high, color="grey", alpha=0.3, label="exact draws")
            panel.set_title(f"{model} denoiser, {grid} grid", fontsize="medium")
            panel.set_ylim(low / 2, 2)
            panel.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            if i == len(models) - 1:
                panel.set_xlabel("network evaluations (NFE)")
            if j == 0:
                panel.set_ylabel("sliced Wasserstein distance")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    shrink(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", type=Path, help=f"checkpoint of experiment={EXPERIMENT} instead of training one"
    )
    parser.add_argument("--exact-only", action="store_true", help="leave out the trained network")
    parser.add_argument(
        "--quick", action="store_true", help="few points and a few training steps, as a smoke test"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULT, help=f"where to write the result (default {RESULT})"
    )
    parser.add_argument("--figure", type=Path, default=FIGURE, help=f"where to draw it (default {FIGURE})")
    arguments = parser.parse_args()

    n = QUICK_POINTS if arguments.quick else POINTS
    oracle = SwissRoll().oracle()
    reference = oracle.sample(n, generator(0, "study_samplers", "a"))
    models: dict[str, tuple[DenoiserBase, torch.dtype]] = {
        "exact": (OracleDenoiser(oracle, VP()), torch.float64)
    }
    if not arguments.exact_only:
        checkpoint = arguments.ckpt or trained_checkpoint(arguments.quick)
        models["trained"] = (load(checkpoint), torch.float32)
    result = {
        "machine": describe_machine() | {"torch": torch.__version__},
        "revision": git_revision(),
        "points": n,
        "floor": floor(oracle, reference),
        "rows": study(models, reference, arguments.quick),
    }
    print(f"exact draws: distance {result['floor'][0]:.4f} to {result['floor'][2]:.4f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    draw(result, arguments.figure)
    if "trained" in models and not arguments.quick:
        write_table(PAGE, "study_samplers", table(result))


if __name__ == "__main__":
    main()
