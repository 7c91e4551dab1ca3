#!/usr/bin/env bash
# deepinv 0.5.0: physics.Downsampling(filter="bicubic") puts a coarse pixel elsewhere than Pillow, for which it is the middle of the fine
# pixels that it covers: by 1/2 fine pixel at factor 3, 1 at factor 4 and 3 at factor 8; factor 2 agrees. filter="gaussian" is off by
# 1/2, 1, 3/2 and 7/2. Pictures reduced by Pillow are not data of this operator, and are restored moved by so much.
# torchvision, which deepinv imports for its plots and data sets, is replaced by an empty module: the operator does not use it.
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
import deepinv, numpy as np, torch
from PIL import Image

ramp = torch.arange(72.0).expand(1, 1, 48, 72).contiguous()  # its reduced values are the places of the coarse pixels
image = Image.fromarray(ramp[0, 0].numpy())
expected = {"bicubic": {2: 0.0, 3: 0.5, 4: 1.0, 8: 3.0}, "gaussian": {2: 0.5, 3: 1.0, 4: 1.5, 8: 3.5}}
for kind, shifts in expected.items():
    for factor, shift in shifts.items():
        theirs = deepinv.physics.Downsampling(img_size=(1, 48, 72), filter=kind, factor=factor).A(ramp)[0, 0]
        pillow = np.asarray(image.resize((72 // factor, 48 // factor), Image.Resampling.BICUBIC))
        middle = theirs.shape[0] // 2, theirs.shape[1] // 2
        found = float(pillow[middle]) - float(theirs[middle])
        print(f"{kind}, factor {factor}: the coarse pixel lies {found:.2f} fine pixels to the left of Pillow's")
        assert abs(found - shift) < 1e-3, "this has changed"
P
