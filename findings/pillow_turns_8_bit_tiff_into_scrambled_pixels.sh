#!/usr/bin/env bash
# Pillow 13.0.0: an uncompressed 8-bit gray TIFF with orientation 5 to 8 (turned by a quarter) opens without complaint with the shape of
# the stored rows and the pixels in another order than any turn of them; 1 to 4 are right. A fourth band of unknown meaning, such as
# near infrared, is dropped silently, and signed 8-bit values come out as unsigned ones.
set -euo pipefail
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
python3 -m venv "$tmp/venv"
"$tmp/venv/bin/pip" install -q pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$tmp" && "$tmp/venv/bin/python" - <<'P'
import numpy as np, tifffile
from PIL import Image

stored = np.arange(24, dtype=np.uint8).reshape(4, 6) + 10
turned = {5: stored.T, 6: np.rot90(stored, -1), 7: stored[::-1, ::-1].T, 8: np.rot90(stored)}
upright = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], **turned}
for orientation, expected in upright.items():
    tifffile.imwrite("a.tif", stored, photometric="minisblack", extratags=[(274, 3, 1, orientation, True)])
    found = np.asarray(Image.open("a.tif"))
    right = found.shape == expected.shape and np.array_equal(found, expected)
    print(f"orientation {orientation}: {'right' if right else f'first row {found[0].tolist()} instead of {expected[0].tolist()}'}")
    assert right == (orientation < 5), "this has changed"
bands = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
tifffile.imwrite("b.tif", bands, photometric="rgb", extrasamples=["unspecified"])
image = Image.open("b.tif")
print(f"four bands: mode {image.mode}, {np.asarray(image).shape[2]} of them")
assert image.mode == "RGB" and np.asarray(image).shape == (4, 6, 3), "this has changed"
tifffile.imwrite("c.tif", stored.astype(np.int8) - 20, photometric="minisblack")
print(f"signed values from -10: first pixel {np.asarray(Image.open('c.tif'))[0, 0]}")
assert np.asarray(Image.open("c.tif"))[0, 0] == 246, "this has changed"
P
