#!/usr/bin/env bash
# diffusers 0.42.1: DDIMScheduler takes the time that a step reaches as t - 1000 // steps and not as the next time of its own list. With
# timestep_spacing "trailing" or "linspace" and a number of steps that does not divide 1000, every step takes out less noise than the next
# one takes for granted: an exact model of data of mean 0.5 and standard deviation 0.25 gives 0.499 and 0.247 with 500 steps, and 0.356
# and 0.498, twice the spread, with 501. Few steps hide it (1000 / 30 is nearly 33), 300 do not. "leading", the default, has
# the right times, but starts pure noise at time (1000 // steps) * (steps - 1): at 500 of 1000 with 501 steps, where 28 % of the
# picture is still there; DDPMScheduler, PNDMScheduler and, with that spacing, HeunDiscreteScheduler do so too.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
OMP_NUM_THREADS=1 "$tmp/venv/bin/python" -W ignore - <<'P'
import torch
from diffusers import DDIMScheduler, DDPMScheduler, HeunDiscreteScheduler, PNDMScheduler

MEAN, STD = 0.5, 0.25


def drawn(spacing, steps):
    """Mean and standard deviation of what the noise N(0, 1) becomes: all is linear, so two points tell both."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for t in scheduler.timesteps:
        power = scheduler.alphas_cumprod[t].double()
        noise = (1 - power).sqrt() * (x - power.sqrt() * MEAN) / (power * STD**2 + 1 - power)  # E[noise | x]
        x = scheduler.step(noise, t, x).prev_sample
    return x[0].item(), (x[1] - x[0]).abs().item()


counts = (30, 100, 300, 500, 501, 600, 1000)
found = {(spacing, steps): drawn(spacing, steps) for spacing in ("trailing", "linspace", "leading") for steps in counts}
for (spacing, steps), (mean, std) in found.items():
    print(f"{spacing}, {steps} steps: mean {mean:.3f}, standard deviation {std:.3f}")
for spacing in ("trailing", "linspace"):
    for steps, (mean, std) in {500: (0.499, 0.247), 501: (0.356, 0.498), 600: (0.396, 0.434), 1000: (0.499, 0.2485)}.items():
        assert abs(found[spacing, steps][0] - mean) < 2e-3 and abs(found[spacing, steps][1] - std) < 2e-3, "this has changed"
assert abs(found["leading", 501][0] - 0.464) < 2e-3 and abs(found["leading", 500][0] - 0.499) < 2e-3, "this has changed"
for kind in (DDIMScheduler, DDPMScheduler, PNDMScheduler, HeunDiscreteScheduler):
    scheduler = kind(timestep_spacing="leading", beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(501)
    first = int(scheduler.timesteps[0])
    left = scheduler.alphas_cumprod[first].sqrt().item()
    print(f"{kind.__name__}, leading, 501 steps: starts at time {first} of 1000, where the picture's factor is {left:.2f}")
    assert first == 500 and abs(left - 0.28) < 0.01, "this has changed"
P
