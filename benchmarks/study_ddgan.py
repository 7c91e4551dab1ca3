"""A denoising diffusion GAN of four steps on the Swiss Roll beside Gaussian steps at as many evaluations:
``python -m benchmarks.study_ddgan [--gan CKPT] [--network CKPT] [--json [PATH]]``

Trains ``swiss_roll_ddgan`` and ``swiss_roll_vp`` where no checkpoint is given. All samples start from the same noise. With
the exact denoiser ``ddpm`` has the mean of the best Gaussian step, so what it misses no training brings back.
``likely``: share of samples whose density is above that of all but 1 % of exact points; ``covered``: share of exact points
that have a sample within 0.1.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import scoreexp as se
from benchmarks.study_langevin import trained
from scoreexp.core.streams import generator
from scoreexp.data import SwissRoll
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.metrics import sliced_wasserstein
from scoreexp.metrics.score_error import in_chunks
from scoreexp.runs.checkpoint_file import read_checkpoint
from scoreexp.runs.directory import git_revision
from scoreexp.samplers import (
    DDGAN,
    DDIM,
    DDPM,
    DiscreteGrid,
    DPMSolverPP,
    LogSNRGrid,
    QuadraticGrid,
    Sampler,
    draw,
)
from scoreexp.system.json_files import write_json

RESULT = Path(__file__).parent / "results" / "ddgan.json"
N, STEPS = 2000, 4
RADIUS = 0.1  # of what covers a point


def measure(model: DenoiserBase, sampler: Sampler, data: SwissRoll) -> dict[str, Any]:
    """Distance from the data of ``N`` samples."""
    oracle = data.oracle()
    real, other = (oracle.sample(N, generator("study ddgan", k)).float() for k in range(2))
    result = draw(model, sampler, range(N))
    log_p = {
        name: in_chunks(oracle.log_prob, x.double(), 0.0) for name, x in (("real", real), ("drawn", result.x))
    }
    to_sample = torch.cdist(real, result.x.float()).min(1).values
    return {
        "sliced_wasserstein": float(sliced_wasserstein(result.x.float(), real)),
        "floor": float(sliced_wasserstein(other, real)),
        "likely": float((log_p["drawn"] > log_p["real"].quantile(0.01)).double().mean()),
        "covered": float((to_sample < RADIUS).double().mean()),
        "nfe": result.nfe,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gan", type=Path, help="checkpoint of experiment=swiss_roll_ddgan")
    parser.add_argument("--network", type=Path, help="checkpoint of experiment=swiss_roll_vp")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=RESULT, help=f"store the result (default {RESULT})"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        of_gan = given.gan or trained("swiss_roll_ddgan", Path(folder, "gan"))
        gan, step = se.load(of_gan), read_checkpoint(of_gan)["global_step"]
        network = se.load(given.network or trained("swiss_roll_vp", Path(folder, "network")))
    data = SwissRoll()
    exact = OracleDenoiser(data.oracle(), gan.schedule)
    gaussian: dict[str, Sampler] = {
        "ddpm, beta_tilde": DDPM(DiscreteGrid(STEPS, STEPS)),
        "ddpm, beta": DDPM(DiscreteGrid(STEPS, STEPS), variance="beta"),
        "ddim": DDIM(QuadraticGrid(STEPS)),
        "dpm_solver_pp": DPMSolverPP(LogSNRGrid(STEPS)),
    }
    rows = {"ddgan": measure(gan, DDGAN(STEPS), data)}
    for whose, model in (("trained network", network), ("exact denoiser", exact)):
        rows |= {f"{name}, {whose}": measure(model, sampler, data) for name, sampler in gaussian.items()}
    for name, row in rows.items():
        print(
            f"{name:36} {row['nfe']} NFE  SW {row['sliced_wasserstein']:.4f} (floor {row['floor']:.4f})  "
            f"likely {row['likely']:.3f}  covered {row['covered']:.3f}"
        )
    if given.json:
        write_json(given.json, {"revision": git_revision(), "n": N, "training_steps": step, "rows": rows})


if __name__ == "__main__":
    main()
