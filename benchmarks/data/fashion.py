"""Fashion-MNIST from Debian's dataset-fashion-mnist: ``python -m benchmarks.data.fashion [FOLDER]``.

The package is fetched and unpacked, not installed, by apt-get and dpkg of Debian or Ubuntu. Licence of the data: MIT.
"""

import sys
import tempfile
from pathlib import Path

from benchmarks.data.packages import debian, put, target

PACKAGE = "dataset-fashion-mnist"
PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def main(argv: list[str]) -> None:
    folder = target(argv, "fashion")
    with tempfile.TemporaryDirectory() as temporary:
        data = debian(PACKAGE, Path(temporary)) / "usr/share/datasets/fashion-mnist"
        for part in PARTS:
            put(folder, f"{part}-ubyte.gz", (data / f"{part}-ubyte.gz").read_bytes())
    print(f"Fashion-MNIST in {folder}")


if __name__ == "__main__":
    main(sys.argv)
