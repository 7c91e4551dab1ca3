#!/usr/bin/env bash
# deepinv 0.5.0: sampling.DDRM divides all noise that it draws by the square root of 2. That is right for the two real parts of a complex
# coefficient (BlurFFT, but for the columns of frequency 0 and of Nyquist, of which the inverse transform drops one half more) and wrong
# for the real coefficients of Inpainting, the documented example, and of Denoising: where a pixel is missing, the denoiser is told sigma
# and gets noise of 0.71 sigma at every step; the paper draws with eta sigma (Kawar et al. 2022, equations 7 and 8). Samples of a
# Gaussian prior, whose denoiser is exact, spread 0.71 times as far as with the noise of the paper. They come nearer to the true
# picture by that, as every narrower guess does, so that PSNR does not show it.
# torchvision, which deepinv imports for its plots and data sets, is replaced by an empty module: the sampler does not use it.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 pillow==13.0.0 torchmetrics==1.9.0 matplotlib tqdm einops natsort requests h5py
"$tmp/venv/bin/pip" install -q --no-deps deepinv==0.5.0
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'P'
import importlib.abc, importlib.machinery, sys
from unittest.mock import MagicMock, patch

class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return MagicMock(__spec__=spec, __path__=[], __name__=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Empty())
import deepinv, numpy as np, torch

torch.manual_seed(0)
size = (3, 128, 128)
gray = torch.full((1, *size), 0.5)
mask = (torch.rand(size) < 0.5).float()
missing = mask[None] == 0
noise = deepinv.physics.GaussianNoise(0.1)
inpainting = deepinv.physics.Inpainting(mask=mask, img_size=size, noise_model=noise)
blur = deepinv.physics.BlurFFT(img_size=size, filter=deepinv.physics.blur.gaussian_blur(2.0), noise_model=noise)

def told_and_given(physics, where):  # to a denoiser that knows the picture
    levels = []
    def denoiser(x, sigma):
        levels.append((float(sigma), float((x - gray)[where].std())))
        return gray
    deepinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, 11))(physics(gray), physics)
    return levels[:-1]  # the last is told 0

print("noise of the missing pixels:  told  given  ratio")
for told, given in told_and_given(inpainting, missing):
    print(f"{told:34.2f} {given:6.3f} {given / told:6.3f}")
    assert abs(given / told - 0.5**0.5) < 0.02, "this has changed"
for told, given in told_and_given(blur, torch.ones_like(missing)):
    assert abs(given / told - 1) < 0.02, "this has changed"
print("noise of all pixels behind BlurFFT: as told at every step")

def denoiser(x, sigma):  # exact for independent pixels of N(0.5, 0.2^2)
    return 0.5 + 0.04 / (0.04 + float(sigma) ** 2) * (x - 0.5)

truth, draw = 0.5 + 0.2 * torch.randn(1, *size), torch.randn_like
y = inpainting(truth)
for name, levels, settings, expected in (
    ("100 levels and the default eta of 0.85", 100, {}, (0.119, 0.168)),
    ("1000 levels and eta 0, without new noise", 1000, {"eta": 0.0}, (0.138, 0.195)),
):
    sampler = deepinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, levels), **settings)
    spreads, errors = [], []
    for factor in (1, 2**0.5):
        with patch("torch.randn_like", lambda *args, **kwargs: factor * draw(*args, **kwargs)):
            sample = sampler(y.clone(), inpainting)[missing]
        spreads.append(float(sample.std()))
        errors.append(float((sample - truth[missing]).pow(2).mean().sqrt()))
    print(f"{name}: missing pixels of a prior of 0.2 spread {spreads[0]:.3f}, and {spreads[1]:.3f} with the noise times 1.414;")
    print(f"their errors are {errors[0]:.3f} and {errors[1]:.3f}")
    assert all(abs(s - e) < 0.004 for s, e in zip(spreads, expected)) and errors[0] < errors[1], "this has changed"
P
