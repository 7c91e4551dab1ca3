#!/usr/bin/env bash
# scikit-image 0.26.0: denoise_nl_means of an image [1, H, W] with channel_axis=0 returns [W, H], the transpose of the denoised plane, without
# complaint; channel_axis=-1 drops the channel and keeps the plane, and three channels are right.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q scikit-image==0.26.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'P'
import numpy as np
from skimage.restoration import denoise_nl_means

plane = np.random.default_rng(0).random((30, 40))
expected = denoise_nl_means(plane, h=0.1)
first = denoise_nl_means(plane[None], h=0.1, channel_axis=0)
last = denoise_nl_means(plane[..., None], h=0.1, channel_axis=-1)
three = denoise_nl_means(np.stack([plane] * 3), h=0.1, channel_axis=0)
print(f"plane {expected.shape}, channel first {first.shape}, channel last {last.shape}, three channels {three.shape}")
assert first.shape == (40, 30) and np.allclose(first, expected.T), "this has changed"
assert last.shape == (30, 40) and three.shape == (3, 30, 40), "this has changed"
P
