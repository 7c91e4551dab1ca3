#!/usr/bin/env bash
# deepinv 0.5.0: sampling.DPS, whose default parameters "correspond to the original DPS algorithm", hardly looks at the data with them. The
# original takes a step of DDPM and then one of -zeta grad ||y - A D(x)|| (Chung et al. 2023, algorithm 1); here that gradient is a score,
# so that it is multiplied by the variance of the step, 1e-4 to 0.02, and by 1/2 for units of [0, 1]. For a Gaussian prior, whose denoiser
# is exact, a sample of the posterior has slope 0.94 on the data. That of DPS by default has 0.01: it is as far from the picture as any
# other picture of the prior. With the original steps of zeta 1 it follows the data, noise and all. The page of DPSDataFidelity says that
# such a weight is "typically in the hundreds"; here it is 1000. guidance="annealed" comes near the posterior with its weight of 1.
# torchvision, which deepinv imports for its plots and data sets, is replaced by an empty module: the sampler does not use it.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0 torchmetrics==1.9.0 matplotlib tqdm einops natsort requests h5py
"$tmp/venv/bin/pip" install -q --no-deps deepinv==0.5.0
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'P'
import importlib.abc, importlib.machinery, sys
from unittest.mock import MagicMock

class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return MagicMock(__spec__=spec, __path__=[], __name__=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Empty())
import deepinv, torch

torch.manual_seed(0)
size = (1, 3, 64, 64)
truth = 0.5 + 0.2 * torch.randn(size)
physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.05))
y = physics(truth)

class Exact(deepinv.models.Denoiser):  # for independent pixels of N(0.5, 0.2^2)
    def forward(self, x, sigma, *args, **kwargs):
        variance = torch.as_tensor(sigma).reshape(-1, 1, 1, 1).to(x) ** 2
        return 0.5 + 0.04 / (0.04 + variance) * (x - 0.5)

def report(name, sample, slope, error):
    sample = sample.detach().float()
    found = float(((sample - 0.5) * (y - 0.5)).mean() / (y - 0.5).square().mean()), float((sample - truth).square().mean().sqrt())
    print(f"{name}: slope on the data {found[0]:.2f}, error {found[1]:.3f}")
    assert abs(found[0] - slope) < 0.04 and abs(found[1] - error) < 0.01, "this has changed"

def dps(**settings):
    return deepinv.sampling.DPS(Exact(), rng=torch.Generator().manual_seed(0), **settings)(y, physics)

def original(zeta):  # DDPM of 1000 steps, pictures in [-1, 1]
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    x, data = torch.randn(size, dtype=torch.float64), 2 * y.double() - 1
    for b, now, then in zip(beta.flip(0), kept[1:].flip(0), kept[:-1].flip(0)):
        gain = now.sqrt() * 0.16 / (now * 0.16 + 1 - now)  # the derivative of the denoised picture
        residual = data - gain * x
        mean = ((1 - b).sqrt() * (1 - then) * x + then.sqrt() * b * gain * x) / (1 - now)
        noise = (b * (1 - then) / (1 - now)).sqrt() * torch.randn_like(x)
        x = mean + noise + zeta * gain * residual / residual.norm()
    return (x + 1) / 2

posterior = 0.5 + 0.04 / 0.0425 * (y - 0.5) + (0.04 * 0.0025 / 0.0425) ** 0.5 * torch.randn(size)
report("the data themselves", y, 1.0, 0.05)
report("a sample of the posterior", posterior, 0.94, 0.069)
report("another picture of the prior", 0.5 + 0.2 * torch.randn(size), 0.0, 0.283)
report("DPS of deepinv", dps(), 0.01, 0.280)
report("steps of the original, zeta 1", original(1.0), 1.0, 0.050)
report("DPS of deepinv, weight=1000", dps(weight=1000), 0.97, 0.075)
report('DPS of deepinv, guidance="annealed"', dps(guidance="annealed"), 0.87, 0.072)
P
