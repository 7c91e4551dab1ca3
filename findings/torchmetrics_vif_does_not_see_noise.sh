#!/usr/bin/env bash
# torchmetrics 1.9.0: visual_information_fidelity has no data_range, and the noise variance of its model of the eye, 2, is meant for gray
# levels up to 255 (Sheikh and Bovik 2006). Of pictures in [0, 1] it is nearly the squared gain of a linear fit of the second to the first,
# to which noise is nothing: noise of standard deviation 0.05 to 1 (PSNR 26 to 0 dB) has 0.99 to 1.01, and smoothing, which adds 9 dB,
# takes it to 0.25. A ranking of denoisers by it is upside down. sigma_n_sq=2/255**2 gives the values of [0, 255].
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/pip" install -q torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$tmp/venv/bin/python" -W ignore - <<'P'
import math

import torch
from torch.nn.functional import conv2d, pad
from torchmetrics.functional.image import peak_signal_noise_ratio as psnr
from torchmetrics.functional.image import visual_information_fidelity as vif

generator = torch.Generator().manual_seed(0)
frequency = torch.fft.fftfreq(128)[:, None].square() + torch.fft.fftfreq(128).square()
frequency[0, 0] = math.inf
white = torch.randn(128, 128, generator=generator)
scene = torch.fft.ifft2(torch.fft.fft2(white) / frequency.sqrt()).real  # its spectrum falls as that of photographs
scene = ((scene - scene.min()) / (scene.max() - scene.min()))[None, None].double()
noise = torch.randn(scene.shape, generator=generator).double()


def smooth(x):
    line = torch.exp(-torch.arange(-6.0, 7.0).double().square() / (2 * 1.5**2))
    return conv2d(pad(x, [6] * 4, mode="reflect"), torch.outer(line, line)[None, None] / line.sum() ** 2)


pictures = {f"noise of {level}": scene + level * noise for level in (0.05, 0.25, 1.0)}
pictures["noise of 0.25, smoothed"] = smooth(pictures["noise of 0.25"])
expected = {
    "noise of 0.05": (26.0, 0.997, 0.381),
    "noise of 0.25": (12.1, 0.991, 0.079),
    "noise of 1.0": (0.0, 1.009, 0.012),
    "noise of 0.25, smoothed": (21.3, 0.253, 0.133),
}
wrong = []
for name, picture in pictures.items():
    values = psnr(picture, scene, data_range=1.0).item(), vif(picture, scene).item(), vif(255 * picture, 255 * scene).item()
    scaled = vif(picture, scene, sigma_n_sq=2 / 255**2).item()
    print(f"{name}: PSNR {values[0]:.1f}, VIF of [0, 1] {values[1]:.3f}, of [0, 255] {values[2]:.3f}, of [0, 1] with 2/255**2 {scaled:.3f}")
    if any(abs(v - e) > t for v, e, t in zip(values, expected[name], (0.1, 0.005, 0.005))) or abs(scaled - values[2]) > 1e-3:
        wrong.append(name)
assert not wrong, f"this has changed: {wrong}"
P
