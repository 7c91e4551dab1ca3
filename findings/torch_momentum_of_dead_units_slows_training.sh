#!/usr/bin/env bash
# torch 2.13.0 on a CPU: the momentum of a weight whose gradient has become 0 (a unit that ReLU has shut) halves every 14 steps at
# 0.95, is below the smallest normal float32 number after some 1,600, and stays there for good: 0.95 of a denormal number of a few
# units in the last place is rounded back to it. Arithmetic on such numbers is slow: a step of SGD or Adam takes several times as
# long as at the start, and a matrix product with the momentum, as Muon in float32 has, many times. torch.set_flush_denormal(True)
# heals it, but it changes the calling thread and those started later alone: of a tensor that two running threads share, the half
# of the other one keeps its denormal numbers.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=2 "$tmp/venv/bin/python" - <<'P'
import time

import torch

TINY = torch.finfo(torch.float32).tiny


def seconds(work, repeats=50):
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


torch.set_num_threads(1)
slow = {}
for name, make, key in (
    ("SGD", lambda w: torch.optim.SGD([w], lr=1e-3, momentum=0.95), "momentum_buffer"),
    ("Adam", lambda w: torch.optim.Adam([w], lr=1e-3), "exp_avg"),
):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(512, 512))
    optimizer = make(weight)
    weight.grad = 1e-3 * torch.randn(512, 512)
    optimizer.step()
    weight.grad = torch.zeros(512, 512)
    early = seconds(optimizer.step)
    for _ in range(6000):
        optimizer.step()
    momentum = optimizer.state[weight][key].clone()
    share = ((momentum != 0) & (momentum.abs() < TINY)).float().mean().item()
    usual = torch.randn(512, 512)
    late, product = seconds(optimizer.step), seconds(lambda: usual @ momentum.T, 5)
    slow[name] = late / early, product / seconds(lambda: usual @ usual.T, 5)
    print(f"{name}: after 6,000 steps {share:.0%} of the momentum is denormal, none 0; largest {momentum.abs().max():.1e}")
    print(f"{name}: a step takes {slow[name][0]:.1f} times as long, a product with the momentum {slow[name][1]:.0f} times")
    assert share > 0.99, "this has changed"
torch.set_num_threads(2)
small = torch.full((4_000_000,), 1e-39)  # starts the second thread
if torch.set_flush_denormal(True):
    kept = int((small * 1 != 0).sum())
    print(f"after set_flush_denormal(True) {kept} of {len(small)} denormal numbers times 1 are not 0")
    assert kept == 2_000_000, "this has changed"
assert max(step for step, _ in slow.values()) > 1.5 and min(p for _, p in slow.values()) > 3, "this has changed"
P
