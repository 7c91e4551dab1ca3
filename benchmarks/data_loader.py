"""Speed of the data loader beside training: ``python -m benchmarks.data_loader [--images N] [--json [PATH]]``

Prepared sets of the size of CIFAR-10 (50,000 images of 32 x 32 x 3) and of CelebA at 64 x 64 (162,770 images) are
written to a temporary folder, and the training loader is timed on them, flips included, with 0 and 2 workers: cold
(the file thrown out of the page cache first, Linux only) and warm (read once before). Beside it stands the rate at
which the smallest U-Net of ``benchmarks.unet`` trains on 32 x 32 images; on 64 x 64 it is about four times slower.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.unet import measure
from scoreexp.data import DataModule, Split
from scoreexp.data.cache import Block, Contents, prepared
from scoreexp.data.split import SplitName

RESULT = Path(__file__).parent / "results" / "data_loader.json"
SETS = {"CIFAR-10": (50_000, 32), "CelebA 64": (162_770, 64)}
BATCH = 16
TIMES_AHEAD = 5


class Prepared(DataModule):
    """Random images from a prepared file."""

    def __init__(self, path: Path, count: int, side: int, **common: Any) -> None:
        super().__init__(**common)
        self.path, self.count, self.side = path, count, side

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, self.side, self.side)

    def open_split(self, name: SplitName) -> Split:
        return prepared(self.path, "random", lambda: Contents(self.count, self._blocks()))

    def _blocks(self) -> Iterator[Block]:
        rng = np.random.default_rng(0)
        for start in range(0, self.count, 1000):
            count = min(1000, self.count - start)
            yield Block(rng.integers(0, 256, (count, *self.event_shape), dtype=np.uint8))


def images_per_second(data: DataModule, window: float) -> float:
    """Rate over ``window`` seconds, the start of the workers left out."""
    batches = iter(data.train_dataloader())
    next(batches)
    started = time.perf_counter()
    images = 0
    while time.perf_counter() - started < window:
        images += len(next(batches).x)
    return images / (time.perf_counter() - started)


def forget(path: Path) -> None:
    """Throw the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def measure_set(name: str, folder: Path, limit: int | None, window: float) -> dict[str, Any]:
    """Preparation and loading rates of one set."""
    count, side = SETS[name]
    count = min(count, limit or count)
    path = folder / f"{side}.cache"
    started = time.perf_counter()
    Prepared(path, count, side).split("train")
    result: dict[str, Any] = {
        "set": name,
        "images": count,
        "MiB": path.stat().st_size / 2**20,
        "write_seconds": time.perf_counter() - started,
    }
    for workers in (0, 2):
        data = Prepared(path, count, side, batch_size=BATCH, num_workers=workers, augment=True)
        started = time.perf_counter()
        data.setup("fit")
        result[f"open_seconds_{workers}_workers"] = time.perf_counter() - started
        if hasattr(os, "posix_fadvise"):
            forget(path)
            result[f"cold_{workers}_workers"] = images_per_second(data, window)
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass
        result[f"warm_{workers}_workers"] = images_per_second(data, window)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, help="at most so many images per set")
    parser.add_argument("--window", type=float, default=4.0, help="seconds per measurement")
    parser.add_argument(
        "--json", nargs="?", type=Path, const=RESULT, help=f"where to store it (default {RESULT.name})"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = [measure_set(name, Path(folder), args.images, args.window) for name in SETS]
    training = measure("unet_1m", "float32", rounds=3, window=args.window)["train_images_per_s"]
    rates = [key for key in sets[0] if key.startswith(("cold", "warm"))]
    slowest = min(result[key] for result in sets for key in rates)
    print(
        f"{'set':12}{'images':>9}{'MiB':>7}"
        + "".join(f"{key.replace('_', ' '):>17}" for key in rates)
        + "   images/s"
    )
    for result in sets:
        numbers = "".join(f"{result[key]:17,.0f}" for key in rates)
        print(f"{result['set']:12}{result['images']:9,}{result['MiB']:7.0f}{numbers}")
    print(
        f"smallest U-Net: {training:,.0f} images/s on 32 x 32; slowest loader: {slowest / training:.0f} times that"
    )
    if slowest < TIMES_AHEAD * training:
        print(f"MISSED: the loader must keep {TIMES_AHEAD} x ahead")
    if args.json:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        content = {"batch_size": BATCH, "machine": machine, "train_images_per_s": training, "sets": sets}
        args.json.parent.mkdir(exist_ok=True)
        args.json.write_text(json.dumps(content, indent=2) + "\n")
        print(f"stored in {args.json}")


if __name__ == "__main__":
    main()
