"""Restorers beside deepinv's, with one network: ``python -m benchmarks.restoration_peers [--ckpt FILE --input PICTURES]``

deepinv is no dependency of scoreexp. Install deepinv 0.5.0 with ``--no-deps`` into an environment that also has scoreexp,
einops, natsort, requests and h5py; where torchvision is missing, names of it that deepinv imports are stood in for here,
since none of what is measured uses them. Seconds are those of the processor: take one thread (OMP_NUM_THREADS=1).

Three tables, all from one run in which the candidates take turns, so that a change of the machine's speed meets all:

* DPS, DiffPIR and DDRM of both: seconds per image, peak memory, network evaluations, and PSNR where there is a checkpoint;
  beside them the seconds of the network alone, with its gradient for DPS, which no restorer of so many steps can do without.
  Network, data, operator, number of steps and dtype of the network are the same; DPS and DiffPIR have the same noise
  schedule; weights and all else are each package's defaults, DiffPIR's share of fresh noise is 0.3 for both.
* The fastest of our restorers that is as good: least seconds over steps 5, 10, 20, 50 with the PSNR of deepinv's DPS, whose
  number of steps is --dps-steps, and whose guidance is the better one of its two, each with its weight of 1. With a network
  of low noise levels, such as the bundled prior, deepinv's DPS begins where ours does: at the highest level, around the same
  first estimate.
* Batches: seconds per image of our DPS and DiffPIR in batches of 1, 2, 4, 8.

Without a checkpoint the network is ``conf/network/unet_1m.yaml`` with the weights of its start: times and memory only.
Memory is the most bytes of torch's tensors at once, for the whole batch and two steps. ``--doc`` writes the tables to
docs/restoration.md, ``--json FILE`` keeps what they were made of.
"""

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import scoreexp as se
from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from benchmarks.restoration import images_of
from scoreexp import prior
from scoreexp.app.commands.restore_comparison import configured, read_conf, restorers_with_model, task
from scoreexp.core.ranges import to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.metrics import psnr
from scoreexp.observations import Blur, GaussianNoise, Identity, LinearOperator, Mask, Observation
from scoreexp.restorers import Restorer
from scoreexp.restorers.start import FAR, image_share
from scoreexp.runs.model import build_denoiser
from scoreexp.schedules import EDM, VP
from scoreexp.system.peak_memory import peak_memory

METHODS = ("dps", "diffpir", "ddrm")
GUIDANCES = ("norm", "annealed")  # of deepinv's DPS
TASKS = ("inpaint", "deblur", "super_resolution", "denoise")
STEPS_TRIED = (5, 10, 20, 50)
BATCHES = (1, 2, 4, 8)
Run = Callable[[], Tensor]  # the restored images [B, C, H, W] in [0, 1]


class Problem(NamedTuple):
    """One batch of a task: clean images in [-1, 1], and what is observed of them."""

    name: str
    clean: Tensor
    observation: Observation


# --------------------------------------------------------------------------------------------------- ours


def ours(restorer: Restorer, model: DenoiserBase, problem: Problem) -> Run:
    """Restores ``problem``."""
    return lambda: to_unit(se.restore(problem.observation, model, restorer).x)


def restorer_of(name: str, steps: int) -> Restorer:
    """Of conf/restorer, with so many steps, and the settings that are the same for both."""
    return configured(name, steps, **({"zeta": 0.3} if name == "diffpir" else {}))


# -------------------------------------------------------------------------------------------------- theirs


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision: any module of it holds any name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        def any_name(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module = ModuleType(spec.name)
        module.__getattr__ = any_name  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def deepinv() -> Any:
    """The package, imported with a stand-in for torchvision where that is missing."""
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Absent())
    import deepinv

    return deepinv


class AsDeepinv(nn.Module):
    """A model of ours as deepinv asks for it: ``(x + sigma z, sigma) -> E[x]``, in units of [0, 1]; it counts."""

    def __init__(self, model: DenoiserBase) -> None:
        super().__init__()
        self.model, self.evaluations = model, 0

    def forward(self, x: Tensor, sigma: Tensor | float, *args: Any, **kwargs: Any) -> Tensor:
        schedule = self.model.schedule
        low, high = schedule.sigma_range
        level = (2 * torch.as_tensor(sigma, dtype=torch.float64).flatten()).clamp(low, high).expand(len(x))
        t = schedule.t_of_sigma(level)
        alpha = schedule.alpha(t).to(x).reshape(-1, *[1] * (x.ndim - 1))
        self.evaluations += 1
        return to_unit(self.model(alpha * to_model(x), t))


def physics_of(dinv: Any, operator: LinearOperator, event_shape: Sequence[int], sigma: float) -> Any:
    """The same operator as an object of deepinv: its own class where it has one, which then has a decomposition."""
    noise = dinv.physics.GaussianNoise(sigma)
    if isinstance(operator, Identity):
        return dinv.physics.Denoising(noise)
    if isinstance(operator, Mask):
        seen = operator.seen.float().expand(*event_shape).clone()
        return dinv.physics.Inpainting(mask=seen, img_size=tuple(event_shape), noise_model=noise)
    if isinstance(operator, Blur):
        return dinv.physics.BlurFFT(
            img_size=tuple(event_shape), filter=operator.kernel.float()[None, None], noise_model=noise
        )
    return dinv.physics.LinearPhysics(
        A=lambda x, **_: operator(x), A_adjoint=lambda y, **_: operator.adjoint(y), noise_model=noise
    )


def theirs(
    dinv: Any, method: str, steps: int, network: AsDeepinv, problem: Problem, guidance: str = GUIDANCES[0]
) -> Run | None:
    """deepinv's restorer, or None where it does not serve the operator; the guidance is that of its DPS."""
    observation, event_shape = problem.observation, problem.clean.shape[1:]
    operator = observation.operator
    assert isinstance(operator, LinearOperator)
    assert isinstance(observation.noise, GaussianNoise)
    sigma = observation.noise.sigma / 2
    physics = physics_of(dinv, operator, event_shape, sigma)
    y = to_unit(operator.adjoint(observation.y)) * operator.seen if isinstance(operator, Mask) else None
    y = to_unit(observation.y) if y is None else y
    if method == "ddrm":
        if not isinstance(physics, dinv.physics.DecomposablePhysics):
            return None
        # from 1, as it asks for, also where the network ends below: begun at less it takes roots of negative numbers
        sampler = dinv.sampling.DDRM(network, sigmas=torch.linspace(1, 0, steps).numpy())
        return lambda: sampler(y, physics)
    if method == "diffpir":
        fidelity = dinv.optim.data_fidelity.L2()
        sampler = dinv.sampling.DiffPIR(network, fidelity, sigma=sigma, max_iter=steps, zeta=0.3, lambda_=7.0)
        return lambda: sampler(y, physics)
    random = torch.Generator().manual_seed(0)
    sampler = dinv.sampling.DPS(
        network, num_steps=steps + 1, guidance=guidance, dtype=torch.float32, rng=random
    )
    highest = network.model.schedule.sigma_range[1]
    if highest >= FAR:
        return lambda: sampler(y, physics, x_init=tuple(problem.clean.shape)).detach()
    # a network of low noise levels: both begin at its highest, around the same estimate; its state is in [-1, 1]
    vp = VP()
    t = float(vp.t_of_sigma(torch.tensor(highest, dtype=torch.float64)))
    alpha, level = vp.at(t)
    about = image_share(EDM(sigma_max=highest), operator, observation.y, observation.noise.sigma, event_shape)
    times = torch.linspace(t, 0, steps + 1)

    def run() -> Tensor:
        z = torch.randn(about.shape, generator=random)
        return sampler(y, physics, x_init=alpha * about + level * z, timesteps=times).detach()

    return run


# ------------------------------------------------------------------------------------------------ measuring


def seconds_by_turns(runs: dict[str, Run], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The median seconds of each, called in turn, and what each returned first."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    made = {name: run() for name, run in runs.items()}  # a warm-up as well
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in taken.items()}, made


def candidate(whose: str, method: str, steps: int, model: DenoiserBase, problem: Problem) -> Run | None:
    """A run of ours or theirs."""
    if whose == "ours":
        return ours(restorer_of(method, steps), model, problem)
    return theirs(deepinv(), method, steps, AsDeepinv(model), problem)


def quality(made: Tensor, problem: Problem) -> float:
    """Mean PSNR in dB."""
    return float(psnr(made.float().clamp(0, 1), to_unit(problem.clean).clamp(0, 1)).mean())


def evaluations(whose: str, method: str, steps: int, model: DenoiserBase, problem: Problem) -> int:
    """Of the network for each image."""
    if whose == "ours":
        return se.restore(problem.observation, model, restorer_of(method, steps)).nfe
    network = AsDeepinv(model)
    run = theirs(deepinv(), method, steps, network, problem)
    assert run is not None
    run()
    return network.evaluations


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="a model of pictures, or prior for the bundled one")
    parser.add_argument("--input", type=Path, help="a folder of clean pictures, or cifar10 binary batches")
    parser.add_argument("--count", type=int, default=4, help="pictures in the batch (default 4)")
    parser.add_argument(
        "--side", type=int, default=32, help="pixels a side, cropped in the middle (default 32)"
    )
    parser.add_argument("--steps", type=int, default=20, help="of every restorer (default 20)")
    parser.add_argument("--dps-steps", type=int, default=100, help="of deepinv's DPS in the second table")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement of seconds (default 3)")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--restorers", nargs="+", default=restorers_with_model(), help="ours, of table two")
    parser.add_argument("--only", choices=("peers", "equal", "batches"), help="one table")
    parser.add_argument(
        "--trainable", action="store_true", help="weights that could be trained, as of a network as made"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--doc", action="store_true", help="write the tables to docs/restoration.md")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, clean = _model_and_images(arguments)
    problems = {name: _problem(name, clean) for name in arguments.tasks}
    settings = {key: value for key, value in vars(arguments).items() if key not in ("input", "json", "doc")}
    result: dict[str, Any] = {"settings": settings, "machine": describe_machine()}
    shown = {}
    if arguments.only in (None, "peers"):
        result["peers"] = peers(arguments, model, problems)
        shown["peers"] = peers_table(result["peers"])
    if arguments.only in (None, "equal") and arguments.ckpt:
        result["equal"] = at_equal_quality(arguments, model, problems)
        shown["equal"] = equal_table(result["equal"], arguments.dps_steps)
    if arguments.only in (None, "batches"):
        result["batches"] = batches(arguments, model, clean)
        shown["batches"] = batches_table(result["batches"])
    for name, table in shown.items():
        print(f"\n{table}", flush=True)
        if arguments.doc:
            write_table(DOCS / "restoration.md", f"restoration_peers {name}", table)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def network_alone(model: DenoiserBase, problem: Problem, steps: int, *, gradient: bool) -> Run:
    """The evaluations of so many steps and nothing else, with the gradient of the input by torch's own way or without."""
    x = problem.clean.clone().requires_grad_(gradient)
    t = model.schedule.t_of_sigma(torch.full((len(x),), model.schedule.sigma_range[1], dtype=torch.float64))

    def run() -> Tensor:
        with torch.set_grad_enabled(gradient):
            for _ in range(steps):
                x_0 = model(x, t)
                if gradient:
                    torch.autograd.grad(x_0.sum(), x)
        return x_0.detach()

    return run


def peers(
    arguments: argparse.Namespace, model: DenoiserBase, problems: dict[str, Problem]
) -> list[dict[str, Any]]:
    """The first table."""
    rows = []
    for name, problem in problems.items():
        for method in arguments.methods:
            found = {
                who: candidate(who, method, arguments.steps, model, problem) for who in ("ours", "theirs")
            }
            runs = {who: run for who, run in found.items() if run is not None}
            brief = {who: candidate(who, method, 2, model, problem) for who in runs}
            alone = network_alone(model, problem, arguments.steps, gradient=method == "dps")
            seconds, made = seconds_by_turns({**runs, "network": alone}, arguments.repeats)
            row: dict[str, Any] = {"task": name, "method": method}
            row["network"] = seconds["network"] / len(problem.clean)
            for who in runs:
                row[who] = {
                    "seconds": seconds[who] / len(problem.clean),
                    "mib": peak_memory(brief[who]) / 2**20,
                    "nfe": evaluations(who, method, arguments.steps, model, problem),
                    "psnr": quality(made[who], problem) if arguments.ckpt else None,
                }
            rows.append(row)
            print(_peer_line(row), flush=True)
    return rows


def peers_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of the first table."""
    lines = [
        "| task | method | s/image: network alone | ours | deepinv | ratio | MiB: ours | deepinv | ratio | NFE | PSNR: ours "
        "| deepinv |",
        f"| --- | --- |{' ---: |' * 10}",
    ]
    return "\n".join([*lines, *(_peer_line(row) for row in rows)])


def _peer_line(row: dict[str, Any]) -> str:
    a, b = row["ours"], row.get("theirs")
    cells = [row["task"], row["method"], f"{row['network']:.3f}"]
    for key, digits in (("seconds", 3), ("mib", 1)):
        cells.append(f"{a[key]:.{digits}f}")
        cells += [f"{b[key]:.{digits}f}", f"{a[key] / b[key]:.2f}"] if b else ["–", "–"]
    cells.append(f"{a['nfe']}, {b['nfe'] if b else '–'}")
    cells += [f"{one['psnr']:.2f}" if one and one["psnr"] is not None else "–" for one in (a, b)]
    return f"| {' | '.join(cells)} |"


def at_equal_quality(
    arguments: argparse.Namespace, model: DenoiserBase, problems: dict[str, Problem]
) -> list[dict[str, Any]]:
    """The second table."""
    rows: list[dict[str, Any]] = []
    for name, problem in problems.items():
        runs: dict[str, Run] = {}
        for guidance in GUIDANCES:
            run = theirs(deepinv(), "dps", arguments.dps_steps, AsDeepinv(model), problem, guidance)
            assert run is not None
            runs[guidance] = run
        for restorer in arguments.restorers:
            for steps in STEPS_TRIED:
                runs[f"{restorer}, {steps} steps"] = ours(configured(restorer, steps), model, problem)
        made: dict[str, tuple[float, float]] = {}
        for key, run in runs.items():
            started = time.process_time()
            try:
                found = run()
            except (ValueError, FloatingPointError):
                continue
            made[key] = quality(found, problem), time.process_time() - started
        reference = max(GUIDANCES, key=lambda k: made[k][0])
        goal = made[reference][0]
        good = sorted(
            (k for k, (q, _) in made.items() if k not in GUIDANCES and q >= goal), key=lambda k: made[k][1]
        )[:3]
        seconds, _ = seconds_by_turns({k: runs[k] for k in [reference, *good]}, arguments.repeats)
        best = min(good, key=lambda k: seconds[k], default=None)
        row = {
            "task": name,
            "guidance": {key: made[key][0] for key in GUIDANCES},
            "psnr": goal,
            "seconds": seconds[reference] / len(problem.clean),
            "ours": best,
            "ours_psnr": None if best is None else made[best][0],
            "ours_seconds": None if best is None else seconds[best] / len(problem.clean),
        }
        rows.append(row)
    return rows


def equal_table(rows: Sequence[dict[str, Any]], dps_steps: int) -> str:
    """Markdown of the second table."""
    theirs = " | ".join(GUIDANCES)
    lines = [
        f"| task | deepinv's DPS, {dps_steps} steps: PSNR, {theirs} | s/image | ours | PSNR | s/image | share |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = row["ours_seconds"]
        cells = [row["task"], *(f"{row['guidance'][key]:.2f}" for key in GUIDANCES), f"{row['seconds']:.3f}"]
        cells += (
            ["none as good", "–", "–", "–"]
            if row["ours"] is None
            else [
                row["ours"],
                f"{row['ours_psnr']:.2f}",
                f"{seconds:.3f}",
                f"{seconds / row['seconds']:.3f}",
            ]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def batches(arguments: argparse.Namespace, model: DenoiserBase, clean: Tensor) -> dict[str, dict[int, float]]:
    """The third table."""
    rows: dict[str, dict[int, float]] = {}
    for method in ("dps", "diffpir"):
        runs = {}
        for size in BATCHES:
            problem = _problem("inpaint", clean[torch.arange(size) % len(clean)])
            runs[str(size)] = ours(restorer_of(method, 5), model, problem)
        seconds, _ = seconds_by_turns(runs, arguments.repeats)
        rows[method] = {size: seconds[str(size)] / size for size in BATCHES}
    return rows


def batches_table(rows: dict[str, dict[int, float]]) -> str:
    """Markdown of the third table."""
    lines = [
        f"| s/image in batches of | {' | '.join(map(str, BATCHES))} |",
        f"| --- | {' | '.join('---:' for _ in BATCHES)} |",
    ]
    for method, row in rows.items():
        lines.append(f"| {method}, 5 steps | {' | '.join(f'{value:.3f}' for value in row.values())} |")
    return "\n".join(lines)


def _problem(name: str, clean: Tensor) -> Problem:
    operator, noise = task(name, (clean.shape[-2], clean.shape[-1]))
    streams = ImageStreams(range(len(clean)), "observation")
    return Problem(name, clean, Observation.simulate(clean, operator, noise, streams))


def _model_and_images(arguments: argparse.Namespace) -> tuple[DenoiserBase, Tensor]:
    side, count = arguments.side, arguments.count
    if arguments.ckpt is None:
        parts = {"network": "unet_1m", "precond": "eps", "schedule": "vp"}
        config = {key: read_conf(key, name) for key, name in parts.items()}
        record = {"config": config, "event_shape": [3, side, side], "num_classes": None}
        model: Any = build_denoiser(record).eval()
        clean = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    else:
        model = prior.load() if arguments.ckpt == "prior" else se.load(arguments.ckpt)
        clean = images_of(arguments.input, count, side)
    if isinstance(model, nn.Module):
        model.requires_grad_(arguments.trainable)
    return model, clean


if __name__ == "__main__":
    main()
