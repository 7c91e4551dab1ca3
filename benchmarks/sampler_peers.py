"""Deterministic samplers of azula, diffusers and k-diffusion as candidates of ``benchmarks.sampler_errors``.

These packages are no dependency of scoreexp: install them into an environment of their own that also has scoreexp, and run
there ``python -m benchmarks.sampler_errors --peers azula diffusers k_diffusion``. Written for azula 0.11.1, diffusers 0.42.1
and k-diffusion 0.1.1. Each sampler gets the same model, starts and budgets, and every grid of scoreexp.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from scoreexp.denoisers import DenoiserBase
from scoreexp.samplers.base import batch_of

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
        return model(model.schedule.alpha(t)[:, None] * y, t)

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


def k_diffusion() -> dict[str, tuple[Run, int]]:
    """Its samplers without noise, and their evaluations per step."""
    from k_diffusion import sampling

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


PEERS = {"azula": azula, "diffusers": diffusers, "k_diffusion": k_diffusion}
