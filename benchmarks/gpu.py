"""What a GPU does, in at most eight minutes: ``python -m benchmarks.gpu [--rehearse] [--json PATH]``

Each part is a process of its own with a limit of seconds; one that fails or takes longer is stored with its last line, and
the others go on:

- the tests that need a GPU;
- U-Nets of 1, 9 and 35 M parameters in float32, bfloat16 and compiled (``benchmarks.unet``), beside those of diffusers
  where it is installed;
- ``photo32_ours`` and the settings of ``celeba64_ours`` on a 64 x 64 face, to their targets;
- the spectral solver on the device, and samplers' images per second (``--part`` of this module);
- distributed data parallel with one process, under NCCL.

The result is ``benchmarks/results/gpu_<device>.json``. ``--rehearse`` runs every part in its smallest form on a CPU, with
four times the limits, and stores nothing unless ``--json`` is given; its figures mean nothing but that the parts run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scoreexp.runs.directory import git_revision
from scoreexp.system.json_files import write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parents[1]
LIMIT = 480.0  # seconds of all parts together
PATIENCE = 4  # times the limits of a rehearsal: a machine without a GPU is often busy with other work


class Part(NamedTuple):
    """A process: the arguments of python, and the files of its result relative to the folder that replaces ``OUT``."""

    name: str
    arguments: list[str]
    seconds: float  # at most
    results: tuple[str, ...] = ()


def parts(rehearse: bool) -> list[Part]:
    """What is run, in order of what matters most if the time ends."""
    train = ["-m", "scoreexp.train"]
    tests = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    one = [
        "experiment=photo32_ddpm",
        "debug=fast",
        "trainer=ddp",
        "trainer.devices=1",
        "run_dir=OUT/ddp",
    ]
    photo = ["experiment=photo32_ours", "run_dir=OUT/photo32"]
    face = ["experiment=celeba64_ours", "data=photo", "data.name=astronaut", "data.size=64"]
    small = ["debug=fast", "trainer.accelerator=cpu", "network=unet_1m"] if rehearse else []
    own = ["-m", "benchmarks.gpu", *(["--rehearse"] if rehearse else [])]
    unet = ["--peers", "--rounds", "4"]
    if rehearse:
        unet = ["--peers", "--network", "unet_1m", "--rounds", "1", "--window", "0.05"]
    return [
        Part("gpu tests", ["-m", "pytest", *tests, "-q", "-m", "gpu", "-p", "no:cacheprovider"], 90),
        Part("photo32_ours", [*train, *photo, *small], 90, ("photo32/metrics.json",)),
        Part("celeba64_ours, a face", [*train, *face, "run_dir=OUT/face", *small], 200, ("face/metrics.json",)),
        Part("spectral solver", [*own, "--part", "solver", "--json", "OUT/solver.json"], 60, ("solver.json",)),
        Part("samplers", [*own, "--part", "samplers", "--json", "OUT/samplers.json"], 90, ("samplers.json",)),
        Part("distributed, one process", [*train, *one, *small[1:]], 60, ("ddp/metrics.json",)),
        Part("unet", ["-m", "benchmarks.unet", *unet, "--json", "OUT/unet.json"], 240, ("unet.json",)),
    ]  # fmt: skip


def run(part: Part, folder: Path, left: float) -> dict[str, Any]:
    """Seconds, the last line and the results of a part; ``error`` where it failed or was stopped."""
    arguments = [word.replace("OUT", str(folder)) for word in part.arguments]
    limit, start = max(0.0, min(part.seconds, left)), time.monotonic()
    found: dict[str, Any] = {}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        found["error"] = f"stopped after {limit:.0f} s"
    else:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or [""]
        found["last_line"] = lines[-1]
        nothing_to_test = part.name == "gpu tests" and done.returncode == 5
        if done.returncode and not nothing_to_test:
            found["error"] = f"exit code {done.returncode}"
    found["seconds"] = round(time.monotonic() - start, 2)
    for name in part.results:  # of a part that was stopped too, what it had stored
        if "error" not in found or (folder / name).exists():
            found[Path(name).stem] = json.loads((folder / name).read_text())
    return found


def seconds_of(function: Any, device: torch.device, repeats: int) -> float:
    function()  # warm up
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def solver(rehearse: bool) -> dict[str, float]:
    """Milliseconds of the spectral solver for a batch of images on the device, and of the numpy one."""
    from benchmarks.fokker_planck import log_densities
    from scoreexp.numerics.fokker_planck import solve_log_density
    from scoreexp.numerics.spectral_torch import TorchSpectral

    device = torch.device("cpu" if rehearse else "cuda")
    log_p0 = log_densities(32, 2 if rehearse else 64)
    given: dict[str, Any] = {"g": 0.5, "times": np.linspace(0, 1, 11)}
    on_device = TorchSpectral(device.type, "float32")
    return {
        "images": len(log_p0),
        "device_ms": 1000
        * seconds_of(lambda: solve_log_density(log_p0, solver=on_device, **given), device, 3),
        "numpy_ms": 1000
        * seconds_of(lambda: solve_log_density(log_p0, solver="spectral", **given), device, 1),
    }


def samplers(rehearse: bool) -> dict[str, float]:
    """Images per second of samplers with 20 times and the U-Net of 9 M parameters (1 M and 2 in a rehearsal)."""
    import scoreexp as se
    from benchmarks.unet import EVENT_SHAPE, build
    from scoreexp.core.streams import ImageStreams
    from scoreexp.denoisers import Denoiser, EpsPrediction
    from scoreexp.schedules import DDPM

    device = torch.device("cpu" if rehearse else "cuda")
    network = build("unet_1m" if rehearse else "unet_9m").to(device)
    model = Denoiser(network, EpsPrediction(), DDPM()).to(device).eval().requires_grad_(False)
    n, steps = (2, 2) if rehearse else (256, 20)
    streams = ImageStreams(range(n))
    x = model.schedule.prior_std * streams.normal(torch.empty(n, *EVENT_SHAPE)).to(device)
    found = {}
    for name in ("DDIM", "DPMSolverPP", "Heun"):
        sampler = getattr(se.samplers, name)(se.samplers.UniformGrid(steps))
        found[name] = n / seconds_of(lambda s=sampler: s(model, x, streams=streams), device, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="every part in its smallest form on a CPU")
    parser.add_argument(
        "--part", choices=("solver", "samplers"), help="only this measurement, in this process"
    )
    parser.add_argument("--json", type=Path, help="where to store the result")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device: add --rehearse, or use a machine with one")
    if given.part:
        write_json(given.json, {"solver": solver, "samplers": samplers}[given.part](given.rehearse))
        return
    device = processor() if given.rehearse else torch.cuda.get_device_name()
    patience = PATIENCE if given.rehearse else 1
    end, found = time.monotonic() + patience * LIMIT, {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(given.rehearse):
            slow = part._replace(seconds=patience * part.seconds)
            found[part.name] = run(slow, Path(folder), end - time.monotonic())
            print(
                f"{part.name:26} {found[part.name].get('error', 'done'):24} {found[part.name]['seconds']:6.1f} s",
                flush=True,
            )
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    path = given.json or (None if given.rehearse else ROOT / "benchmarks" / "results" / f"gpu_{slug}.json")
    if path is not None:
        machine = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda}
        write_json(
            path,
            {"machine": machine, "revision": git_revision(), "rehearsal": given.rehearse, "parts": found},
        )
        print(f"stored in {path}")
    if failed := [name for name, of in found.items() if "error" in of]:
        raise SystemExit(f"error: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
