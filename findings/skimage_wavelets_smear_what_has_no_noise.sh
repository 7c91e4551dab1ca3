#!/usr/bin/env bash
# scikit-image 0.26.0: denoise_wavelet with its defaults takes the edges of a noiseless drawing for its noise. The median of the wavelet
# details, which is to ignore the few that edges make, is taken over those that are not exactly 0, and Haar's wavelet gives exact zeros
# in flat places: a drawing in [0, 1] comes back with an error of 0.144, and with noise of 1e-6 added first, which fills the zeros, with
# 1e-6. Where all are zeros, in a photograph enlarged by repeating its pixels, every pixel of the result is NaN. A sigma that is given,
# be it 1e-6, leaves both as they are.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q scikit-image==0.26.0 numpy==2.4.6 PyWavelets==1.9.0
cd "$tmp" && "$tmp/venv/bin/python" -W ignore - <<'P'
import numpy as np
from skimage.restoration import denoise_wavelet

row, column = np.mgrid[:256, :256]
drawing = np.ones((256, 256))
drawing[(column - 100) ** 2 + (row - 120) ** 2 < 60**2] = 0.2
drawing[180:220, 150:230] = 0.5
for top in range(20, 116, 8):
    drawing[top : top + 2, 170:245] = 0
random = np.random.default_rng(0)
white = np.fft.fft2(random.standard_normal((128, 128)))
frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
frequency[0, 0] = np.inf
scene = np.fft.ifft2(white / frequency).real  # its spectrum falls as that of photographs
scene = (scene - scene.min()) / np.ptp(scene)
enlarged = np.kron(scene, np.ones((2, 2)))


def error(picture, level, **settings):
    noisy = picture + level * np.random.default_rng(1).standard_normal(picture.shape)
    return np.sqrt(np.mean((denoise_wavelet(noisy, **settings) - picture) ** 2))


for name, picture in {"drawing": drawing, "enlarged photograph": enlarged}.items():
    for level in (0, 1e-6, 1e-3, 1e-2):
        print(f"{name}, noise of {level}: error after denoise_wavelet {error(picture, level):.3g}")
    print(f"{name}, no noise, sigma=1e-6: {error(picture, 0, sigma=1e-6):.3g}")
blank = np.isnan(denoise_wavelet(enlarged)).mean()
print(f"enlarged photograph without noise: {blank:.0%} of the pixels are NaN")
assert abs(error(drawing, 0) - 0.144) < 2e-3 and blank == 1, "this has changed"
for picture in (drawing, enlarged):
    assert error(picture, 1e-6) < 2e-6 and error(picture, 1e-2) < 1e-2 and error(picture, 0, sigma=1e-6) < 1e-6, "this has changed"
P
