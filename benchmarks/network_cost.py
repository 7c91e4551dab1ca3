"""What networks and experiments cost, counted without running them: ``python -m benchmarks.network_cost [--json [PATH]]``

For every network of conf/network (on one 3 x 32 x 32 image) and every experiment of conf/experiment it gives the number
of parameters, the FLOPs of one image forward and in training (forward and backward, counted by
torch.utils.flop_counter), the memory of the activations kept for the backward pass and of the weights, their gradients,
Adam's moments and the average, and for experiments the hours on one A100 80 GB:

    hours = (steps x batch x training FLOPs + evaluations x images x NFE x forward FLOPs) / (0.4 x peak) / 3600.

The peak is 312 TFLOP/s in bfloat16 and 19.5 TFLOP/s in float32. That networks reach 40 % of it is an assumption: small
networks and batches reach less, so that their hours are a lower bound, and a run that stops on its target ends before
its last step. Nothing is allocated: tensors are fake. The activations are those of the CPU's kernels
under the recipe's precision, without temporary buffers; those of CUDA differ by some per cent.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from scoreexp.app.conf_dir import conf_dir

RESULT = Path(__file__).parent / "results" / "network_cost.json"
GPU = "NVIDIA A100 80 GB"
PEAK = {"bf16-mixed": 312e12, "32-true": 19.5e12}  # FLOP/s
REACHED = 0.4  # share of the peak that a network is assumed to reach
IMAGE = (3, 32, 32)


class Cost(NamedTuple):
    """Costs of a network: of one image, but ``constant_bytes``, which a step keeps once (casts of the weights)."""

    parameters: int
    forward_flops: int
    training_flops: int
    activation_bytes: int
    constant_bytes: int


def materialised(network: nn.Module) -> nn.Module:
    """The network, built on the meta device, with fake tensors for its parameters and buffers."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return network


def one_step(network: nn.Module, x: Tensor, bfloat16: bool) -> tuple[int, int, int]:
    """FLOPs forward, FLOPs forward and backward, and bytes kept in between, weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    counter = FlopCounterMode(display=False)
    with counter:
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            y = network(x, torch.empty(len(x)))
        forward, kept_bytes = counter.get_total_flops(), sum(s.nbytes() for s in kept.values())
        y.float().sum().backward()
    return forward, counter.get_total_flops(), kept_bytes


def cost(config: DictConfig, event_shape: tuple[int, ...], num_classes: int | None, precision: str) -> Cost:
    """Costs of the network that ``config`` describes; nothing for one that has no parameters."""
    with torch.device("meta"):
        network = instantiate(config, event_shape=event_shape, num_classes=num_classes)
    parameters = sum(p.numel() for p in network.parameters())
    if not parameters:
        return Cost(0, 0, 0, 0, 0)
    with FakeTensorMode():
        network = materialised(network).train()
        forward, training, one = one_step(network, torch.empty(1, *event_shape), precision == "bf16-mixed")
        _, _, two = one_step(network, torch.empty(2, *event_shape), precision == "bf16-mixed")
    return Cost(parameters, forward, training, two - one, 2 * one - two)


def network_row(name: str) -> dict[str, Any]:
    """The costs of conf/network/<name>.yaml on one image."""
    c = cost(composed(f"network={name}").network, IMAGE, None, "bf16-mixed")
    return {
        "network": name,
        "event_shape": list(IMAGE),
        "parameters": c.parameters,
        "forward_gflop_per_image": rounded(c.forward_flops / 1e9),
        "training_gflop_per_image": rounded(c.training_flops / 1e9),
        "activation_mib_per_image": rounded(c.activation_bytes / 2**20),
    }


def experiment_row(name: str) -> dict[str, Any]:
    """The costs of conf/experiment/<name>.yaml at its batch size, number of steps and evaluation interval."""
    cfg = composed(f"experiment={name}")
    data, precision = instantiate(cfg.data), str(cfg.trainer.precision)
    c = cost(cfg.network, data.event_shape, data.num_classes, precision)
    batch, steps, interval = cfg.data.batch_size, cfg.trainer.max_steps, cfg.trainer.val_check_interval
    images = min(n for n in (data.num_val, data.num_images) if n is not None)
    evaluations = steps / interval if isinstance(interval, int) else 0  # else by the clock
    evaluation = evaluations * images * evaluations_of_network(cfg.sampler) * c.forward_flops
    flops = steps * batch * c.training_flops + evaluation
    state = c.parameters * 4 * (4 + (cfg.model.ema is not None))
    return {
        "experiment": name,
        "event_shape": list(data.event_shape),
        "parameters": c.parameters,
        "forward_gflop_per_image": rounded(c.forward_flops / 1e9),
        "training_gflop_per_image": rounded(c.training_flops / 1e9),
        "batch": batch,
        "steps": steps,
        "precision": precision,
        "activation_gib": rounded((batch * c.activation_bytes + c.constant_bytes) / 2**30),
        "state_gib": rounded(state / 2**30),
        "training_pflop": rounded(steps * batch * c.training_flops / 1e15),
        "evaluation_pflop": rounded(evaluation / 1e15),
        "hours": rounded(flops / (REACHED * PEAK[precision]) / 3600),
    }


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def evaluations_of_network(sampler: DictConfig) -> int:
    """NFE of a sampler that evaluates the network once a step, as those of the monitors do."""
    return int(sampler.grid.steps if "grid" in sampler else sampler.steps)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Parameters, FLOPs, memory and hours, counted, not measured."
    )
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT, help=f"write the figures (to {RESULT})")
    parser.add_argument("--only", nargs="+", default=[], help="only these networks and experiments")
    options = parser.parse_args()

    result: dict[str, Any] = {
        "gpu": GPU,
        "peak_flop_per_s": PEAK,
        "assumed_share_of_peak": REACHED,
        "torch": torch.__version__,
    }
    for group, row in (("network", network_row), ("experiment", experiment_row)):
        chosen = [name for name in names(group) if not options.only or name in options.only]
        rows = [row(name) for name in chosen]
        result[f"{group}s"] = rows
        for entry in rows:
            print("  ".join(f"{key} {value}" for key, value in entry.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written to {options.json}")


if __name__ == "__main__":
    main()
