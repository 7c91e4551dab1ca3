#!/usr/bin/env bash
# scikit-image 0.26.0: random_noise(mode="poisson") takes as photons of white the number of different values in the picture, rounded up to a power
# of two. The same scene gets 16 times the noise (standard deviation) as 8-bit picture that it gets as 16-bit picture of 256 x 256 pixels,
# a quarter of a float picture twice that of the whole, and a flat picture of one gray comes back black and white.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q scikit-image==0.26.0 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'P'
import numpy as np
from skimage.util import img_as_float, random_noise

scene = np.linspace(0, 1, 256 * 256)
scene = np.random.default_rng(0).permutation(scene).reshape(256, 256)
pictures = {
    "8 bit": np.round(scene * 255).astype(np.uint8),
    "16 bit": np.round(scene * 65535).astype(np.uint16),
    "float": scene,
    "float, a quarter of it": scene[:128, :128],
    "float, four grays": np.round(scene * 3) / 3,
}
photons = {}
for name, picture in pictures.items():
    clean = img_as_float(picture)
    noise = random_noise(picture, mode="poisson", rng=0, clip=False) - clean
    photons[name] = clean.mean() / (noise**2).mean()  # variance = signal / photons
    print(f"{name}: {len(np.unique(picture))} values, noise of standard deviation {noise.std():.4f}, white is {photons[name]:.0f} photons")
expected = {"8 bit": 256, "16 bit": 65536, "float": 65536, "float, a quarter of it": 16384, "float, four grays": 4}
assert all(abs(photons[name] / value - 1) < 0.05 for name, value in expected.items()), "this has changed"
gray = np.unique(random_noise(np.full((256, 256), 0.5), mode="poisson", rng=0))
print(f"a flat picture of 0.5 comes back with the values {gray.tolist()}")
assert gray.tolist() == [0, 1], "this has changed"
P
