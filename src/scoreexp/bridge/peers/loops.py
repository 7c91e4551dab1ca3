"""Training loops of diffusers, denoising-diffusion-pytorch and azula: ``python loops.py REQUEST.json``

A script of its own, for an interpreter that has the library, torch and numpy; scoreexp need not be there. The request holds

- images: a ``.npy`` file ``[N, C, H, W]`` float32 in [-1, 1]; library; batch_size; width; seed; threads; device;
- seconds: training stops after the step at which so many have passed since the first one began;
- out: a folder, for the model in the library's own format and ``result.json`` with its name, the seconds and steps.

Network, loss and optimiser are those of each library's example of unconditional training; only the width is asked for, and
the number of levels follows from the size of the images.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def levels_of(side: int) -> int:
    """Resolutions of a network: each half of the one before, the smallest at least 4 pixels, at most 4.

    >>> levels_of(32), levels_of(8), levels_of(7)
    (4, 2, 1)
    """
    levels = 1
    while levels < 4 and side % 2**levels == 0 and side >> levels >= 4:
        levels += 1
    return levels


class Diffusers:
    """``UNet2DModel``, ``DDPMScheduler``, noise prediction, AdamW: its ``train_unconditional.py`` without warm-up."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        import diffusers

        levels, self.version = levels_of(shape[1]), diffusers.__version__
        last = levels - 1
        self.network: nn.Module = diffusers.UNet2DModel(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=2,
            norm_num_groups=min(32, width // 4),
            block_out_channels=[width * min(i + 1, 2) for i in range(levels)],
            down_block_types=[
                "AttnDownBlock2D" if last and i == last else "DownBlock2D" for i in range(levels)
            ],
            up_block_types=["AttnUpBlock2D" if last and i == 0 else "UpBlock2D" for i in range(levels)],
        )
        self.scheduler = diffusers.DDPMScheduler()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
        )

    def loss(self, x: Tensor) -> Tensor:
        noise = torch.randn_like(x)
        steps = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(x),), device=x.device)
        predicted = self.network(self.scheduler.add_noise(x, noise, steps), steps).sample
        return nn.functional.mse_loss(predicted, noise)

    def after_step(self) -> None:
        """Nothing: its script keeps no average by default."""

    def save(self, out: Path) -> str:
        from diffusers import DDPMPipeline

        DDPMPipeline(self.network, self.scheduler).save_pretrained(out / "pipeline")
        return "pipeline"


class DenoisingDiffusion:
    """``Unet`` and ``GaussianDiffusion`` with the defaults of its ``Trainer``: v prediction, Adam, an average."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from denoising_diffusion_pytorch.version import __version__
        from ema_pytorch import EMA

        self.sides, self.version = [*shape[1:]], __version__
        mults = tuple(2**i for i in range(min(3, levels_of(shape[1]))))
        unet = Unet(dim=width, dim_mults=mults, channels=shape[0])
        self.network: nn.Module = GaussianDiffusion(unet, image_size=tuple(shape[1:]))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, betas=(0.9, 0.99))
        self.average = EMA(self.network, beta=0.995, update_every=10)

    def loss(self, x: Tensor) -> Tensor:
        found: Tensor = self.network((x + 1) / 2)
        return found

    def after_step(self) -> None:
        """Update the average."""
        self.average.update()

    def save(self, out: Path) -> str:
        held = {"model": self.network.state_dict(), "ema": self.average.state_dict(), "version": self.version}
        torch.save(held, out / "model-1.pt")
        (out / "model-1.json").write_text(json.dumps({"image_size": self.sides}))
        return "model-1.pt"


class AzulaUNet(nn.Module):
    """azula's U-Net with an embedding of the time, the backbone of its tutorials.

    Args:
        channels: of an image.
        width: at full resolution.
        levels: resolutions.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding
        from azula.nn.unet import UNet

        self.embedding = nn.Sequential(
            SineEncoding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        hidden = [width * min(i + 1, 2) for i in range(levels)]
        self.unet = UNet(
            channels, channels, mod_features=width, hid_channels=hidden, hid_blocks=[2] * levels, norm="group"
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``b(x, t)``."""
        output: Tensor = self.unet(x, self.embedding(t))
        return output


class Azula:
    """``KarrasDenoiser`` with ``VPSchedule``, its own loss at uniform times, AdamW."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        from importlib.metadata import version

        from azula.denoise import KarrasDenoiser
        from azula.noise import VPSchedule

        self.shape, self.version = shape, version("azula")
        self.arguments = {"channels": shape[0], "width": width, "levels": levels_of(shape[1])}
        self.network: Any = KarrasDenoiser(AzulaUNet(**self.arguments), VPSchedule())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.0)

    def loss(self, x: Tensor) -> Tensor:
        found: Tensor = self.network.loss(x, torch.rand(len(x), device=x.device))
        return found

    def after_step(self) -> None:
        """Nothing: it has no average."""

    def save(self, out: Path) -> str:
        torch.save(self.network.state_dict(), out / "denoiser.pth")
        stated = {
            "format": "azula",
            "denoiser": "KarrasDenoiser",
            "schedule": {"name": "VPSchedule"},
            "event_shape": list(self.shape),
            "backbone": {"_target_": "scoreexp.bridge.peers.loops.AzulaUNet", **self.arguments},
            "downsampling_factor": 2 ** (self.arguments["levels"] - 1),
        }
        (out / "denoiser.json").write_text(json.dumps(stated))
        return "denoiser.pth"


LOOPS: dict[str, Any] = {
    "diffusers": Diffusers,
    "denoising_diffusion_pytorch": DenoisingDiffusion,
    "azula": Azula,
}


def train(request: dict[str, Any]) -> dict[str, Any]:
    """Train as the request says; what ``result.json`` holds."""
    torch.manual_seed(request["seed"])
    torch.set_num_threads(request["threads"])
    images = torch.from_numpy(np.load(request["images"])).to(request["device"])
    loop, out = LOOPS[request["library"]](tuple(images.shape[1:]), request["width"]), Path(request["out"])
    loop.network.to(request["device"]).train()
    steps, last, started = 0, 0.0, time.perf_counter()
    while (spent := time.perf_counter() - started) < request["seconds"]:
        chosen = torch.randint(0, len(images), (request["batch_size"],), device=images.device)
        loss = loop.loss(images[chosen])
        loop.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(loop.network.parameters(), 1.0)
        loop.optimizer.step()
        loop.after_step()
        steps, last = steps + 1, loss.item()  # waits for the device
        if last != last:
            raise ValueError(f"the loss is not finite at step {steps}")
    model = loop.save(out)
    library = f"{request['library']} {loop.version}"
    return {"model": model, "seconds": spent, "steps": steps, "loss": last, "library": library}


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    Path(asked["out"], "result.json").write_text(json.dumps(train(asked)))
