"""Equality with the libraries that the bridge reads: ``python -m benchmarks.bridge_peers [--json [PATH]]``

For each source whose package is installed a randomly initialised network is made by the package, saved as the package saves
it, and read by ``se.load``. Reported are the largest difference of the posterior mean at ten noise levels and of an image
drawn by a deterministic sampler, each relative to the larger of 1 and the original's largest value. The packages:
``pip install diffusers==0.42.1 denoising-diffusion-pytorch==2.3.4 azula==0.11.1 k-diffusion==0.1.1.post1 deepinv==0.5.0``.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import scoreexp as se
from scoreexp.bridge import TimestepGrid
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase

RESULT = Path(__file__).parent / "results" / "bridge_peers.json"
STEPS = (0, 1, 10, 50, 100, 300, 500, 800, 998, 999)
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


class Difference(NamedTuple):
    """Of one source: posterior means and an image."""

    mean: float
    image: float


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters drawn anew: many networks start with an output of 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.copy_(
            torch.randn(parameter.shape, generator=generator) * 0.2 / max(1, parameter[0].numel()) ** 0.5
        )
    return network.eval()


def start(channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def our_image(model: DenoiserBase, grid: Any, x: Tensor) -> Tensor:
    return se.samplers.DDIM(grid)(model, x, streams=ImageStreams([0, 1])).x


def diffusers(prediction: str, **scheduler: Any) -> Difference:
    """``UNet2DModel`` with a discrete scheduler; the image is that of ``DDIMScheduler`` with 50 steps."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    unet = randomised(UNet2DModel(**UNET))
    made = DDIMScheduler(prediction_type=prediction, clip_sample=False, **scheduler)
    with tempfile.TemporaryDirectory() as folder:
        DDIMPipeline(unet, made).save_pretrained(folder)
        model = se.load(folder)
    x = start()
    made.set_timesteps(made.config.num_train_timesteps)
    found = 0.0
    for n in STEPS:
        theirs = made.step(unet(x, n).sample, n, x).pred_original_sample
        found = max(found, relative(model(x, torch.full((2,), (n + 1) / 1000, dtype=torch.float64)), theirs))
    made.set_timesteps(50)
    image = x
    for t in made.timesteps:
        image = made.step(unet(image, t).sample, t, image).prev_sample
    return Difference(
        found, relative(our_image(model, TimestepGrid(50, made.config.timestep_spacing), x), image)
    )


def diffusers_edm(prediction: str) -> Difference:
    from diffusers import EDMEulerScheduler, UNet2DModel

    unet = randomised(UNet2DModel(**UNET))
    made = EDMEulerScheduler(prediction_type=prediction)
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        made.save_pretrained(folder)
        model = se.load(folder)
    x, found = start(), 0.0
    for sigma in torch.logspace(-2.5, 1.8, 10).tolist():
        noisy, level = x * sigma, torch.tensor(sigma)
        output = unet(made.precondition_inputs(noisy, level), made.precondition_noise(level)).sample
        theirs = made.precondition_outputs(noisy, output, level)
        found = max(found, relative(model(noisy, torch.full((2,), sigma, dtype=torch.float64)), theirs))
    made.set_timesteps(20)
    image = x * 80.0
    for t in made.timesteps:
        image = made.step(unet(made.scale_model_input(image, t), t).sample, t, image).prev_sample
    return Difference(found, relative(our_image(model, se.samplers.KarrasGrid(20), x * 80.0), image))


def diffusers_flow() -> Difference:
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DModel

    unet = randomised(UNet2DModel(**UNET))
    made = FlowMatchEulerDiscreteScheduler()
    with tempfile.TemporaryDirectory() as folder:
        unet.save_pretrained(folder)
        made.save_pretrained(folder)
        model = se.load(folder)
    x, found = start(), 0.0
    for t in torch.linspace(0.01, 1.0, 10, dtype=torch.float64):
        theirs = x - t.float() * unet(x, 1000 * t).sample
        found = max(found, relative(model(x, t.expand(2)), theirs))
    made.set_timesteps(20)
    image = x
    for t in made.timesteps:
        image = made.step(unet(image, t).sample, t, image).prev_sample
    times = made.timesteps.double() / 1000

    class Grid(se.samplers.TimeGrid):
        def __call__(self, schedule: Any, *, t_start: float | None = None) -> Tensor:
            return times

    return Difference(found, relative(our_image(model, Grid(20), x), image))


def denoising_diffusion(objective: str, beta_schedule: str = "sigmoid", **options: Any) -> Difference:
    """The file is what ``Trainer.save`` writes; the image is that of ``ddim_sample`` without clipping."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    unet = randomised(Unet(dim=16, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8, **options))
    made = GaussianDiffusion(unet, image_size=8, objective=objective, beta_schedule=beta_schedule)
    other = {f"ema_model.{name}": tensor for name, tensor in made.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model-1.pt")
        torch.save(
            {
                "step": 1,
                "model": made.state_dict(),
                "ema": {"initted": torch.tensor(True), **other},
                "version": "2.3.4",
            },
            path,
        )
        path.with_suffix(".json").write_text('{"image_size": 8}')
        model = se.load(path)
    x, found = start(), 0.0
    for n in STEPS:
        theirs = made.model_predictions(x, torch.full((2,), n)).pred_x_start
        found = max(found, relative(model(x, torch.full((2,), (n + 1) / 1000, dtype=torch.float64)), theirs))
    image = x
    times = torch.linspace(-1, 999, steps=51).int().tolist()[::-1]
    for now, after in pairwise(times):
        predicted = made.model_predictions(
            image, torch.full((2,), now), clip_x_start=False, rederive_pred_noise=True
        )
        if after < 0:
            image = predicted.pred_x_start
            continue
        root = made.alphas_cumprod[after].sqrt()
        image = predicted.pred_x_start * root + (1 - made.alphas_cumprod[after]).sqrt() * predicted.pred_noise
    grid = torch.tensor([(n + 1) / 1000 for n in times[:-1]], dtype=torch.float64)

    class Grid(se.samplers.TimeGrid):
        def __call__(self, schedule: Any, *, t_start: float | None = None) -> Tensor:
            return grid

    return Difference(found, relative(our_image(model, Grid(50), x), image))


def k_diffusion() -> Difference:
    """The file is that of its ``train.py``, the image that of ``sample_euler``."""
    from k_diffusion import config, sampling

    stated = {
        "model": {
            "type": "image_v1", "input_channels": 3, "input_size": [8, 8], "mapping_out": 16, "depths": [1, 1],
            "channels": [32, 32], "self_attn_depths": [False, True], "sigma_data": 0.5, "sigma_min": 0.01, "sigma_max": 80,
        },
    }  # fmt: skip
    filled = config.load_config(json.loads(json.dumps(stated)))
    inner = randomised(config.make_model(filled))
    made = config.make_denoiser_wrapper(filled)(inner).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pth")
        torch.save({"model": made.state_dict(), "model_ema": made.state_dict()}, path)
        path.with_suffix(".json").write_text(json.dumps(stated))
        model = se.load(path)
    x, found = start(), 0.0

    def theirs(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        output: Tensor = made(x, sigma)
        return output

    for sigma in torch.logspace(-2, 1.9, 10).tolist():
        found = max(
            found,
            relative(
                model(x * sigma, torch.full((2,), sigma, dtype=torch.float64)),
                theirs(x * sigma, torch.full((2,), sigma)),
            ),
        )
    sigmas = sampling.get_sigmas_karras(20, 0.01, 80.0)
    image = sampling.sample_euler(theirs, x * 80.0, sigmas, disable=True)
    return Difference(found, relative(our_image(model, se.samplers.KarrasGrid(20), x * 80.0), image))


class AzulaUNet(nn.Module):
    """azula's U-Net with an embedding of the time, as its tutorials build one."""

    def __init__(self) -> None:
        super().__init__()
        from azula.nn.layers import SineEncoding
        from azula.nn.unet import UNet

        self.embedding = nn.Sequential(SineEncoding(16), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16))
        self.unet = UNet(3, 3, mod_features=16, hid_channels=(8, 16), hid_blocks=(1, 1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.unet(x, self.embedding(t))
        return output


def azula(kind: str) -> Difference:
    """The image is that of its ``DDIMSampler`` with its ``VPSchedule``, whose beta goes from 0 to 27.63."""
    from azula import denoise, sample
    from azula.noise import VPSchedule

    schedule = VPSchedule()
    made = randomised(getattr(denoise, kind)(AzulaUNet(), schedule))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "denoiser.pth")
        torch.save(made.state_dict(), path)
        stated = {
            "format": "azula", "denoiser": kind, "schedule": {"name": "VPSchedule"}, "event_shape": [3, 8, 8],
            "backbone": {"_target_": "benchmarks.bridge_peers.AzulaUNet"},
        }  # fmt: skip
        path.with_suffix(".json").write_text(json.dumps(stated))
        model = se.load(path, trust=["benchmarks"])
    x, found = start(), 0.0
    for t in torch.linspace(0.02, 1.0, 10):
        alpha, sigma = schedule(t)
        level = (sigma.double() / alpha.double()).expand(2)
        found = max(found, relative(model(x / alpha, level), made(x, t.expand(2)).mean))
    original = sample.DDIMSampler(made, steps=20, silent=True)
    image = original(x)
    times = original.timesteps.double()
    levels = schedule.sigma(times) / schedule.alpha(times)

    class Grid(se.samplers.TimeGrid):
        def __call__(self, schedule: Any, *, t_start: float | None = None) -> Tensor:
            return levels

    alpha, _ = schedule(times[-1])
    # its last state has the noise of its last time
    sampler = se.samplers.DDIM(Grid(20), denoise_last=False)
    ours = sampler(model, x / schedule.alpha(times[0]).float(), streams=ImageStreams([0, 1])).x
    return Difference(found, relative(ours, image / alpha.float()))


def deepinv() -> Difference:
    """A DRUNet by ``from_deepinv``, and by ``as_deepinv`` back; for an image, ten steps of a plug-and-play algorithm."""
    from deepinv.models import DRUNet
    from deepinv.optim import optim_builder
    from deepinv.optim.data_fidelity import L2
    from deepinv.optim.prior import PnP
    from deepinv.physics import Blur
    from deepinv.physics.blur import gaussian_blur

    network = randomised(DRUNet(3, 3, nc=(8, 8, 8, 8), nb=1, pretrained=None))
    model = se.from_deepinv(network, event_shape=(3, 16, 16))
    back = se.as_deepinv(model)
    x, found = start(size=16), 0.0
    for sigma in torch.linspace(0.01, 0.9, 10).tolist():
        theirs = 2 * network((x + 1) / 2, sigma) - 1
        found = max(found, relative(model(x, torch.full((2,), 2 * sigma, dtype=torch.float64)), theirs))
    physics = Blur(gaussian_blur(sigma=1.0), padding="circular")
    y = physics((x + 1) / 2)

    def solved(denoiser: nn.Module) -> Tensor:
        algorithm = optim_builder(
            "HQS",
            prior=PnP(denoiser),
            data_fidelity=L2(),
            max_iter=10,
            params_algo={"stepsize": 1.0, "g_param": 0.1},
        )
        result: Tensor = algorithm(y, physics)
        return result

    return Difference(found, relative(solved(back), solved(network)))


def deepinv_file() -> Difference:
    """The state dict of its DRUNet, with sides that both continue in the same way; its image is the posterior mean."""
    from deepinv.models import DRUNet

    network = randomised(DRUNet(1, 1, nc=(4, 4, 8, 8), nb=2, pretrained=None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "drunet.pth")
        torch.save(network.state_dict(), path)
        model = se.load(path)
    x, found = start(1, 31), 0.0
    for sigma in torch.linspace(1, 50, 10).tolist():
        theirs = 2 * network((x + 1) / 2, sigma / 255) - 1
        ours = model(x, torch.full((2,), 2 * sigma / 255, dtype=torch.float64))
        found = max(found, relative(ours, theirs))
    return Difference(found, found)


CASES: dict[str, tuple[str, Callable[[], Difference]]] = {
    **{
        f"diffusers DDIM, {p}": ("diffusers", lambda p=p: diffusers(p))
        for p in ("epsilon", "v_prediction", "sample")
    },  # type: ignore[misc]
    "diffusers DDIM, squared cosine": (
        "diffusers",
        lambda: diffusers("v_prediction", beta_schedule="squaredcos_cap_v2"),
    ),
    "diffusers DDIM, scaled linear": (
        "diffusers",
        lambda: diffusers("v_prediction", beta_schedule="scaled_linear"),
    ),
    "diffusers DDIM, trailing": ("diffusers", lambda: diffusers("sample", timestep_spacing="trailing")),
    "diffusers DDIM, zero terminal SNR": (
        "diffusers",
        lambda: diffusers("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
    ),
    "diffusers EDM, epsilon": ("diffusers", lambda: diffusers_edm("epsilon")),
    "diffusers EDM, v": ("diffusers", lambda: diffusers_edm("v_prediction")),
    "diffusers flow": ("diffusers", diffusers_flow),
    **{
        f"denoising-diffusion-pytorch, {p}": (
            "denoising_diffusion_pytorch",
            lambda p=p: denoising_diffusion(p),
        )  # type: ignore[misc]
        for p in ("pred_noise", "pred_x0", "pred_v")
    },
    "denoising-diffusion-pytorch, cosine": (
        "denoising_diffusion_pytorch",
        lambda: denoising_diffusion("pred_v", "cosine"),
    ),
    "denoising-diffusion-pytorch, self-conditioned": (
        "denoising_diffusion_pytorch",
        lambda: denoising_diffusion("pred_v", self_condition=True, full_attn=(True, False)),
    ),
    "k-diffusion, image_v1": ("k_diffusion", k_diffusion),
    "azula, KarrasDenoiser": ("azula", lambda: azula("KarrasDenoiser")),
    "azula, SimpleDenoiser": ("azula", lambda: azula("SimpleDenoiser")),
    "deepinv, DRUNet": ("deepinv", deepinv),
    "deepinv, file of a DRUNet": ("deepinv", deepinv_file),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    options = parser.parse_args()
    rows, worst = {}, Difference(0.0, 0.0)
    for name, (package, case) in CASES.items():
        if not name.startswith(options.only):
            continue
        if find_spec(package) is None:
            print(f"{name:48} not run: {package} is not installed")
            continue
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case()
        worst = Difference(max(worst.mean, found.mean), max(worst.image, found.image))
        rows[name] = {"package": f"{package} {version(package)}", "mean": found.mean, "image": found.image}
        print(f"{name:48} posterior mean {found.mean:.1e}, image {found.image:.1e}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(worst.mean > 1e-5 or worst.image > 1e-4)


if __name__ == "__main__":
    sys.exit(main())
