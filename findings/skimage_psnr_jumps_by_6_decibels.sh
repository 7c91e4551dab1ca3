#!/usr/bin/env bash
# scikit-image 0.26.0: peak_signal_noise_ratio of float pictures without data_range takes the range 1, and 2 as soon as one value of the true
# picture is below 0, be it -1e-12: 6.02 dB more for the same two pictures. A difference, a standardised or an interpolated picture,
# and a background subtracted, have such values.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q scikit-image==0.26.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'P'
import numpy as np
from skimage.metrics import peak_signal_noise_ratio

random = np.random.default_rng(0)
true = random.random((64, 64))
found = true + 0.1 * random.standard_normal(true.shape)
true[0, 0] = 0
before = peak_signal_noise_ratio(true, found)
true[0, 0] = -1e-12
after = peak_signal_noise_ratio(true, found)
print(f"{before:.3f} dB; with one pixel of -1e-12 instead of 0: {after:.3f} dB")
assert abs(after - before - 20 * np.log10(2)) < 1e-6, "this has changed"
P
