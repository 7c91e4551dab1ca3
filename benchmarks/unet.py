"""Speed of the U-Net beside the ceiling of the machine: ``python -m benchmarks.unet [--json PATH] [--compile]``.

For U-Nets of about 1, 9 and 35 M parameters (conf/network/unet_1m.yaml, ...; 32 x 32 x 3, batch 16) it prints training
images/s (forward, backward and Adam step), forward images/s, peak memory, and each as a fraction of the ceiling:

    fraction = FLOPs counted by torch.utils.flop_counter / seconds / ceiling.

The ceiling (machine.py) is probed before and after every timed window, and a window counts in units of the mean of its
two probes, so that what other jobs do to the machine's speed cancels. The figures are medians over the half of the
windows whose probes were fastest: a disturbed window is discarded by its probes, never by its own result.
Each network runs in a process of its own, whose peak resident memory less that before the network is its memory.
``--peers`` adds diffusers' U-Nets of the same sizes (``unet_peers``), where that package is installed.
On a CUDA device it measures there, in float32, bfloat16 and bfloat16 compiled.
"""

import argparse
import importlib
import multiprocessing
import platform
import resource
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import CeilingProbe, seconds
from scoreexp.system.json_files import write_json
from scoreexp.system.machine import processor

ROOT = Path(__file__).parents[1]
NETWORKS = ("unet_1m", "unet_9m", "unet_35m")
PEERS = ("diffusers_1m", "diffusers_9m", "diffusers_35m")
EVENT_SHAPE = (3, 32, 32)
BATCH = 16
TARGETS = {"unet_1m": 0.50, "unet_9m": 0.70, "unet_35m": 0.80}


def build(name: str) -> nn.Module:
    """The network of conf/network/<name>.yaml for the benchmark's images, or one of ``PEERS``."""
    if name in PEERS:
        from benchmarks.unet_peers import build_peer

        return build_peer(*name.split("_"))
    config = yaml.safe_load((ROOT / "conf" / "network" / f"{name}.yaml").read_text())
    module, _, class_name = config.pop("_target_").rpartition(".")
    return getattr(importlib.import_module(module), class_name)(event_shape=EVENT_SHAPE, **config)


class Window(NamedTuple):
    """One timed window: seconds per call, FLOPs per call, and the ceiling in FLOP/s beside it."""

    seconds: float
    flops: int
    ceiling: float

    @property
    def fraction(self) -> float:
        return self.flops / self.seconds / self.ceiling


def quietest(windows: list[Window]) -> list[Window]:
    """The half of the windows (rounded up) with the highest ceilings."""
    return sorted(windows, key=lambda w: -w.ceiling)[: (len(windows) + 1) // 2]


def measure(name: str, variant: str, rounds: int, window: float) -> dict[str, Any]:
    """Time one network: ``variant`` is float32, bfloat16, or either followed by ``+compile``."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    autocast = variant.startswith("bfloat16")
    torch.manual_seed(0)
    probe = CeilingProbe(device, torch.bfloat16 if autocast else torch.float32)
    before = _peak_bytes(device)
    network = build(name).to(device)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    x = torch.randn(BATCH, *EVENT_SHAPE, device=device).contiguous(memory_format=torch.channels_last)
    noise = torch.randn_like(x)
    c_noise = torch.linspace(-2.5, 1.5, BATCH, device=device)

    def loss() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return (network(x, c_noise) - noise).square().mean()

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            network(x, c_noise)

    def train() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    with FlopCounterMode(display=False) as train_counter:
        loss().backward()
    with FlopCounterMode(display=False) as forward_counter:
        forward()
    optimizer.zero_grad(set_to_none=True)
    if variant.endswith("+compile"):
        network.compile()

    work = {
        "train": (train, train_counter.get_total_flops()),
        "forward": (forward, forward_counter.get_total_flops()),
    }
    repeats = {}
    for kind, (function, _) in work.items():
        seconds(function, 2, device)  # warm up
        repeats[kind] = max(1, round(window / seconds(function, 2, device)))
    windows: dict[str, list[Window]] = {kind: [] for kind in work}
    before_window = probe()["ceiling"]
    for _ in range(rounds):
        for kind, (function, flops) in work.items():
            elapsed = seconds(function, repeats[kind], device)
            after_window = probe()["ceiling"]
            windows[kind].append(Window(elapsed, flops, (before_window + after_window) / 2))
            before_window = after_window
    training, inference = (quietest(windows[kind]) for kind in ("train", "forward"))
    return {
        "network": name,
        "variant": variant,
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_images_per_s": BATCH / median(w.seconds for w in training),
        "forward_images_per_s": BATCH / median(w.seconds for w in inference),
        "train_fraction": median(w.fraction for w in training),
        "train_fraction_range": [min(w.fraction for w in training), max(w.fraction for w in training)],
        "forward_fraction": median(w.fraction for w in inference),
        "train_gflop_per_image": work["train"][1] / BATCH / 1e9,
        "forward_gflop_per_image": work["forward"][1] / BATCH / 1e9,
        "ceiling_gflop_per_s": median(w.ceiling for w in training) / 1e9,
        "peak_memory_mib": (_peak_bytes(device) - before) / 2**20,
        "rounds": rounds,
    }


def _peak_bytes(device: torch.device) -> int:
    """Peak memory so far: allocated on a CUDA device, resident in this process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(results: list[dict[str, Any]]) -> str:
    """The results as text, one line per network and variant."""
    lines = [
        f"{'network':15}{'variant':18}{'parameters':>12}{'train img/s':>13}{'fraction':>10}{'(min-max)':>13}{'target':>8}"
        f"{'forward img/s':>15}{'fraction':>10}{'peak MiB':>10}{'ceiling GFLOP/s':>17}"
    ]
    for r in results:
        low, high = r["train_fraction_range"]
        lines.append(
            f"{r['network']:15}{r['variant']:18}{r['parameters']:12,}{r['train_images_per_s']:13.1f}"
            f"{r['train_fraction']:10.2f}{f'{low:.2f}-{high:.2f}':>13}{TARGETS.get(r['network'], '–'):>8}"
            f"{r['forward_images_per_s']:15.1f}{r['forward_fraction']:10.2f}{r['peak_memory_mib']:10.0f}"
            f"{r['ceiling_gflop_per_s']:17.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the U-Net beside the ceiling of the machine.")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/unet_<cpu or cuda>.json")
    parser.add_argument(
        "--network", choices=NETWORKS, action="append", help="only this one (may be repeated)"
    )
    parser.add_argument("--peers", action="store_true", help="diffusers' of the same sizes beside each")
    parser.add_argument("--rounds", type=int, default=12, help="timed windows per network (default 12)")
    parser.add_argument("--window", type=float, default=0.5, help="seconds of one window (default 0.5)")
    parser.add_argument(
        "--compile", action="store_true", help="also compiled by torch (needs a C++ compiler)"
    )
    options = parser.parse_args()

    cuda = torch.cuda.is_available()
    variants = ["float32", "bfloat16", "bfloat16+compile"] if cuda else ["float32"]
    if options.compile:
        variants.append("float32+compile")
    names = [*(options.network or NETWORKS)]
    if options.peers:
        try:
            build(PEERS[0])
        except ImportError as error:
            print(f"diffusers cannot be imported, so its U-Nets are left out: {error}")
        else:
            names += [name.replace("unet", "diffusers") for name in names]
    machine = {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": BATCH,
        "event_shape": EVENT_SHAPE,
    }
    path = options.json or ROOT / "benchmarks" / "results" / f"unet_{'cuda' if cuda else 'cpu'}.json"
    results = []
    for name in names:
        for variant in variants:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(measure, (name, variant, options.rounds, options.window)))
            print(table(results) if len(results) == 1 else table(results[-1:]).split("\n")[1], flush=True)
            write_json(path, {"machine": machine, "results": results})  # stopped later, it keeps what it has
    print(f"stored in {path}")


if __name__ == "__main__":
    main()
