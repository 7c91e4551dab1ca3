#!/usr/bin/env bash
# torchmetrics 1.9.0: MemorizationInformedFrechetInceptionDistance divides FID by how near every real picture lies to a generated one.
# The metric (Bai et al. 2021, and the competition that it comes from) asks the opposite: how near every generated picture lies to one
# of the training set. A generator that returns nothing but copies of a tenth of the training set goes unpunished so, and is better than
# one that returns new pictures of the right distribution: 2.28 against 2.76, both their FID. With the two sets given the wrong way round
# (real=False for the training set) the copies get 2e14, as they should. Features: 64 numbers, independent and positive.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$tmp/venv/bin/python" -W ignore - <<'P'
import torch
from torch.nn.functional import normalize
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

torch.manual_seed(0)
train, new = torch.randn(10_000, 64) ** 2, torch.randn(1000, 64) ** 2


class Features(torch.nn.Identity):
    num_features = 64


def measured(kind, train, generated, swapped=False):
    metric = kind(feature=Features())
    if kind is FrechetInceptionDistance:
        metric.set_dtype(torch.float64)
    metric.update(train, real=not swapped)
    metric.update(generated, real=swapped)
    return metric.compute().item()


found = {}
for name, generated in {"new pictures": new, "copies of a tenth": train[:1000]}.items():
    nearest = (1 - normalize(generated) @ normalize(train).T).min(1).values.mean().item()
    fid = measured(FrechetInceptionDistance, train, generated)
    mifid, swapped = (measured(MemorizationInformedFrechetInceptionDistance, train, generated, s) for s in (False, True))
    found[name] = fid, mifid, swapped
    print(f"{name}: nearest training picture at {nearest:.3f}, FID {fid:.2f}, MIFID {mifid:.2f}, with the sets swapped {swapped:.3g}")
fid, mifid, swapped = found["copies of a tenth"]
assert abs(mifid - fid) < 1e-2 and abs(mifid - 2.28) < 0.01 and abs(found["new pictures"][1] - 2.76) < 0.01, "this has changed"
assert swapped > 1e12 and abs(found["new pictures"][2] - 2.76) < 0.01, "this has changed"
P
