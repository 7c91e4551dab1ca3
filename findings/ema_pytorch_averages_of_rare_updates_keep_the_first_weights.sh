#!/usr/bin/env bash
# ema-pytorch 0.8.3: the decay follows from the step, but the averages are updated at every tenth step only (EMA) or hundredth (PostHocEMA),
# the defaults, and the decay is not raised to that power. So of EMA with inv_gamma=1, power=1, which its documentation calls a
# simple average, 45 % are after 20,000 steps still the weights of step 100, with which it starts (0.05 % of steps 100 to 110 with
# update_every=1); and PostHocEMA of sigma_rel 0.05, whose middle should lie at 95 % of the run, has it at 15 %, and that of
# 0.15 at 4 % instead of 82 %.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 ema-pytorch==0.8.3
cd "$tmp" && OMP_NUM_THREADS=1 "$tmp/venv/bin/python" - <<'P'
import torch
from ema_pytorch import EMA, PostHocEMA

STEPS = 20_000
weights = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)


def run(average):
    for step in range(1, STEPS + 1):
        weights.weight.data[0, 0] = step <= 110  # averaged, this is the share of the first 110 steps
        weights.weight.data[0, 1] = step / STEPS  # and this the middle of the average
        average.update()


def read(model):
    return tuple(model.weight.data[0].tolist())


share = {}
for every in (1, 10):
    average = EMA(weights, beta=0.99999999, inv_gamma=1.0, power=1.0, **({"update_every": 1} if every == 1 else {}))
    run(average)
    share[every], _ = read(average.ema_model)
    print(f"EMA, power 1, update_every={average.update_every}: the first 110 of {STEPS} steps have {share[every]:.2%} of the average")
middle = {}
for every in (1, 100):
    averages = PostHocEMA(
        weights, sigma_rels=(0.05, 0.15), checkpoint_every_num_steps="manual", **({"update_every": 1} if every == 1 else {})
    )
    run(averages)
    for width, average in zip((0.05, 0.15), averages.ema_models):
        middle[every, width] = read(average.ema_model)[1]
        expected = (average.gamma + 1) / (average.gamma + 2)
        print(
            f"PostHocEMA, sigma_rel {width}, update_every={average.update_every}: "
            f"the average's middle is {middle[every, width]:.3f} of the run, {expected:.3f} by the formula"
        )
        assert every == 100 or abs(middle[every, width] - expected) < 1e-3, "this has changed"
assert abs(share[1] - 0.00055) < 1e-4 and abs(share[10] - 0.445) < 0.01, "this has changed"
assert abs(middle[100, 0.05] - 0.152) < 0.01 and abs(middle[100, 0.15] - 0.043) < 0.01, "this has changed"
P
