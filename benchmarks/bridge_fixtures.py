"""Inputs and outputs of other libraries for tests without them: ``python -m benchmarks.bridge_fixtures --edm DIR ...``

Each ``DIR`` is a checkout at the commit of ``COMMITS``. Small networks are made by its code and evaluated at ten noise
levels, and its own deterministic sampler draws one image. EDM's are pickled as its training loop does, without the source
text that such a pickle carries. Of the others the names and shapes of their weights are stored, not the weights: ``drawn``
makes them again. ``--diffusers`` stores the noise schedules and time steps of the installed diffusers.
"""

import argparse
import gzip
import importlib
import io
import json
import math
import pickle
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent.parent / "tests" / "fixtures" / "bridge"
COMMITS = {
    "edm": "NVlabs/edm 008a4e5316c8e3bfe61a62f874bddba254295afb",
    "guided": "openai/guided-diffusion 22e0df8183507e13a7813f8d38d51b072ca1e67c",
    "improved": "openai/improved-diffusion 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5",
    "score_sde": "yang-song/score_sde_pytorch cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44",
    "kair": "cszn/KAIR fc1732f4a4514e42ce15e5b3a1e18c828af47a1e",
}
LEVELS = np.geomspace(0.03, 70, 10).tolist()
IMAGE_STEPS = 10
"""Of the image by EDM's Heun sampler, and by DDIM of guided- and improved-diffusion."""
ODE_END, ODE_TOLERANCE = 1e-3, 1e-5
"""Of the image of score_sde_pytorch by the probability-flow equation."""
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
    """One gzipped pickle for each network, its posterior means and an image of its deterministic sampler."""
    sys.path.insert(0, str(checkout))
    from torch_utils import persistence

    persistence._module_to_src = lambda module: ""
    from generate import edm_sampler  # type: ignore[import-not-found]
    from training import networks

    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    outputs: dict[str, np.ndarray] = {"x": x.numpy(), "levels": np.array(LEVELS)}
    for name, (kind, arguments) in NETWORKS.items():
        torch.manual_seed(0)  # of the frequencies, which are no parameters
        network = coarse(getattr(networks, kind)(**SMALL, **arguments))
        label = torch.tensor([[0.0, 1.0, 0.0]]) if arguments.get("label_dim") else None
        means = []
        for sigma in LEVELS:
            means.append(network(sigma * x, torch.tensor([sigma]), class_labels=label))
        outputs[name] = torch.cat(means).numpy()
        outputs[f"{name} image"] = edm_sampler(network, x, label, num_steps=IMAGE_STEPS).numpy()
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


def drawn(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Weights of given names and shapes: normal numbers of a stream that numpy keeps, over the root of the fan-in."""
    random, found = np.random.RandomState(0), {}
    for name, shape in shapes.items():
        fan = max(1, math.prod(shape[1:]))
        values = 0.5 * random.standard_normal(shape) / fan**0.5
        found[name] = torch.from_numpy(np.asarray(values, np.float32))
    return found


def image(shape: tuple[int, ...]) -> Tensor:
    """The picture that every network gets: standard normal."""
    return torch.from_numpy(np.random.RandomState(1).standard_normal((1, *shape)).astype(np.float32))


STEPS = (0, 1, 10, 50, 100, 300, 500, 800, 998, 999)
FLAGS = {
    "guided_diffusion": "--image_size 16 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8 "
    "--learn_sigma True --class_cond True --resblock_updown True --use_new_attention_order True --num_head_channels 32",
    "guided_diffusion x": "--image_size 16 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 --predict_xstart True "
    "--use_scale_shift_norm False --attention_resolutions 8 --num_heads 2 --num_heads_upsample 4",
    "improved_diffusion": "--image_size 32 --num_channels 32 --num_res_blocks 1 --attention_resolutions 8 --num_heads 4 "
    "--learn_sigma True --diffusion_steps 4000 --noise_schedule cosine",
}


Case = tuple[str, dict[str, Any], Tensor, Tensor | None]
"""Name, facts, posterior means, and the image unless it is a posterior mean too."""


def openai(checkout: Path, package: str) -> Iterator[Case]:
    """``pred_xstart`` of its diffusion at steps counted in thousandths; the image is that of ``ddim_sample_loop``."""
    sys.path.insert(0, str(checkout))
    sys.modules.setdefault("mpi4py", ModuleType("mpi4py"))  # of its training alone
    script = importlib.import_module(f"{package}.script_util")
    for name, text in FLAGS.items():
        if name.split()[0] != package:
            continue
        words = text.replace("--", "").split()
        flags = script.model_and_diffusion_defaults()
        for flag, value in zip(words[::2], words[1::2]):
            usual = flags[flag]
            flags[flag] = value == "True" if isinstance(usual, bool) else type(usual)(value)
        network, diffusion = script.create_model_and_diffusion(**flags)
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict(drawn(shapes))
        network.eval()
        x, means = image((3, flags["image_size"], flags["image_size"])), []
        label = {"y": torch.tensor([7])} if flags["class_cond"] else {}
        for step in STEPS:
            n = torch.tensor([step * flags["diffusion_steps"] // 1000])
            found = diffusion.p_mean_variance(network, x, n, clip_denoised=False, model_kwargs=label)
            means.append(found["pred_xstart"])
        _, spaced = script.create_model_and_diffusion(**{**flags, "timestep_respacing": f"ddim{IMAGE_STEPS}"})
        picture = spaced.ddim_sample_loop(
            network, tuple(x.shape), noise=x, clip_denoised=False, model_kwargs=label, device="cpu"
        )
        yield (
            name,
            {"stated": {"format": package, "flags": text}, "shapes": shapes},
            torch.cat(means),
            picture,
        )


def _score_sde_configs() -> dict[str, dict[str, Any]]:
    small = {"nf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
    positional = {
        "embedding_type": "positional",
        "scale_by_sigma": False,
        "progressive_input": "none",
        "fir": False,
    }
    data, centered = {"image_size": 16}, {"image_size": 16, "centered": True}
    return {
        "score_sde ve": {"training": {"sde": "vesde"}, "data": data, "model": small},
        "score_sde ve, skips": {
            "training": {"sde": "vesde"},
            "data": data,
            "model": {
                **small,
                "progressive": "output_skip",
                "progressive_input": "input_skip",
                "sigma_max": 348.0,
            },
        },
        "score_sde vp": {"training": {"sde": "vpsde"}, "data": centered, "model": {**small, **positional}},
        "score_sde subvp": {
            "training": {"sde": "subvpsde"},
            "data": centered,
            "model": {**small, **positional},
        },
        "score_sde vp, discrete": {
            "training": {"sde": "vpsde", "continuous": False},
            "data": centered,
            "model": {**small, **positional, "fir": True},
        },
    }


def score_sde(checkout: Path) -> Iterator[Case]:
    """``x + sigma^2 score`` over alpha, in units of [-1, 1], from the score function of its ``models.utils``.

    The image is that of ``get_ode_sampler``, which knows models in continuous time.
    """
    sys.path.insert(0, str(checkout))
    loader = importlib.import_module("torch.utils.cpp_extension")
    loader.load = lambda *_, **__: None  # type: ignore[attr-defined]  # kernels for GPUs, which the CPU does not use
    from models import ncsnpp, utils  # type: ignore[import-not-found]
    from sampling import get_ode_sampler  # type: ignore[import-not-found]
    from sde_lib import VESDE, VPSDE, subVPSDE  # type: ignore[import-not-found]

    from scoreexp.bridge.score_sde import _USUAL

    for name, config in _score_sde_configs().items():
        filled = {section: {**usual, **config[section]} for section, usual in _USUAL.items()}
        extra = {
            "dropout": 0.1,
            "resamp_with_conv": True,
            "nonlinearity": "swish",
            "normalization": "GroupNorm",
        }
        filled["model"] |= {
            **extra,
            "init_scale": 0.0,
            "fourier_scale": 16,
            "attention_type": "ddpm",
            "conv_size": 3,
        }
        made = SimpleNamespace(**{section: SimpleNamespace(**part) for section, part in filled.items()})
        network = ncsnpp.NCSNpp(made).eval()
        state = {key: list(value.shape) for key, value in network.state_dict().items() if key != "sigmas"}
        network.load_state_dict(drawn(state), strict=False)
        model = made.model
        kind = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE}[made.training.sde]
        ends = (model.sigma_min, model.sigma_max) if kind is VESDE else (model.beta_min, model.beta_max)
        sde = kind(*ends, 1000)
        score = utils.get_score_fn(sde, network, continuous=made.training.continuous)
        x, means, times, levels = image((3, 16, 16)), [], [], []
        for t in np.linspace(0.0105, 1, 10):
            t = round(999 * t) / 999
            time = torch.tensor([t], dtype=torch.float32)
            if kind is VESDE:
                _, std = sde.marginal_prob(torch.zeros(1, 3, 1, 1), time)
                noisy = x * std  # of a picture in [0, 1]
                clean = noisy + std**2 * score(noisy, time)
                means.append(2 * clean - 1)
                levels.append((1.0, float(2 * std)))
            else:
                if made.training.continuous:
                    mean, std = sde.marginal_prob(torch.ones(1, 1, 1, 1), time)
                    alpha, sigma = float(mean), float(std)
                else:
                    n = round(999 * t)
                    alpha = float(sde.sqrt_alphas_cumprod[n])
                    sigma = float(sde.sqrt_1m_alphas_cumprod[n])
                means.append((x + sigma**2 * score(x, time)) / alpha)
                levels.append((alpha, sigma))
            times.append(t)
        facts = {
            "stated": {"format": "score_sde", "config": config},
            "shapes": state,
            "times": times,
            "levels": levels,
        }
        picture = None
        if made.training.continuous:
            tolerances = {"rtol": ODE_TOLERANCE, "atol": ODE_TOLERANCE, "eps": ODE_END, "device": "cpu"}
            sampler = get_ode_sampler(sde, x.shape, lambda y: y, **tolerances)
            picture, _ = sampler(network, x * model.sigma_max if kind is VESDE else x)
            picture = 2 * picture - 1 if kind is VESDE else picture
        yield name, facts, torch.cat(means), picture


def kair(checkout: Path) -> Iterator[Case]:
    """DRUNet of a grey and of a colour image in [0, 1], at ten levels of its range."""
    sys.path.insert(0, str(checkout))
    for name in [name for name in sys.modules if name.split(".")[0] in ("models", "utils")]:
        del sys.modules[name]  # another checkout has the same names
    from models.network_unet import UNetRes  # type: ignore[import-not-found]

    for name, channels, blocks, bias in (("drunet grey", 1, 2, False), ("drunet colour", 3, 1, True)):
        network = UNetRes(channels + 1, channels, nc=[4, 4, 8, 8], nb=blocks, bias=bias).eval()
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        network.load_state_dict(drawn(shapes))
        x, means = 0.5 + 0.2 * image((channels, 16, 24)), []
        for sigma in np.linspace(1, 50, 10) / 255:
            level = torch.full((1, 1, 16, 24), float(sigma))
            means.append(2 * network(torch.cat([x, level], 1)) - 1)
        yield name, {"stated": {}, "shapes": shapes}, torch.cat(means), None


THINNED = 4
"""Every fourth row and column of an output is stored."""


def store(cases: Iterable[Case]) -> None:
    """Facts as one JSON, outputs as one archive; cases of earlier calls stay."""
    facts_file, outputs_file = FOLDER / "originals.json.gz", FOLDER / "originals.npz"
    facts = json.loads(gzip.decompress(facts_file.read_bytes())) if facts_file.is_file() else {}
    outputs = dict(np.load(outputs_file)) if outputs_file.is_file() else {}
    for name, fact, means, picture in cases:
        facts[name], outputs[name] = fact, means[..., ::THINNED, ::THINNED].numpy()
        if picture is not None:
            outputs[f"{name}, image"] = picture[..., ::THINNED, ::THINNED].numpy()
    facts_file.write_bytes(gzip.compress(json.dumps(facts).encode(), 9, mtime=0))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **outputs)  # type: ignore[arg-type]
    outputs_file.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, commit in COMMITS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"a checkout of {commit}")
    parser.add_argument("--diffusers", action="store_true", help="schedules of the installed diffusers")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if options.edm:
        edm(options.edm)
    makers = {
        "guided": lambda path: openai(path, "guided_diffusion"),
        "improved": lambda path: openai(path, "improved_diffusion"),
        "score_sde": score_sde,
        "kair": kair,
    }
    with torch.no_grad():
        for option, maker in makers.items():
            if checkout := getattr(options, option):
                repository, _, commit = COMMITS[option].partition(" ")
                source = {"repository": repository, "commit": commit}
                store((name, {**source, **fact}, *found) for name, fact, *found in maker(checkout))
    if options.diffusers:
        diffusers()


if __name__ == "__main__":
    main()
