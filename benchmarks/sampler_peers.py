"""Deterministic samplers of azula, diffusers and k-diffusion as candidates of ``benchmarks.sampler_errors``.

These packages are no dependency of scoreexp: install them into an environment of their own that also has scoreexp, and run
there ``python -m benchmarks.sampler_errors --peers azula diffusers k_diffusion``. Written for azula 0.11.1, diffusers 0.42.1
and k-diffusion 0.1.1 (``pip install --no-deps`` and torchdiffeq, torchsde, trampoline for its samplers; einops for azula;
huggingface_hub, httpx and what they ask for in diffusers). Each sampler gets the same model, starts and budgets, and every
grid of ``peer_grids``: those that the packages document, with their parameter, and those of scoreexp.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

from scoreexp.core.tensors import expand_to
from scoreexp.denoisers import DenoiserBase
from scoreexp.samplers import KarrasGrid, LogSNRGrid, QuadraticGrid, UniformGrid
from scoreexp.samplers.base import batch_of
from scoreexp.samplers.grids import NoiseLevelGrid, TimeGrid

# (model, x, times) -> the state at the last time
Run = Callable[[DenoiserBase, Tensor, Tensor], Tensor]


def _azula(build: Callable[..., Any], model: DenoiserBase, x: Tensor, times: Tensor) -> Tensor:
    """The times lie evenly in azula's own time, which runs from 1 to 0."""
    last = len(times) - 1

    def ours(t: Tensor) -> Tensor:
        return times[((1 - t.double()) * last).round().long()]

    class Denoiser(torch.nn.Module):
        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return model.schedule(ours(t))

        def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=model(x_t, batch_of(ours(t).item(), x_t)))

    return build(Denoiser(), steps=last, silent=True, dtype=torch.float64)(x)


def _diffusers(build: Callable[[], Any], model: DenoiserBase, x: Tensor, times: Tensor) -> Tensor:
    """Its schedulers step between noise levels, on a variance-preserving schedule; all but the levels is their own."""
    scheduler, last = build(), len(times) - 1
    scheduler.set_timesteps(last)
    alpha, sigma = model.schedule(times)
    scheduler.sigmas = sigma / alpha
    scheduler.timesteps = torch.arange(last, 0, -1)
    for t, name in zip(times[:-1].tolist(), scheduler.timesteps):
        scheduler.set_begin_index(0)
        x = scheduler.step(model(x, batch_of(t, x)), name, x).prev_sample
    return x


def _k_diffusion(sample: Callable[..., Tensor], model: DenoiserBase, x: Tensor, times: Tensor) -> Tensor:
    """Its samplers know ``x / alpha`` and the noise level."""
    alpha, sigma = model.schedule(times)

    def denoiser(y: Tensor, level: Tensor) -> Tensor:
        t = model.schedule.t_of_sigma(level)
        return model(expand_to(model.schedule.alpha(t), y) * y, t)

    return alpha[-1] * sample(denoiser, x / alpha[0], sigma / alpha, disable=True)


def azula() -> dict[str, tuple[Run, int]]:
    """Its samplers, and their evaluations per step."""
    from azula import sample

    found = {
        "DDIM": (sample.DDIMSampler, 1),
        "Euler": (sample.EulerSampler, 1),
        "Heun": (sample.HeunSampler, 2),
    }
    for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
        for order in (2, 3):
            found[f"{name}-{order}"] = partial(getattr(sample, f"{name}Sampler"), order=order), 1
    return {name: (partial(_azula, build), cost) for name, (build, cost) in found.items()}


def diffusers() -> dict[str, tuple[Run, int]]:
    """Its multistep schedulers with the options they document, of one evaluation per step."""
    from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    common = {"prediction_type": "sample", "final_sigmas_type": "sigma_min"}
    builds: dict[str, Callable[[], Any]] = {}
    for order in (2, 3):
        for last in (True, False):
            options = common | {"solver_order": order, "lower_order_final": last}
            suffix = f"-{order}" + ", lower order last" * last
            builds[f"UniPC bh1{suffix}"] = partial(UniPCMultistepScheduler, solver_type="bh1", **options)
            builds[f"UniPC bh2{suffix}"] = partial(UniPCMultistepScheduler, **options)
            builds[f"DPM++ {order}M{', lower order last' * last}"] = partial(
                DPMSolverMultistepScheduler, **options
            )
            options.pop("final_sigmas_type")
            builds[f"DEIS{suffix}"] = partial(DEISMultistepScheduler, **options)
    return {name: (partial(_diffusers, build), 1) for name, build in builds.items()}


def _k_diffusion_sampling() -> ModuleType:
    """The module of its samplers alone; the package imports its training half, which needs torchvision and more."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError("No module named 'k_diffusion'")
        package = ModuleType("k_diffusion")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["k_diffusion"] = package
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules.setdefault(name, ModuleType(name))
        sys.modules["torchvision.transforms"].functional = sys.modules[  # type: ignore[attr-defined]
            "torchvision.transforms.functional"
        ]
    return importlib.import_module("k_diffusion.sampling")


def k_diffusion() -> dict[str, tuple[Run, int]]:
    """Its samplers without noise, and their evaluations per step."""
    sampling = _k_diffusion_sampling()
    found = {
        "Euler": (sampling.sample_euler, 1),
        "Heun": (sampling.sample_heun, 2),
        "DPM-2": (sampling.sample_dpm_2, 2),
        "LMS": (sampling.sample_lms, 1),
        "DPM++ 2M": (sampling.sample_dpmpp_2m, 1),
        "DPM++ 2S": (partial(sampling.sample_dpmpp_2s_ancestral, eta=0.0), 2),
        "DPM++ 2M SDE without noise": (partial(sampling.sample_dpmpp_2m_sde, eta=0.0), 1),
        "DPM++ 3M SDE without noise": (partial(sampling.sample_dpmpp_3m_sde, eta=0.0), 1),
    }
    return {name: (partial(_k_diffusion, sample), cost) for name, (sample, cost) in found.items()}


class BetaGrid(NoiseLevelGrid):
    """diffusers' ``use_beta_sigmas``: noise levels at quantiles of a beta distribution, 0.6 and 0.6 as it documents."""

    def _levels(self, first: Tensor, last: Tensor, fraction: Tensor) -> Tensor:
        quantiles = torch.from_numpy(beta.ppf(1 - fraction.numpy(), 0.6, 0.6))
        return last + (first - last) * quantiles


class PolyExponentialGrid(NoiseLevelGrid):
    """k-diffusion's ``get_sigmas_polyexponential``: the logarithm even in a power ``rho``."""

    def __init__(self, steps: int, rho: float) -> None:
        super().__init__(steps)
        self.rho = rho

    def _levels(self, first: Tensor, last: Tensor, fraction: Tensor) -> Tensor:
        return (last.log() + (first / last).log() * (1 - fraction) ** self.rho).exp()


def peer_grids() -> dict[str, Callable[[int], TimeGrid]]:
    """Grids by name: number of times -> grid."""
    found: dict[str, Callable[[int], TimeGrid]] = {
        "uniform": UniformGrid,
        "quadratic": QuadraticGrid,
        "logsnr": LogSNRGrid,
        "beta": BetaGrid,
    }
    for rho in (2, 3, 5, 7, 10, 14):
        found[f"karras {rho}"] = partial(KarrasGrid, rho=float(rho))
    for rho in (0.7, 1.5):
        found[f"polyexponential {rho}"] = partial(PolyExponentialGrid, rho=rho)
    return found


PEERS = {"azula": azula, "diffusers": diffusers, "k_diffusion": k_diffusion}
