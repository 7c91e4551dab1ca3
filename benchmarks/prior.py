"""The recipe of the bundled prior: photographs from packages of Debian and scikit-image, training, and the packed weights.

    python -m benchmarks.prior fetch DIR          # photographs with their licences, by apt-get and from scikit-image
    python -m benchmarks.prior check DIR TESTSETS # no photograph may show what an image of the test sets shows
    python -m benchmarks.prior train DIR RUN      # experiment=photo_prior
    python -m benchmarks.prior pack RUN           # weights and card into src/scoreexp/prior
    python -m benchmarks.prior figure FILE        # what ``denoise`` makes of a photograph that is not among them

``make prior`` does all four. More steps from the packed weights: ``train DIR RUN init_from=OLD_RUN/checkpoints/last.ckpt``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import uniform_filter

import scoreexp as se
from scoreexp.core.streams import generator
from scoreexp.data.photo import photographs
from scoreexp.runs.checkpoint_file import read_checkpoint
from scoreexp.runs.model import MODEL_PARTS, model_weights
from scoreexp.system.atomic import atomic_write
from scoreexp.system.machine import processor

PACKAGE = Path(__file__).parents[1] / "src" / "scoreexp" / "prior"
_PATCH = 48  # pixels
_LONGER = 128  # pixels of the longer side of a test image when it is compared
LARGEST = 4_000_000  # bytes of the weights
MATE, LOMIRI, PLASMA = "mate-backgrounds", "lomiri-wallpapers", "plasma-workspace-wallpapers"


class Source(NamedTuple):
    """A photograph: where its package holds it, who made it, under which licence."""

    package: str
    path: str
    author: str
    licence: str

    @property
    def name(self) -> str:
        path = Path(self.path)
        return (path.parts[-4] if path.parent.name == "images" else path.stem) + path.suffix


def _mate(author: str, *names: str) -> list[Source]:
    folder = "usr/share/backgrounds/mate/nature"
    return [Source(MATE, f"{folder}/{name}.jpg", author, "GPL-2+") for name in names]


def _lomiri(licence: str, author: str, *names: str, version: str = "16.04") -> list[Source]:
    package = f"{LOMIRI}-{version}"
    return [Source(package, f"usr/share/backgrounds/{name}.jpg", author, licence) for name in names]


def _plasma(author: str, *names: str, licence: str = "LGPL-3", size: str = "2560x1600") -> list[Source]:
    folder = "usr/share/wallpapers"
    return [Source(PLASMA, f"{folder}/{name}/contents/images/{size}.jpg", author, licence) for name in names]


SOURCES = [
    *_mate("Charles Barbin", "Aqua", "LadyBird", "YellowFlower", "Garden"),
    *_mate("Charles Barbin, Hylke Bons", "TwoWings"),
    *_mate("Lennart Poettering, Andrea Cimitan", "Blinds"),
    *_mate("Marco Cogoni, Hylke Bons", "Dune"),
    *_mate("Jens Ansorg", "FreshFlower"),
    *_mate("Timothy Schellhase, Lapo Calamandrei", "GreenMeadow"),
    *_mate("blackcombwhistler07", "RainDrops"),
    *_mate("Sergey Nazarov", "Storm"),
    *_mate("Jean-François Fortin Tam", "Wood"),
    *_lomiri(
        "CC-BY-4.0",
        "Aitzol Berasategi",
        *(f"{n}_by_Aitzol_Berasategi" for n in ("aitzgorri", "friends", "life", "picosdeeuropa", "sunset")),
    ),
    *_lomiri("CC-BY-SA-4.0", "Sander Klootwijk", "Bridge_by_Sander_Klootwijk"),
    *_lomiri("CC-BY-SA-4.0", "Bolly", "Dragonfly_by_Bolly"),
    *_lomiri("CC-BY-SA-4.0", "Peter Nerlich", "free_by_Peter_Nerlich", "greentock_by_Peter_Nerlich"),
    *_lomiri("CC-BY-4.0", "Trevor Freespace", "Picture_0B_by_freespace", "Picture_1A_by_freespace"),
    *_lomiri("CC0-1.0", "Clemens Engelhardt", "seeding_by_Clements_Engelhardt"),
    *_lomiri("CC-BY-4.0", "Jakub Mede", "Wine_by_Jakkub_Mede"),
    *_lomiri("CC-BY-SA-3.0", "Lukas Baubkus", "Kleiber_by_Lukas_Baubkus", version="20.04"),
    *_plasma("Maciej Wiklo", "BytheWater"),
    *_plasma("Risto Saukonpää", "ColdRipple", "DarkestHour", "Kite", "OneStandsOut", "Path", "summer_1am"),
    *_plasma("Dmitri Popov", "ColorfulCups"),
    *_plasma("Ian Hex", "EveningGlow"),
    *_plasma("Martin Klapetek", "FallenLeaf"),
    *_plasma("Sigi Sagi", "Grey"),
    *_plasma("Nikita Babin", "Volna", licence="CC-BY-SA-4.0", size="5120x2880"),
    Source("scikit-image", "astronaut.png", "NASA", "public domain"),
    Source("scikit-image", "chelsea.png", "Stefan van der Walt", "CC0-1.0"),
    Source("scikit-image", "coffee.png", "Rachel Michetti", "CC0-1.0"),
    Source("scikit-image", "rocket.jpg", "SpaceX", "public domain"),
]


def fetch(folder: Path) -> None:
    """The photographs below ``folder/PACKAGE``."""
    packages = dict.fromkeys(source.package for source in SOURCES)
    for package in packages:
        with tempfile.TemporaryDirectory() as unpacked:
            if package == "scikit-image":
                found = {path.name: path for path in photographs().values()}
            else:
                subprocess.run(["apt-get", "download", "-qq", package], cwd=unpacked, check=True)
                [archive] = Path(unpacked).glob("*.deb")
                subprocess.run(["dpkg-deb", "-x", str(archive), unpacked], check=True)
                found = {s.path: Path(unpacked, s.path) for s in SOURCES if s.package == package}
            target = folder / package
            target.mkdir(parents=True, exist_ok=True)
            for source in SOURCES:
                if source.package == package:
                    shutil.copyfile(found[source.path], target / source.name)
    print(f"{len(SOURCES)} photographs in {folder}")


def check(folder: Path, testsets: Path) -> None:
    """Compare every photograph, at five scales, with patches of every test image, in gray, by the correlation of details.

    Three textured patches of 48 x 48 pixels of each test image, reduced so that its longer side has 128 pixels, are sought
    in the photographs reduced to longer sides from 96 to 256 pixels, as they are and mirrored. A photograph that
    shows the scene of a test image holds such a patch with a correlation near 1, whatever the crop; the check fails at 0.8.
    A control seeks the
    patches in the test images themselves, reduced by another filter and saved as JPEG: all must be found.
    """
    patches, owners = [], []
    tests = sorted(p for p in testsets.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".tif", ".bmp"))
    for path in tests:
        gray = _detail(_gray(path, _LONGER))
        for top, left in _textured(gray):
            patches.append(gray[top : top + _PATCH, left : left + _PATCH])
            owners.append(path.name)
    wanted = torch.stack([_standardised(torch.from_numpy(patch)) for patch in patches])[:, None]
    worst = (0.0, "", "")
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png")):
        for side in (96, 128, 160, 200, 256):
            gray = torch.from_numpy(_detail(_gray(path, side)))
            for image in (gray, gray.flip(1)):
                found = correlations(image, wanted).flatten(1).amax(1)
                best = int(found.argmax())
                worst = max(worst, (float(found[best]), path.name, owners[best]))
    control = [
        float(correlations(torch.from_numpy(_detail(_disturbed(p))), wanted[[owners.index(p.name)]]).max())
        for p in tests
    ]
    print(f"highest correlation of a photograph with a test image: {worst[0]:.3f} ({worst[1]}, {worst[2]})")
    print(f"lowest of {len(control)} controls: {min(control):.3f}")
    if worst[0] >= 0.8 or min(control) < 0.8:
        raise SystemExit("the photographs and the test sets share a scene, or the control was not found")


def correlations(image: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """Correlation of ``image[H, W]`` with standardised ``patches[N, 1, h, w]`` at every place, ``[N, H', W']``."""
    size = patches.shape[-1]
    x = image[None, None]
    mean = torch.nn.functional.avg_pool2d(x, size, 1)
    variance = torch.nn.functional.avg_pool2d(x**2, size, 1) - mean**2
    products = torch.nn.functional.conv2d(x, patches) / size**2
    return (products / variance.clamp_min(1e-5).sqrt())[0]


def _standardised(patch: torch.Tensor) -> torch.Tensor:
    return (patch - patch.mean()) / patch.std(correction=0)


def _gray(path: Path, longer: int, resample: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    with Image.open(path) as image:
        gray = image.convert("L")
        scale = longer / max(gray.size)
        gray = gray.resize((round(gray.width * scale), round(gray.height * scale)), resample)
        return np.asarray(gray, np.float32) / 255


def _detail(gray: np.ndarray) -> np.ndarray:
    """What a 5 x 5 mean leaves: two smooth edges look alike, details do not."""
    return gray - uniform_filter(gray, 5)


def _disturbed(path: Path) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "control.jpg")
        pixels = _gray(path, _LONGER, Image.Resampling.BILINEAR)
        Image.fromarray((pixels * 255).astype(np.uint8)).save(file, quality=70)
        with Image.open(file) as image:
            return np.asarray(image, np.float32) / 255


def _textured(gray: np.ndarray) -> list[tuple[int, int]]:
    """The three places of a grid whose patches vary most."""
    places = [
        (t, c)
        for t in range(0, gray.shape[0] - _PATCH + 1, 8)
        for c in range(0, gray.shape[1] - _PATCH + 1, 8)
    ]
    places.sort(key=lambda place: -gray[place[0] : place[0] + _PATCH, place[1] : place[1] + _PATCH].std())
    return places[:3]


def train(folder: Path, run: Path, overrides: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "scoreexp.train",
        "experiment=photo_prior",
        f"data.root={folder}",
        f"run_dir={run}",
    ]
    subprocess.run([*command, "resume=auto", *overrides], check=True)


def pack(run: Path) -> None:
    """Averaged weights in half precision, and the card beside them."""
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    record = checkpoint["scoreexp"]
    weights = {key: value.half().contiguous() for key, value in model_weights(checkpoint).items()}
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    begun = record["config"].get("init_from")
    card = {
        "model": {part: record["config"][part] for part in MODEL_PARTS},
        "event_shape": record["event_shape"],
        "parameters": sum(value.numel() for value in weights.values()),
        "recipe": "experiment=photo_prior",
        "steps": checkpoint["global_step"],
        "steps_before": read_checkpoint(Path(begun))["global_step"] if begun else 0,
        "training_seconds": round(metrics["time/train"]),
        "machine": processor() + ", one thread",
        "levels": "sigma up to 0.5 of the range",
        "sources": [source._asdict() | {"path": source.name} for source in SOURCES],
    }
    PACKAGE.mkdir(exist_ok=True)
    with atomic_write(PACKAGE / "photo.safetensors") as temporary:
        save_file(weights, temporary)
    with atomic_write(PACKAGE / "card.json") as temporary:
        temporary.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    size = (PACKAGE / "photo.safetensors").stat().st_size
    print(f"{size} bytes of weights and a card in {PACKAGE}")
    if size > LARGEST:
        raise SystemExit(f"more than the {LARGEST} bytes that a package may carry: choose narrower widths")


def figure(file: Path) -> None:
    """A CC0 photograph with noise of sigma 30/255, rounded to 8 bits; what ``se.denoise`` makes of it; and the clean one."""
    with Image.open(photographs()["camera"]) as image:
        clean = np.asarray(image.convert("L"))[40:296, 130:450]
    noise = torch.randn(clean.shape, generator=generator(0, "prior figure")).numpy()
    noisy = (clean + 30 * noise).round().clip(0, 255).astype(np.uint8)
    gap = np.full((clean.shape[0], 8), 255, np.uint8)
    estimate = se.denoise(noisy[..., None], say=print)[..., 0]
    with atomic_write(file) as temporary:
        Image.fromarray(np.hstack([noisy, gap, estimate, gap, clean])).save(temporary, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (
        ("fetch", ["folder"]),
        ("check", ["folder", "testsets"]),
        ("pack", ["run"]),
        ("figure", ["file"]),
    ):
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
    training = commands.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("run", type=Path)
    training.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    match args.command:
        case "fetch":
            fetch(args.folder)
        case "check":
            check(args.folder, args.testsets)
        case "train":
            train(args.folder, args.run, args.overrides)
        case "pack":
            pack(args.run)
        case "figure":
            figure(args.file)


if __name__ == "__main__":
    main()
