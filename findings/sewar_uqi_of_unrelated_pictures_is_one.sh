#!/usr/bin/env bash
# sewar 0.4.9: uqi, the universal image quality index (Wang and Bovik 2002), compares brightness and little else. The formula, written for
# sums over windows of N pixels, is given their means: N mean(xy) - mean(x) mean(y) is N cov(x, y) + (N - 1) mean(x) mean(y), and the
# second term is most of it. Two pictures of independent noise with the same mean have 0.98 (0 by the definition), a picture and its
# negative 0.95 (-1), a scene and its blur 0.99 (0.17), and the offset of a camera, added to both pictures, takes it to 1. The package's
# d_lambda, d_s and qnr are made of it: bands that were opposite and became equal are a spectral distortion of 0.05 (2).
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q sewar==0.4.9 numpy==2.4.6 scipy==1.16.3
cd "$tmp" && OMP_NUM_THREADS=1 "$tmp/venv/bin/python" -W ignore - <<'P'
import numpy as np
from scipy.ndimage import gaussian_filter
from sewar.full_ref import uqi
from sewar.no_ref import d_lambda


def by_definition(x, y, side=8):
    """Mean over all windows of 4 cov(x, y) mean(x) mean(y) / ((var x + var y) (mean(x)^2 + mean(y)^2))."""
    a, b = (np.lib.stride_tricks.sliding_window_view(p, (side, side)).reshape(-1, side**2) for p in (x, y))
    mean_a, mean_b = a.mean(1), b.mean(1)
    covariance = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(1)
    return np.mean(4 * covariance * mean_a * mean_b / ((a.var(1) + b.var(1)) * (mean_a**2 + mean_b**2)))


random = np.random.default_rng(0)
first, second = 128 + 20 * random.standard_normal((2, 128, 128))
white = np.fft.fft2(random.standard_normal((128, 128)))
frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
frequency[0, 0] = np.inf
scene = np.fft.ifft2(white / frequency).real  # its spectrum falls as that of photographs
scene = 40 + 180 * (scene - scene.min()) / np.ptp(scene)
noisy = scene + 25 * random.standard_normal(scene.shape)
cases = {
    "two pictures of independent noise": (first, second, 0.975, 0.0),
    "a picture of noise and its negative": (first, 256 - first, 0.951, -1.0),
    "a scene and its blur of 4 pixels": (scene, gaussian_filter(scene, 4), 0.990, 0.174),
    "a scene and the same with noise of 25": (scene, noisy, 0.979, 0.467),
    "both with 1000 added": (scene + 1000, noisy + 1000, 1.000, 0.467),
}
wrong = []
for name, (x, y, theirs, defined) in cases.items():
    found = uqi(x, y), by_definition(x, y)
    print(f"{name}: uqi {found[0]:.3f}, by its definition {found[1]:.3f}")
    if max(abs(found[0] - theirs), abs(found[1] - defined)) > 0.02:
        wrong.append(name)
opposite, equal = np.stack([first, 256 - first], 2), np.stack([first, first], 2)
distortion = d_lambda(opposite, equal)
print(f"opposite bands that became equal: d_lambda {distortion:.3f}, by its definition {abs(by_definition(first, 256 - first) - 1):.3f}")
assert not wrong and abs(distortion - 0.049) < 5e-3, f"this has changed: {wrong}"
P
