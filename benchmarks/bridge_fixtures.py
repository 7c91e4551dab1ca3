"""Inputs and outputs of other libraries for tests without them: ``python -m benchmarks.bridge_fixtures --edm DIR``

``DIR`` is a checkout of NVlabs/edm at commit 008a4e5. Its networks are made with small widths and random weights,
pickled as its training loop does, without the source text that such a pickle carries, and evaluated at ten noise levels.
With diffusers installed its noise schedules and time steps are stored too.
"""

import argparse
import gzip
import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).parent.parent / "tests" / "fixtures" / "bridge"
COMMIT = "008a4e5316c8e3bfe61a62f874bddba254295afb"
LEVELS = np.geomspace(0.03, 70, 10).tolist()
SMALL = {
    "img_resolution": 4,
    "img_channels": 1,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [2],
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpmpp": ("EDMPrecond", {"model_type": "SongUNet", "model_channels": 8}),
    "ncsnpp": (
        "VEPrecond",
        {
            "model_channels": 8, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
    ),
    "labels": ("VPPrecond", {"model_channels": 8, "label_dim": 3, "augment_dim": 9, "decoder_type": "skip"}),
}  # fmt: skip


def coarse(network: nn.Module) -> nn.Module:
    """Random parameters of few digits, which compress."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        fan = max(1, parameter[0].numel())
        values = torch.randn(parameter.shape, generator=generator) / fan**0.5
        parameter.data.copy_((8 * values).round() / 8)
    return network.eval().requires_grad_(False)


def edm(checkout: Path) -> None:
    """One gzipped pickle for each network, and its posterior means."""
    sys.path.insert(0, str(checkout))
    from torch_utils import persistence

    persistence._module_to_src = lambda module: ""
    from training import networks

    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    outputs: dict[str, np.ndarray] = {"x": x.numpy(), "levels": np.array(LEVELS)}
    for name, (kind, arguments) in NETWORKS.items():
        network = coarse(getattr(networks, kind)(**SMALL, **arguments))
        means = []
        for sigma in LEVELS:
            label = torch.tensor([[0.0, 1.0, 0.0]]) if arguments.get("label_dim") else None
            means.append(network(sigma * x, torch.tensor([sigma]), class_labels=label))
        outputs[name] = torch.cat(means).numpy()
        packed = gzip.compress(pickle.dumps({"ema": network, "loss_fn": None}), 9, mtime=0)
        (FOLDER / f"edm_{name}.pkl.gz").write_bytes(packed)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outputs)  # type: ignore[arg-type]
    (FOLDER / "edm.npz").write_bytes(buffer.getvalue())


def diffusers() -> None:
    """``alphas_cumprod`` at ten steps, and the time steps of 50, 300 and 600."""
    from diffusers import DDIMScheduler

    steps = [0, 1, 10, 50, 100, 300, 500, 800, 998, 999]
    found: dict[str, Any] = {"steps": steps, "cumulative": {}, "timesteps": {}}
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for no_signal in (False, True):
            made = DDIMScheduler(beta_schedule=kind, rescale_betas_zero_snr=no_signal)
            found["cumulative"][f"{kind} {int(no_signal)}"] = made.alphas_cumprod[steps].double().tolist()
    for spacing in ("leading", "trailing", "linspace"):
        for count in (50, 300, 600):
            made = DDIMScheduler(timestep_spacing=spacing)
            made.set_timesteps(count)
            kept = made.timesteps.tolist()
            found["timesteps"][f"{spacing} {count}"] = {
                "first": kept[:3],
                "last": kept[-3:],
                "sum": sum(kept),
            }
    (FOLDER / "diffusers.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edm", type=Path, help=f"a checkout of NVlabs/edm at {COMMIT[:7]}")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.edm:
        edm(options.edm)
    diffusers()


if __name__ == "__main__":
    main()
