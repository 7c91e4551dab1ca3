"""What int8 kernels of this processor would bring to sampling: ``python -m benchmarks.int8_kernels [--json [PATH]]``

Each convolution of ``unet_1m`` (batch 16, 32 x 32, 3 channels) runs in float32 and by oneDNN's quantised convolution (8-bit
inputs, weights and outputs), alone and with its input quantised and its output returned to float32, as it must be where
normalisation and activations stay in floating point. The rest of the network is what its forward pass takes beyond its
convolutions. Times are processor time of one thread, least of several, taken in turn: on a shared machine the ratio holds
and the times do not. Product code needs 1.5 times the images/s of the whole network (docs/diagnostics.md).
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fokker_planck import describe_machine
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.construct import construct
from scoreexp.system.json_files import write_json

RESULT = Path(__file__).parent / "results" / "int8_kernels.json"
NEEDED = 1.5
SHAPE = (3, 32, 32)


def fastest(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least processor seconds of each, taken in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeats):
        for name, function in functions.items():
            began = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - began)
    return best


def quantised_convolution(layer: nn.Conv2d, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The layer in float32, in int8, and in int8 between float32 tensors."""
    out = layer(x)
    weight = torch.quantize_per_channel(
        layer.weight.detach(),
        layer.weight.detach().flatten(1).abs().amax(1).clamp_min(1e-8).double() / 127,
        torch.zeros(layer.out_channels, dtype=torch.long),
        0,
        torch.qint8,
    )
    packed = torch.ops.quantized.conv2d_prepack(
        weight, layer.bias, list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
    )

    def grid(v: Tensor) -> tuple[float, int]:
        low, high = min(float(v.min()), 0.0), float(v.max())
        step = max(high - low, 1e-8) / 127  # 7 bits: what does not saturate in every kernel
        return step, round(-low / step)

    (step, zero), (out_step, out_zero) = grid(x), grid(out)
    q = torch.quantize_per_tensor(x, step, zero, torch.quint8)

    def alone() -> Tensor:
        return torch.ops.quantized.conv2d(q, packed, out_step, out_zero)

    def between() -> Tensor:
        return torch.ops.quantized.conv2d(
            torch.quantize_per_tensor(x, step, zero, torch.quint8), packed, out_step, out_zero
        ).dequantize()

    error = float((between() - out).square().mean() / out.square().mean().clamp_min(1e-12))
    assert error < 0.05, f"the quantised layer is another one: relative squared error {error:.3g}"
    return {"float32": lambda: layer(x), "int8": alone, "int8 between float32": between}


@torch.no_grad()
def measure(batch: int, repeats: int) -> dict[str, Any]:
    """Times of the network and of its convolutions."""
    import yaml

    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.backends.quantized.engine = "onednn"
    node = yaml.safe_load((conf_dir() / "network" / "unet_1m.yaml").read_text())
    network = construct(node, "network", event_shape=SHAPE, num_classes=None).eval()
    for p in network.parameters():
        if p.ndim > 1 and not p.any():  # layers that start at zero
            nn.init.normal_(p, std=0.05)
    x, level = torch.randn(batch, *SHAPE), torch.zeros(batch)
    seen: list[tuple[nn.Conv2d, Tensor]] = []
    hooks = [
        m.register_forward_hook(lambda layer, inputs, _: seen.append((layer, inputs[0].clone())))
        for m in network.modules()
        if isinstance(m, nn.Conv2d)
    ]
    network(x, level)
    for hook in hooks:
        hook.remove()
    whole = fastest({"whole": lambda: network(x, level)}, repeats)["whole"]
    total = dict.fromkeys(("float32", "int8", "int8 between float32"), 0.0)
    for layer, inputs in seen:
        for name, seconds in fastest(quantised_convolution(layer, inputs), repeats).items():
            total[name] += seconds
    rest = max(whole - total["float32"], 0.0)
    return {
        "network": "unet_1m",
        "batch": batch,
        "convolutions": len(seen),
        "seconds of the network": whole,
        "seconds of its convolutions": total,
        "speed-up of the convolutions alone": total["float32"] / total["int8"],
        "speed-up of the network, float32 between": whole / (rest + total["int8 between float32"]),
        "speed-up of the network if nothing else cost anything more": whole / (rest + total["int8"]),
        "needed": NEEDED,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # torch's advice on where quantisation has moved
    found = measure(options.batch, options.repeats)
    print(json.dumps(found, indent=1))
    if options.json:
        write_json(options.json, {"machine": describe_machine(), **found})


if __name__ == "__main__":
    main()
