"""What sets of features see, and how bias falls with n: ``python -m benchmarks.study_features --cifar10 DIR [--json]``

On CIFAR-10 the Frechet distance of the test images, each damaged in one of five ways, to as many training images, for each
set of features. Distances of different features have different scales, so each is divided by that of undamaged test images
for the same n. The bias is that of n training images, up to 50,000, to the first test images (``--reference``, all of them
by default), as n generated images are measured against a fixed reference. With ``--cache DIR`` features are kept in blocks,
and a study that was stopped goes on. ``--only NAME`` runs one set of features and leaves the others' rows of the JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import scoreexp as se
from benchmarks.fokker_planck import describe_machine
from scoreexp.core.streams import generator
from scoreexp.metrics.efficientnet import EfficientNetLite0Features
from scoreexp.metrics.features import FeatureExtractor
from scoreexp.system.atomic import atomic_write

BLOCK = 500  # images
RESULT = Path(__file__).parent / "results" / "features.json"


def noise(images: Tensor) -> Tensor:
    return images + 20 * torch.randn(images.shape, generator=generator("study of features", 0))


def blur(images: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), kernel, groups=3)


def blocks(images: Tensor) -> Tensor:
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")


def swap(images: Tensor) -> Tensor:
    """The left and the right half change places: the texture stays, the objects do not."""
    return images.roll(16, dims=3)


DEGRADATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise of 20/255": noise,
    "blur by (1, 2, 1)": blur,
    "2 x 2 blocks": blocks,
    "contrast of 0.8": lambda images: (images - 128) * 0.8 + 128,
    "halves swapped": swap,
}

EXTRACTORS: dict[str, Callable[[str | None], FeatureExtractor]] = {
    "pixels16": lambda _: se.metrics.PixelFeatures(16),
    "random_conv": lambda _: se.metrics.RandomConvFeatures(),
    "efficientnet_lite0": EfficientNetLite0Features,
}


def read(folder: Path, names: list[str]) -> Tensor:
    parts = [np.fromfile(folder / f"{name}.bin", np.uint8).reshape(-1, 3073)[:, 1:] for name in names]
    return torch.from_numpy(np.concatenate(parts).reshape(-1, 3, 32, 32))


def features(extractor: FeatureExtractor, images: Tensor, name: str, cache: Path | None) -> Tensor:
    """Of images that have a name for the cache, such as ``train``: they are its first ones."""
    parts = []
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        file = cache and cache / f"{extractor.digest}_{name}_{start}_{len(block)}.npy".replace(
            "/", "_"
        ).replace(" ", "_")
        if file and file.is_file():
            parts.append(torch.from_numpy(np.load(file)))
            continue
        parts.append(torch.cat([extractor(part) for part in block.split(10)]).float().cpu())
        if file:
            with atomic_write(file) as temporary, temporary.open("wb") as opened:
                np.save(opened, parts[-1].numpy())
    return torch.cat(parts).double()


def frechet(a: Tensor, b: Tensor) -> float:
    """``|mean difference|^2 + tr(A + B - 2 (A B)^(1/2))``, the trace by the singular values of a product of roots."""
    shift = (a.mean(0) - b.mean(0)).square().sum()
    a, b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    # tr((A B)^(1/2)) with A = X^T X and B = Y^T Y is the nuclear norm of X Y^T
    nuclear = torch.linalg.svdvals(a @ b.T).sum() if len(a) < a.shape[1] else _nuclear(a.T @ a, b.T @ b)
    return float(shift + a.square().sum() + b.square().sum() - 2 * nuclear)


def _nuclear(a: Tensor, b: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cifar10", type=Path, required=True, help="folder of the binary batches")
    parser.add_argument(
        "--n", type=int, nargs="+", default=[500, 1000, 2000, 5000, 10000, 50000], help="sizes for the bias"
    )
    parser.add_argument("--cache", type=Path, help="folder for features")
    parser.add_argument("--degraded", type=int, default=5000, help="images of each degradation")
    parser.add_argument("--reference", type=int, default=10000, help="test images, for the bias")
    parser.add_argument("--only", choices=EXTRACTORS, help="one set of features")
    parser.add_argument(
        "--efficientnet", help="file of its weights; by default that of the installed package"
    )
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT)
    options = parser.parse_args()
    train = read(options.cifar10, [f"data_batch_{i}" for i in range(1, 6)])
    test = read(options.cifar10, ["test_batch"])
    if max(options.n) > len(train) or max(options.degraded, options.reference) > len(test):
        parser.error(f"there are {len(train)} training and {len(test)} test images: choose at most so many")
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
    largest = max(*options.n, options.degraded)
    rows: dict[str, Any] = {}
    for name in [options.only] if options.only else EXTRACTORS:
        extractor = EXTRACTORS[name](options.efficientnet)
        began = time.perf_counter()
        real = features(extractor, train[:largest], "train", options.cache)
        clean = features(extractor, test[: max(options.degraded, options.reference)], "test", options.cache)
        n = options.degraded
        base = frechet(real[:n], clean[:n])
        degraded = {}
        for damage, make in DEGRADATIONS.items():
            damaged = make(test[:n].float()).round().clamp(0, 255).to(torch.uint8)
            found = features(extractor, damaged, damage, options.cache)
            degraded[damage] = round(frechet(real[:n], found) / base, 3)
        reference = clean[: options.reference]
        bias = {str(size): frechet(real[:size], reference) for size in options.n}
        rows[extractor.name] = {
            "undamaged": base,
            "n": n,
            "degraded": degraded,
            "reference": len(reference),
            "bias": bias,
        }
        print(f"{extractor.name} ({time.perf_counter() - began:.0f} s): undamaged {base:.4g} with n = {n}")
        for damage, ratio in sorted(degraded.items(), key=lambda item: item[1]):
            print(f"  {damage:20} {ratio:8.2f} times that")
        for size, value in bias.items():
            print(f"  n = {size:6} {value:.4g}", flush=True)
    if options.json:
        if options.only and options.json.is_file():
            rows = json.loads(options.json.read_text())["rows"] | rows
        options.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
