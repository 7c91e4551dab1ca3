#!/usr/bin/env bash
# diffusers 0.42.1: FlowMatchHeunDiscreteScheduler with s_churn draws from another distribution, for any number of steps. step() gets a
# velocity, raises x from sigma to sigma_hat by noise of variance sigma_hat^2 - sigma^2, and goes on with the old velocity. In
# x = (1 - sigma) picture + sigma noise the picture must shrink to 1 - sigma_hat with it, and EDM's algorithm 2 (Karras et al. 2022), which
# has these parameters, asks the network for the raised x. An exact model of data of mean 0.5 and standard deviation 0.25 gives 0.777 and
# 0.395 with 50 steps and 0.782 and 0.328 with 400, where raising the same levels by hand gives 0.500 and 0.253 or 0.251.
# FlowMatchEulerDiscreteScheduler takes s_churn too and does nothing with it.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
OMP_NUM_THREADS=1 "$tmp/venv/bin/python" -W ignore - <<'P'
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

MEAN, STD, COUNT = 0.5, 0.25, 100_000


def velocity(x, sigma):  # exact for x = (1 - sigma) data + sigma noise
    kept = 1 - sigma
    return (x - MEAN - kept * STD**2 / (kept**2 * STD**2 + sigma**2) * (x - kept * MEAN)) / sigma


def theirs(steps, kind=FlowMatchHeunDiscreteScheduler, **churn):
    scheduler = kind()
    scheduler.set_timesteps(steps)
    torch.manual_seed(0)
    x = torch.randn(1, COUNT)
    for t in scheduler.timesteps:
        sigma = float(scheduler.sigmas[scheduler.step_index or 0])
        x = scheduler.step(velocity(x, sigma), t, x, **churn).prev_sample
    return x.mean().item(), x.std().item()


def by_hand(steps, s_churn, s_tmax):
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    gamma = min(s_churn / (len(scheduler.sigmas) - 1), 2**0.5 - 1)
    levels = sorted(set(scheduler.sigmas.tolist()), reverse=True)
    torch.manual_seed(0)
    x = torch.randn(1, COUNT)
    for sigma, then in zip(levels, levels[1:]):
        if sigma <= s_tmax:
            raised = sigma * (1 + gamma)
            shrunk = (1 - raised) / (1 - sigma)
            x = shrunk * x + (raised**2 - (shrunk * sigma) ** 2) ** 0.5 * torch.randn_like(x)
            sigma = raised
        slope = velocity(x, sigma)  # of the raised x
        end = x + (then - sigma) * slope
        x = x + (then - sigma) * (slope + velocity(end, then)) / 2 if then else end
    return x.mean().item(), x.std().item()


cases = [
    (theirs, 50, {"s_churn": 0.0}, (0.499, 0.251)),
    (theirs, 50, {"s_churn": 10.0}, (0.679, 0.309)),
    (theirs, 50, {"s_churn": 40.0}, (0.777, 0.396)),
    (theirs, 50, {"s_churn": 40.0, "s_tmax": 0.6}, (0.777, 0.395)),
    (theirs, 400, {"s_churn": 40.0, "s_tmax": 0.6}, (0.782, 0.328)),
    (by_hand, 50, {"s_churn": 40.0, "s_tmax": 0.6}, (0.500, 0.253)),
    (by_hand, 400, {"s_churn": 40.0, "s_tmax": 0.6}, (0.500, 0.251)),
]
wrong = []
for draw, steps, churn, expected in cases:
    found = draw(steps, **churn)
    settings = ", ".join(f"{name}={value:g}" for name, value in churn.items())
    print(f"{draw.__name__}, {steps} steps, {settings}: mean {found[0]:.3f}, standard deviation {found[1]:.3f}")
    if max(abs(f - e) for f, e in zip(found, expected)) > 4e-3:
        wrong.append((draw.__name__, steps, churn))
ignored = theirs(50, FlowMatchEulerDiscreteScheduler, s_churn=40.0) == theirs(50, FlowMatchEulerDiscreteScheduler)
print(f"FlowMatchEulerDiscreteScheduler gives the same with s_churn=40 as without: {ignored}")
assert not wrong and ignored, f"this has changed: {wrong}"
P
