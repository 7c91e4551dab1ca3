#!/usr/bin/env bash
# torchmetrics 1.9.0: SSIM is the mean over all pixels, those whose window reaches beyond the image included; the image is mirrored
# there. scikit-image 0.26.0, as Wang et al. 2004, takes the windows that lie inside. On two independent 32 x 32 images of
# uniform noise the values have different signs (-0.051 and 0.006). The two maps agree inside to rounding.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/pip" install -q torchmetrics==1.9.0 scikit-image==0.26.0 torch==2.13.0 numpy==2.4.6
"$tmp/venv/bin/python" - <<'P'
import numpy as np, torch
from skimage.metrics import structural_similarity as inside
from torchmetrics.functional.image import structural_similarity_index_measure as whole

random = np.random.default_rng(0)
u, v = random.random((32, 32)), random.random((32, 32))
a = inside(u, v, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
b, full = whole(torch.from_numpy(u)[None, None], torch.from_numpy(v)[None, None], data_range=1.0, return_full_image=True)
cropped = full[..., 5:-5, 5:-5].mean()
print(f"scikit-image {a:.4f}, torchmetrics {float(b):.4f}, torchmetrics' map without a border of 5 pixels {float(cropped):.4f}")
assert abs(a + 0.0511) < 1e-3 and abs(float(b) - 0.0060) < 1e-3 and abs(float(cropped) - a) < 1e-10, "this has changed"
P
