"""Error of deterministic samplers per evaluation: ``python -m benchmarks.sampler_errors [--peers NAME ...] [--json [PATH]]``

Every deterministic sampler runs on every grid from the same 256 starts at ``t_max`` of the VP schedule to ``t_min``, with
the exact denoisers of three mixtures in float64, within 5, 6, 8, 10, 15, 20 and 30 evaluations of the model. A cell is the
root of the mean squared distance to the solution of the same equation (Dormand and Prince's pair in the angle of the noise,
tolerance 1e-10). A sampler that cannot spend exactly a budget takes the most steps within it; evaluations are counted at the
model.

``--peers`` adds the samplers of other packages on the same grids, see ``benchmarks.sampler_peers``.

About a minute on one CPU core (OMP_NUM_THREADS=1).
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fokker_planck import describe_machine
from benchmarks.sampler_peers import PEERS
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.denoisers.counting import counting
from scoreexp.numerics.ode import RK45, RungeKutta
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.runs.directory import git_revision
from scoreexp.samplers import (
    DDIM,
    DEIS,
    PNDM,
    DPMSolverPP,
    DPMSolverPP3M,
    DPMSolverPPSinglestep,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    ProbabilityFlow,
    QuadraticGrid,
    Sampler,
    TimeGrid,
    UniformGrid,
    UniPC,
    UniPCVelocity,
)
from scoreexp.schedules import VP

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sampler_errors.json"

STARTS = 256
BUDGETS = (5, 6, 8, 10, 15, 20, 30)
TOLERANCE = 1e-10
GRIDS: dict[str, Callable[[int], TimeGrid]] = {
    "uniform": UniformGrid,
    "quadratic": QuadraticGrid,
    "karras": KarrasGrid,
    "logsnr": LogSNRGrid,
}
# name: (sampler on a grid, number of times that takes at most so many evaluations)
SAMPLERS: dict[str, tuple[Callable[..., Sampler], Callable[[int], int]]] = {
    "DDIM": (DDIM, lambda n: n + 1),
    "Heun": (Heun, lambda n: n // 2 + 1),
    "S-PNDM": (lambda grid, **kw: PNDM(grid, "S", **kw), lambda n: n),
    "F-PNDM": (lambda grid, **kw: PNDM(grid, "F", **kw), lambda n: max(n - 8, n // 4 + 1)),
    "DPM-Solver++(2S)": (lambda grid, **kw: DPMSolverPPSinglestep(grid, 2, **kw), lambda n: n // 2 + 1),
    "DPM-Solver++(3S)": (lambda grid, **kw: DPMSolverPPSinglestep(grid, 3, **kw), lambda n: n // 3 + 1),
    "DPM-Solver++(2M)": (DPMSolverPP, lambda n: n + 1),
    "DPM-Solver++(3M)": (DPMSolverPP3M, lambda n: n + 1),
    "DEIS-2": (lambda grid, **kw: DEIS(grid, 2, **kw), lambda n: n + 1),
    "DEIS-3": (lambda grid, **kw: DEIS(grid, 3, **kw), lambda n: n + 1),
    "UniPC-2": (lambda grid, **kw: UniPC(grid, 2, **kw), lambda n: n + 1),
    "UniPC-3": (lambda grid, **kw: UniPC(grid, 3, **kw), lambda n: n + 1 if n < 19 else n),
    "UniPC-2, velocity": (lambda grid, **kw: UniPCVelocity(grid, 2, **kw), lambda n: n + 1),
    "UniPC-3, velocity": (
        lambda grid, **kw: UniPCVelocity(grid, 3, **kw),
        lambda n: n + 1 if n < 19 else n,
    ),
    "flow, Euler": (lambda grid, **kw: ProbabilityFlow(grid, RungeKutta("euler"), **kw), lambda n: n + 1),
    "flow, RK4": (lambda grid, **kw: ProbabilityFlow(grid, RungeKutta("rk4"), **kw), lambda n: n // 4 + 1),
}


class Candidate(NamedTuple):
    """A sampler on a grid: ``run(model, x, evaluations)`` takes ``x`` from the schedule's ``t_max`` to its ``t_min``."""

    sampler: str
    grid: str
    run: Callable[[DenoiserBase, Tensor, int], Tensor]


def ours() -> list[Candidate]:
    """Every sampler on every grid."""

    def candidate(sampler: str, grid: str) -> Candidate:
        build, times = SAMPLERS[sampler]

        def run(model: DenoiserBase, x: Tensor, evaluations: int) -> Tensor:
            on_grid = build(GRIDS[grid](times(evaluations)), denoise_last=False)
            return on_grid(model, x, streams=ImageStreams(range(len(x)))).x

        return Candidate(sampler, grid, run)

    return [candidate(sampler, grid) for sampler in SAMPLERS for grid in GRIDS]


def peers(package: str) -> list[Candidate]:
    """Every sampler of a package on every grid."""

    def candidate(sampler: str, grid: str) -> Candidate:
        run, cost = samplers[sampler]

        def within(model: DenoiserBase, x: Tensor, evaluations: int) -> Tensor:
            return run(model, x, GRIDS[grid](evaluations // cost + 1)(model.schedule))

        return Candidate(f"{package}: {sampler}", grid, within)

    samplers = PEERS[package]()
    return [candidate(sampler, grid) for sampler in samplers for grid in GRIDS]


def mixtures() -> dict[str, GaussianMixture]:
    """Three modes in the plane, wide components in 5 dimensions, and narrow ones of uneven variances in 32."""

    def drawn(name: str, components: int, dimensions: int, spread: float, smallest: float) -> GaussianMixture:
        g = generator(0, "sampler_errors", name)
        weights = torch.rand(components, generator=g, dtype=torch.float64) + 0.2
        means = spread * torch.randn(components, dimensions, generator=g, dtype=torch.float64)
        variances = smallest * 30 ** torch.rand(components, dimensions, generator=g, dtype=torch.float64)
        return GaussianMixture(weights, means, variances)

    modes = torch.tensor([[-0.8, -0.4], [0.1, 0.7], [0.8, -0.5]], dtype=torch.float64)
    return {
        "modes": GaussianMixture(torch.tensor([0.2, 0.5, 0.3]), modes, torch.tensor([0.02, 0.05, 0.01])),
        "wide": drawn("wide", 4, 5, 0.7, 0.02),
        "narrow": drawn("narrow", 10, 32, 0.4, 0.002),
    }


def problem(oracle: GaussianMixture) -> tuple[DenoiserBase, Tensor, Tensor]:
    """The model, the starts, and the solution of the flow from them."""
    model = OracleDenoiser(oracle, VP())
    streams = ImageStreams(range(STARTS))
    x = model.schedule.prior_std * streams.normal(
        torch.empty(STARTS, *oracle.event_shape, dtype=torch.float64)
    )
    flow = ProbabilityFlow(UniformGrid(2), RK45(TOLERANCE, TOLERANCE), denoise_last=False)
    return model, x, flow(model, x, streams=streams).x


def measure(candidates: list[Candidate]) -> list[dict[str, Any]]:
    """One row per mixture, candidate and budget; the error is null where it is not finite."""
    rows: list[dict[str, Any]] = []
    for name, oracle in mixtures().items():
        model, x, solution = problem(oracle)
        for sampler, grid, run in candidates:
            for budget in BUDGETS:
                with counting() as evaluations:
                    error = (run(model, x, budget) - solution).square().sum(1).mean().sqrt().item()
                nfe = evaluations.per_sample(STARTS)
                if nfe > budget:
                    raise RuntimeError(
                        f"{sampler} on the grid {grid} took {nfe} evaluations, budget {budget}"
                    )
                rows.append(
                    {"mixture": name, "sampler": sampler, "grid": grid, "budget": budget, "nfe": nfe}
                    | {"error": error if math.isfinite(error) else None}
                )
    return rows


def _error(row: dict[str, Any]) -> float:
    return math.inf if row["error"] is None else row["error"]


def geometric_means(rows: list[dict[str, Any]]) -> list[tuple[float, str, str]]:
    """Geometric mean of the error over mixtures and budgets, sampler and grid, the smallest first."""
    logs: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        logs.setdefault((row["sampler"], row["grid"]), []).append(math.log(max(_error(row), 1e-300)))
    return sorted((math.exp(sum(v) / len(v)), *key) for key, v in logs.items())


def table(rows: list[dict[str, Any]]) -> str:
    """For each mixture a line per sampler, its best grid at each budget; then the geometric means."""
    lines = []
    for mixture in dict.fromkeys(row["mixture"] for row in rows):
        lines += ["", f"{mixture:40}" + "".join(f"{n:>19}" for n in BUDGETS)]
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            line = f"{sampler:40}"
            for budget in BUDGETS:
                key = (mixture, sampler, budget)
                cell = [r for r in rows if (r["mixture"], r["sampler"], r["budget"]) == key]
                best = min(cell, key=_error)
                line += f"{_error(best):10.2e} {best['grid']:9}"
            lines.append(line)
    lines += ["", "geometric mean over mixtures and budgets"]
    lines += [f"{mean:10.2e}  {sampler} on {grid}" for mean, sampler, grid in geometric_means(rows)]
    return "\n".join(lines)


def _by_candidate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per mixture, sampler and grid, with the evaluations and the error at each budget."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = {name: row[name] for name in ("mixture", "sampler", "grid")}
        kept = found.setdefault(tuple(key.values()), key | {"nfe": [], "error": []})
        kept["nfe"].append(row["nfe"])
        kept["error"].append(None if row["error"] is None else float(f"{row['error']:.4g}"))
    return list(found.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", nargs="*", default=[], choices=list(PEERS), help="packages to compare with"
    )
    parser.add_argument(
        "--json", type=Path, nargs="?", const=RESULT, help=f"store the result (default {RESULT})"
    )
    arguments = parser.parse_args()
    candidates = ours() + [candidate for peer in arguments.peers for candidate in peers(peer)]
    rows = measure(candidates)
    print(table(rows))
    if arguments.json:
        result = {
            "machine": describe_machine() | {"torch": torch.__version__},
            "revision": git_revision(),
            "starts": STARTS,
            "tolerance": TOLERANCE,
            "budgets": BUDGETS,
            "geometric_means": [
                {"sampler": sampler, "grid": grid, "error": mean if math.isfinite(mean) else None}
                for mean, sampler, grid in geometric_means(rows)
            ],
            "rows": _by_candidate(rows),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
