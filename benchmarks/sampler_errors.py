"""Error of deterministic samplers per evaluation: ``python -m benchmarks.sampler_errors [--peers NAME ...] [--publish]``

Each sampler runs from the same 256 starts at ``t_max`` of the VP schedule to ``t_min``, within 5, 6, 8, 10, 15, 20 and 30
evaluations of the model. A cell is the root of the mean squared distance to the solution of the same equation (Dormand and
Prince's pair in the angle of the noise). Six models:

- the exact denoisers of three mixtures, and the network of ``experiment=swiss_roll_vp``, in float64; tolerance 1e-10;
- small U-Nets of MNIST and CIFAR-10 (37,000 parameters), in float32 within a float64 solver, for everybody alike. Their
  rounding allows the tolerance 1e-6; for 4 of the starts the distance to the float64 network's solution at 1e-10 is stored.

Ours is ``fit_solver``, fitted to other starts, and every sampler on every grid here. ``--peers`` adds the samplers of other
packages, see ``benchmarks.sampler_peers``, on their own grids. For mixtures each of them is run, and the best counts; for
networks the 3 best of each package, ours too, at a few other starts are run.
A sampler that cannot spend exactly a budget takes the most steps within it; evaluations are counted at the model.

Resumable: networks, solutions and cells are kept in ``outputs/sampler_errors``, and what is there is not done again
(``--fresh NAME`` forgets the cells of a problem). ``--publish`` writes benchmarks/results/sampler_errors.json and the
tables of docs/samplers.md. The images need SCOREEXP_DATA, the folder of mnist/ and cifar10/. About an hour and a half on
one CPU core (OMP_NUM_THREADS=1), of which the images take most.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from benchmarks.sampler_peers import PEERS, peer_grids
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.denoisers import DenoiserBase, OracleDenoiser
from scoreexp.denoisers.counting import counting
from scoreexp.denoisers.denoiser import Wrapper
from scoreexp.numerics.ode import RK45, RungeKutta
from scoreexp.numerics.oracles import GaussianMixture
from scoreexp.runs.directory import git_revision
from scoreexp.runs.model import load
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
    Trajectories,
    UniformGrid,
    UniPC,
    UniPCVelocity,
    fit_solver,
    start_from_prior,
    trajectories,
)
from scoreexp.schedules import VP
from scoreexp.system.json_files import read_json, write_json

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sampler_errors.json"
KEPT = ROOT / "outputs" / "sampler_errors"
PAGE = DOCS / "samplers.md"

STARTS, CHOSEN = 256, 3
IMAGES = ("mnist", "cifar10")
# starts by which the peers are chosen that are run on all
TUNED = {"swiss_roll": 32, "mnist": 4, "cifar10": 4}
# starts and iterations of the fit: as many as take minutes for all budgets together on one core
FITS = {"narrow": (256, 80), "swiss_roll": (512, 60), "mnist": (96, 40), "cifar10": (64, 40)}
USUAL_FIT = (1024, 120)
BUDGETS = (5, 6, 8, 10, 15, 20, 30)
FITTED = "fitted"
TOLERANCE, TOLERANCE_SINGLE = 1e-10, 1e-6
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

SMALL_UNET = [
    "schedule=vp",
    "precond=edm",
    "objective=edm",
    "time_law=log_normal",
    "network.channels=8",
    "network.blocks=1",
    "network.attention_resolutions=[]",
    "optimizer.lr=2.0e-3",
    "data.batch_size=32",
    "data.num_workers=0",
    "data.num_val=16",
    "trainer.max_steps=1500",
    "trainer.val_check_interval=1500",
    "trainer.accelerator=cpu",
    "model.ema.decay=0.995",
    "precond.sigma_data=0.5",
]
TRAINING = {
    "swiss_roll": ["experiment=swiss_roll_vp"],
    "mnist": ["data=mnist", *SMALL_UNET],
    "cifar10": ["data=cifar10", *SMALL_UNET],
}


class Candidate(NamedTuple):
    """A sampler on a grid: ``run(model, x, evaluations)`` takes ``x`` from the schedule's ``t_max`` to its ``t_min``."""

    package: str
    sampler: str
    grid: str
    run: Callable[[DenoiserBase, Tensor, int], Tensor]


class Problem(NamedTuple):
    """A model, starts, and the solutions of the flow from them.

    Attributes:
        tuning: other starts and their solutions, for what is too costly to be run on all.
        fit: starts and iterations of ``fit_solver``.
    """

    model: DenoiserBase
    x: Tensor
    solution: Tensor
    tuning: tuple[Tensor, Tensor] | None
    fit: tuple[int, int]


class Single(Wrapper):
    """A float32 network within a float64 solver."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.model(x_t.float(), t, cond).double()


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


PROBLEMS = (*mixtures(), *TRAINING)


def trained(name: str) -> Path:
    """The checkpoint of a network, trained first if there is none."""
    run_dir = KEPT / name
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        from hydra import compose, initialize_config_dir

        from scoreexp.app.commands.train import train
        from scoreexp.app.conf_dir import conf_dir

        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            train(compose("train", [*TRAINING[name], f"run_dir={run_dir}"]))
    return checkpoint


def starts(model: DenoiserBase, count: int, purpose: str) -> Tensor:
    """States at ``t_max``, float64."""
    streams = ImageStreams(range(count), purpose)
    return start_from_prior(model, model.event_shape or (), streams, dtype=torch.float64)


def solved(model: DenoiserBase, x: Tensor, tolerance: float) -> Tensor:
    """The solution of the flow."""
    flow = ProbabilityFlow(UniformGrid(2), RK45(tolerance, tolerance), denoise_last=False)
    return flow(model, x, streams=ImageStreams(range(len(x)))).x


def problem(name: str) -> Problem:
    """A problem by name; solutions are kept."""
    images = name in IMAGES
    tolerance = TOLERANCE_SINGLE if images else TOLERANCE
    model: DenoiserBase
    if name in TRAINING:
        network = load(trained(name))
        model = Single(network) if images else network.double()
    else:
        model = OracleDenoiser(mixtures()[name], VP())
    KEPT.mkdir(parents=True, exist_ok=True)

    def kept(purpose: str, count: int) -> tuple[Tensor, Tensor]:
        x, path = starts(model, count, purpose), KEPT / f"{name}-{purpose.replace(' ', '_')}.pt"
        if not path.is_file():
            started = time.perf_counter()
            parts = []
            for part in x.split(64):
                parts.append(solved(model, part, tolerance))
            torch.save(torch.cat(parts), path)
            print(f"{name}: {count} solutions in {time.perf_counter() - started:.0f} s", flush=True)
        return x, torch.load(path)

    x, solution = kept("sampling", STARTS)
    tuning = kept("sampler_errors tuning", TUNED[name]) if name in TUNED else None
    return Problem(model, x, solution, tuning, FITS.get(name, USUAL_FIT))


def agreement(name: str) -> float:
    """Of 4 kept solutions of a float32 network: distance to those of the float64 network at tolerance 1e-10."""
    path = KEPT / f"{name}-agreement.json"
    if not path.is_file():
        found = problem(name)
        few = slice(TUNED[name])
        exact = solved(load(trained(name)).double(), found.x[few], TOLERANCE)
        write_json(path, {"distance": distance(exact, found.solution[few])})
    return float(read_json(path)["distance"])


def distance(a: Tensor, b: Tensor) -> float:
    """Root of the mean squared distance."""
    return (a.double() - b.double()).square().flatten(1).sum(1).mean().sqrt().item()


def ours() -> list[Candidate]:
    """Every sampler on every grid."""

    def candidate(sampler: str, grid: str) -> Candidate:
        build, times = SAMPLERS[sampler]

        def run(model: DenoiserBase, x: Tensor, evaluations: int) -> Tensor:
            on_grid = build(GRIDS[grid](times(evaluations)), denoise_last=False)
            return on_grid(model, x, streams=ImageStreams(range(len(x)))).x

        return Candidate("scoreexp", sampler, grid, run)

    return [candidate(sampler, grid) for sampler in SAMPLERS for grid in GRIDS]


def peers(package: str) -> list[Candidate]:
    """Every sampler of a package on every grid."""

    def candidate(sampler: str, grid: str) -> Candidate:
        run, cost = samplers[sampler]

        def within(model: DenoiserBase, x: Tensor, evaluations: int) -> Tensor:
            return run(model, x, grids[grid](evaluations // cost + 1)(model.schedule))

        return Candidate(package, sampler, grid, within)

    samplers, grids = PEERS[package](), peer_grids()
    return [candidate(sampler, grid) for sampler in samplers for grid in grids]


@torch.no_grad()
def measured(
    candidate: Candidate, model: DenoiserBase, x: Tensor, solution: Tensor, budget: int
) -> dict[str, Any]:
    """A row: error, null where it is not finite, and evaluations."""
    with counting() as evaluations:
        error = distance(candidate.run(model, x, budget), solution)
    nfe = evaluations.per_sample(len(x))
    if nfe > budget:
        raise RuntimeError(
            f"{candidate.sampler} on the grid {candidate.grid} took {nfe} evaluations, budget {budget}"
        )
    return {
        "package": candidate.package,
        "sampler": candidate.sampler,
        "grid": candidate.grid,
        "nfe": nfe,
        "error": float(f"{error:.4g}") if math.isfinite(error) else None,
    }


def fitted(found: Problem, reference: Trajectories, budget: int) -> tuple[Candidate, dict[str, Any]]:
    """The solver fitted to other starts, and what it says of itself."""
    started = time.perf_counter()
    solver = fit_solver(found.model, budget, denoise_last=False, reference=reference, iterations=found.fit[1])
    said = {"held_out": solver.error, "fitted_on": solver.error_fitted}
    said["seconds"] = time.perf_counter() - started

    def run(model: DenoiserBase, x: Tensor, evaluations: int) -> Tensor:
        return solver.sampler(model, x, streams=ImageStreams(range(len(x)))).x

    return Candidate("scoreexp", FITTED, "its own", run), said


def measure(name: str, packages: Sequence[str]) -> None:
    """Every missing cell of a problem, kept as it is found: ``{part: {budget: rows}}``."""
    path = KEPT / f"{name}-cells.json"
    found = problem(name)
    reference: Trajectories | None = None
    for part in (FITTED, "scoreexp", *packages):
        candidates: list[Candidate] | None = None
        for budget in BUDGETS:
            cells = read_json(path)
            if str(budget) in cells.get(part, {}):
                continue
            started = time.perf_counter()
            evaluate = partial(measured, model=found.model, x=found.x, solution=found.solution, budget=budget)
            if part == FITTED:
                reference = reference or trajectories(found.model, found.fit[0], dtype=torch.float64)
                candidate, said = fitted(found, reference, budget)
                rows = [evaluate(candidate) | said]
            else:
                candidates = candidates or (ours() if part == "scoreexp" else peers(part))
                chosen = candidates
                if found.tuning:
                    x, solution = found.tuning
                    tuned = [measured(c, found.model, x, solution, budget) for c in candidates]
                    order = sorted(range(len(tuned)), key=lambda k: _error(tuned[k]))
                    chosen = [candidates[k] for k in order[:CHOSEN]]
                rows = [evaluate(candidate) for candidate in chosen]
            cells.setdefault(part, {})[str(budget)] = rows
            write_json(path, cells)
            best = min(rows, key=_error)
            print(
                f"{name:10} {part:12} {budget:3} {_error(best):.3e} {best['sampler']}, {best['grid']} "
                f"({time.perf_counter() - started:.0f} s)",
                flush=True,
            )


def _error(row: dict[str, Any]) -> float:
    return math.inf if row["error"] is None else row["error"]


def geometric_mean(values: Sequence[float]) -> float:
    """Infinite if a value is."""
    return math.exp(sum(math.log(max(v, 1e-300)) for v in values) / len(values)) if values else math.nan


def collected() -> dict[str, dict[str, dict[str, list[dict[str, Any]]]]]:
    """The kept cells of every problem: ``[problem][part][budget]``."""
    return {name: cells for name in PROBLEMS if (cells := read_json(KEPT / f"{name}-cells.json"))}


def cell_table(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """For each problem and budget the fitted solver, the best of our others, and the best of the peers."""
    table = []
    for name, cells in kept.items():
        for budget in map(str, BUDGETS):
            own = min(cells.get("scoreexp", {}).get(budget, []), key=_error, default=None)
            others = [row for package in PEERS for row in cells.get(package, {}).get(budget, [])]
            if budget not in cells.get(FITTED, {}) or own is None:
                continue
            fit = cells[FITTED][budget][0]
            row = {"problem": name, "budget": int(budget), "fitted": fit, "unfitted": own}
            if all(budget in cells.get(package, {}) for package in PEERS):
                best = min(others, key=_error)
                row |= {"peer": best, "ratio": float(f"{_error(fit) / _error(best):.4g}")}
            table.append(row)
    return table


def by_sampler(kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Our samplers' geometric means over the mixtures and budgets, each on its best grid, the smallest first."""
    errors: dict[tuple[str, str], list[float]] = {}
    for name in mixtures():
        for part in (FITTED, "scoreexp"):
            for rows in kept.get(name, {}).get(part, {}).values():
                for row in rows:
                    errors.setdefault((row["sampler"], row["grid"]), []).append(_error(row))
    whole = len(mixtures()) * len(BUDGETS)
    means = sorted((geometric_mean(v), *key) for key, v in errors.items() if len(v) == whole)
    found: dict[str, dict[str, Any]] = {}
    for mean, sampler, grid in means:
        if math.isfinite(mean):
            found.setdefault(sampler, {"sampler": sampler, "grid": grid, "error": float(f"{mean:.4g}")})
    return list(found.values())


def publish() -> None:
    """The result and the tables of the documentation, from what is kept."""
    kept = collected()
    cells, samplers = cell_table(kept), by_sampler(kept)
    ratios = [row["ratio"] for row in cells if "ratio" in row]
    result = {
        "machine": describe_machine() | {"torch": torch.__version__},
        "revision": git_revision(),
        "starts": STARTS,
        "tolerance": {name: TOLERANCE_SINGLE if name in IMAGES else TOLERANCE for name in kept},
        "distance_to_float64_network": {
            name: read_json(path)["distance"]
            for name in kept
            if (path := KEPT / f"{name}-agreement.json").is_file()
        },
        "geometric_mean_of_ratios": geometric_mean(ratios) if ratios else None,
        "largest_ratio": max(ratios, default=None),
        "cells": cells,
        "samplers": samplers,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    lines = [
        "| model | evaluations | fitted | best other sampler here | best of the other packages | ratio |",
        "| --- | ---: | ---: | --- | --- | ---: |",
    ]
    for row in cells:
        own, line = row["unfitted"], f"| {row['problem']} | {row['budget']} | {row['fitted']['error']:.2g} | "
        line += f"{_error(own):.2g} {own['sampler']}, {own['grid']} | "
        if "peer" in row:
            peer = row["peer"]
            line += (
                f"{_error(peer):.2g} {peer['package'].replace('_', '-')} {peer['sampler']}, {peer['grid']} | "
            )
            line += f"{row['ratio']:.2f} |"
        else:
            line += "– | – |"
        lines.append(line)
    if ratios:
        lines += [
            "",
            f"Geometric mean of the {len(ratios)} ratios: {geometric_mean(ratios):.2f}; the largest: {max(ratios):.2f}.",
        ]
    missing = len(PROBLEMS) * len(BUDGETS) - len(ratios)
    if missing:
        lines += ["", f"{missing} of the {len(PROBLEMS) * len(BUDGETS)} ratios are still to be measured."]
    write_table(PAGE, "sampler_errors", "\n".join(lines))
    if samplers:  # once the mixtures are complete
        means = ["| sampler | grid | error |", "| --- | --- | ---: |"]
        means += [f"| {row['sampler']} | {row['grid']} | {row['error']:.2g} |" for row in samplers[:12]]
        write_table(PAGE, "sampler_means", "\n".join(means))
    print("\n".join(lines))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peers", nargs="*", default=[], choices=list(PEERS), help="packages to compare with"
    )
    parser.add_argument(
        "--problems", nargs="*", default=list(PROBLEMS), choices=PROBLEMS, help="all by default"
    )
    parser.add_argument("--fresh", nargs="*", default=[], choices=PROBLEMS, help="forget the cells of these")
    parser.add_argument("--publish", action="store_true", help="write the result and the tables of the page")
    parser.add_argument(
        "--agreement", action="store_true", help="of the float32 networks with float64, some minutes"
    )
    arguments = parser.parse_args()
    for name in arguments.fresh:
        (KEPT / f"{name}-cells.json").unlink(missing_ok=True)
    for name in arguments.problems:
        measure(name, arguments.peers)
        if arguments.agreement and name in IMAGES:
            print(
                f"{name}: distance to the solution of the float64 network {agreement(name):.1e}", flush=True
            )
    if arguments.publish:
        publish()


if __name__ == "__main__":
    main()
