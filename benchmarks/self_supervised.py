"""Denoising without clean images, at equal seconds: ``python -m benchmarks.self_supervised --kodak DIR --cifar10 DIR``

Each picture has ``--seconds`` of processor time on one thread. A restorer that is fitted to one picture takes as many steps
as fit into it. A model trained on ``N`` noisy pictures takes ``N`` times as long for all of them together, its training
included, and denoises these pictures: it sees what the others see, and no clean one. Training pays from the least ``N``
measured at which the best trained model is better than the best restorer that is fitted without any model.

Rows of noise (of the raw sensor, ELD) are taken off before, for all methods alike (``without_lines``).

Pictures are squares of Kodak's (``kodim*.png``; of more pictures than images further squares along the diagonals) and
images of CIFAR-10 (``test_batch.bin``); the noise is not clipped, and restorers know its level. BM3D is run by another
Python, ``--bm3d PYTHON``, which has the package bm3d. The bundled prior is used as ``denoise`` uses it. Rows are stored
after each measurement, and a further call measures what is missing.

The volume, ``--imageio WHEEL``, is a block of imageio 2.9's CT of a stent (``pip download imageio==2.9.0 --no-deps``), with
Gaussian noise: slices one by one, or all together by HyRes and by a 3-D U-Net that learns the score of the noisy volume
itself. Nobody has a clean one: the truth is means of 2 x 2 x 2 voxels, whose own noise is smaller by a factor of almost 3.
The cube has an exact truth: bands that are made of the three colours of one of Kodak's squares.

More pictures to train on, beside the four that all methods have (128 of two seconds take five minutes of a processor):

    python -m benchmarks.self_supervised --kodak DIR --seconds 2 --noises gaussian --only noise2score --counts 4 128 --page
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import scoreexp as se
from benchmarks.fokker_planck import describe_machine
from benchmarks.pages import DOCS, write_table
from scoreexp import prior
from scoreexp.core.streams import ImageStreams
from scoreexp.lit import EMA
from scoreexp.metrics.functional import ssim
from scoreexp.observations import (
    CorrelatedNoise,
    ELDNoise,
    GaussianNoise,
    Identity,
    NoiseModel,
    Observation,
    PoissonNoise,
)
from scoreexp.restorers import (
    MID,
    ZSN2N,
    Bilateral,
    Filter2Noise,
    HyRes,
    Noise2Score,
    NonLocalMeans,
    Restorer,
    ScoreDVI,
)
from scoreexp.restorers.destriped import without_lines
from scoreexp.restorers.per_image import PerImage
from scoreexp.restorers.usual import serving, usual_restorer
from scoreexp.system.json_files import read_json, write_json

RESULT = Path(__file__).parent / "results" / "self_supervised.json"
PAGE = DOCS / "self_supervised.md"
NOISES: dict[str, NoiseModel] = {
    "gaussian": GaussianNoise(50 / 255),
    "poisson": PoissonNoise(10.0),
    "correlated": CorrelatedNoise(50 / 255, 0.8),
    "eld": ELDNoise(gain=0.05, sigma=0.1, shape=-0.1, row=0.05, step=2 / 255),
}
IN_WORDS = {
    "gaussian": "Gaussian, 25/255",
    "poisson": "Poisson, peak 10",
    "correlated": "correlated, 25/255, length 0.8",
    "eld": "raw sensor (ELD), 40 electrons, read-out 2, rows 1",
}
FITTED: dict[str, Callable[[int], PerImage]] = {
    "zs_n2n": lambda steps: ZSN2N(steps=steps),
    "filter2noise": lambda steps: Filter2Noise(steps=steps, tolerance=0.0),
    "mid": lambda steps: MID(steps=steps, tolerance=0.0),
}
TRAINED = ("noise2score", "sdap", "cbsn")
OF_SLICES = ("noisy", "bilateral", "non_local_means", "bm3d", "prior", "noise2score")
VOLUMES = {"volume": "CT volume", "cube": "spectral cube"}
SLICES, BLOCK = 32, 8  # of each, and of a sample to train on
WHITE = 500  # stored value of the CT that becomes 1
TRIAL = 8  # steps that are timed to know how many fit into the seconds
LARGEST = 5000  # steps
BM3D = """
import sys, numpy as np, bm3d
np.trapz = getattr(np, "trapz", None) or np.trapezoid  # its name before numpy 2, which bm4d uses
y, sigma, correlated = np.load(sys.argv[1]), float(sys.argv[3]), float(sys.argv[4])
if correlated:
    away = np.arange(-4, 5) ** 2 / (4 * correlated**2)
    kernel = np.exp(-2 * (away[:, None] + away))
    psd = np.abs(np.fft.fft2(sigma * kernel / np.sqrt((kernel**2).sum()), y.shape[1:3])) ** 2 * y.shape[1] * y.shape[2]
out = np.stack([bm3d.bm3d(image, psd if correlated else sigma) for image in y])
np.save(sys.argv[2], out.reshape(y.shape))
"""


def pictures(source: str, folder: Path, count: int, side: int) -> Tensor:
    """The first ``count`` images ``[N, 3, H, W]`` in [-1, 1]."""
    if source == "kodak":
        files = sorted(folder.glob("kodim*.png"))
        if not files:
            sys.exit(f"error: no kodim*.png in {folder}: give the folder of the Kodak images")
        images = []
        for k in range(count):  # further squares of each image where there are more squares than images
            image = np.asarray(Image.open(files[k % len(files)]).convert("RGB"))
            places = (min(image.shape[0], image.shape[1]) - side) // 2
            start = (places + (k // len(files)) * side * 5 // 8) % (2 * places)
            images.append(image[start : start + side, start : start + side])
    else:
        raw = np.fromfile(folder / "test_batch.bin", np.uint8).reshape(-1, 3073)[:count, 1:]
        images = list(raw.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return torch.from_numpy(np.stack(images)).movedim(-1, 1).float() / 127.5 - 1


def slices(wheel: Path) -> Tensor:
    """``[N, 1, 64, 64]`` in [-1, 1], successive ones of the middle of the volume; see the module."""
    with zipfile.ZipFile(wheel) as archive, archive.open("imageio/resources/images/stent.npz") as file:
        stored = np.load(file)
        volume = torch.from_numpy(stored[stored.files[0]].astype(np.float32))
    means = torch.nn.functional.avg_pool3d(volume[None], 2)[0]
    start = (len(means) - SLICES) // 2
    return (means[start : start + SLICES, None] / WHITE).clamp(0, 1) * 2 - 1


def bands(folder: Path, side: int) -> Tensor:
    """``[N, 1, side, side]`` in [-1, 1]: at ``u`` from 0 to 1 the colours ``c``, blue to red, of a square have weights
    ``exp(-(u - c)^2 / 0.08)`` and the exponent ``0.6 + 0.8 u``, so that no three spectra make all of them.
    """
    colours = (pictures("kodak", folder, 1, side)[0].flip(0) + 1) / 2
    u, places = torch.linspace(0, 1, SLICES)[:, None], torch.tensor([0.15, 0.5, 0.85])
    weights = (-((u - places) ** 2) / 0.08).exp()
    weights = (weights / weights.sum(1, keepdim=True))[..., None, None]
    return 2 * (weights * colours ** (0.6 + 0.8 * u[..., None, None])).sum(1, keepdim=True) - 1


def quality(x: Tensor, clean: Tensor) -> dict[str, float]:
    """PSNR and SSIM, means over the pictures."""
    x, clean = ((part.clamp(-1, 1) + 1) / 2 for part in (x, clean))
    psnr = -10 * torch.log10((x - clean).square().flatten(1).mean(1))
    return {"psnr": float(psnr.mean()), "ssim": float(ssim(x, clean).mean())}


def one_by_one(restorer: Restorer, observation: Observation, model: Any = None) -> Tensor:
    made = []
    for k in range(len(observation.y)):
        one = Observation(observation.y[k : k + 1], Identity(), observation.noise)
        made.append(restorer(one, model, streams=ImageStreams([k])).x)
    return torch.cat(made)


def steps_within(seconds: float, work: Callable[[int], Any]) -> int:
    """How many steps of ``work(steps)`` take so long, from a trial."""
    work(1)  # what is done once
    started = time.process_time()
    work(TRIAL)
    each = (time.process_time() - started) / TRIAL
    return max(1, min(LARGEST, int(seconds / each)))


def fitted(name: str, observation: Observation, seconds: float) -> Tensor:
    first = Observation(observation.y[:1], Identity(), observation.noise)
    steps = steps_within(seconds, lambda steps: FITTED[name](steps)(first, streams=ImageStreams([0])))
    return one_by_one(FITTED[name](steps), observation)


def trained(name: str, observation: Observation, seconds: float) -> Tensor:
    """Train on the noisy pictures, or on the volume whose slices they are, and denoise them."""
    y = observation.y
    is_volume, seconds = name == "unet3d", seconds * len(y)
    if is_volume:  # [1, D, H, W], and its blocks of successive slices
        cube = y.movedim(1, 0)
        y = cube[0].unfold(0, BLOCK, 1).movedim(-1, 1).contiguous()
    level = float(observation.noise.variance(y.clamp(min=-1)).mean().sqrt())
    shape, schedule = tuple(y.shape[1:]), se.schedules.ConstantNoise(level)
    stride = 2 if min(shape[1:]) < 64 else 3

    def run(steps: int) -> Any:
        torch.manual_seed(0)
        ramp = max(steps // 2, 1)
        if is_volume:
            network = se.networks.UNet3D(event_shape=shape)
            objective = se.objectives.ARDAE(largest=2 * level, smallest=level / 5, ramp=ramp, window=32)
            precond: Any = se.denoisers.ScorePrediction()
        elif name == "noise2score":
            network = se.networks.UNet(
                event_shape=shape, channels=32, time_conditioning=False, attention_resolutions=()
            )
            objective = se.objectives.ARDAE(largest=2 * level, smallest=level / 5, ramp=ramp, window=48)
            precond = se.denoisers.ScorePrediction()
        else:
            centre = name == "cbsn"
            network = se.networks.BlindSpot(event_shape=shape, centre=centre, stride=1 if centre else 2)
            objective = (
                se.objectives.DownsampledInvariance(stride=stride, ramp=ramp, window=96)
                if centre
                else se.objectives.SDAP(stride=stride, window=96)
            )
            precond = se.denoisers.X0Prediction()
        return se.train(
            se.denoisers.Denoiser(network, precond, schedule),
            y,
            steps=steps,
            objective=objective,
            time_law=se.objectives.UniformTime(),
            optimizer=partial(torch.optim.Adam, lr=1e-3),
            batch_size=8,
            ema=EMA(decay=0.99, warmup=True),
        )

    model = run(steps_within(0.95 * seconds, run))
    if is_volume:
        one = Observation(cube, Identity(), observation.noise)
        return Noise2Score()(one, model, streams=ImageStreams([0])).x.movedim(1, 0)
    if name == "noise2score":
        return one_by_one(Noise2Score(), observation, model)
    with torch.no_grad():
        return torch.cat([model(part, torch.full((1,), 0.5, dtype=torch.float64)) for part in y.split(1)])


def bm3d(python: Path, observation: Observation) -> Tensor:
    """BM3D; counts are stabilised first, and correlated noise has its power spectrum."""
    noise = observation.noise
    counts = not isinstance(noise, GaussianNoise | CorrelatedNoise)
    z = noise.stabilise(observation.y) if counts else observation.y
    sigma = 1.0 if counts else float(noise.variance(z).mean().sqrt())
    length = noise.length if isinstance(noise, CorrelatedNoise) else 0.0
    low, scale = float(z.min()), float(z.max() - z.min())
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/in.npy", ((z - low) / scale).movedim(1, -1).numpy())
        given = [f"{folder}/in.npy", f"{folder}/out.npy", str(sigma / scale), str(length)]
        subprocess.run([str(python), "-c", BM3D, *given], check=True)
        made = torch.from_numpy(np.load(f"{folder}/out.npy")).float().movedim(-1, 1) * scale + low
    return noise.unstabilise(made) if counts else made


def classical(name: str, observation: Observation) -> Tensor:
    if name == "noisy":
        return observation.y
    restorer: Restorer = Bilateral() if name == "bilateral" else NonLocalMeans()
    if isinstance(observation.noise, CorrelatedNoise):
        level = float(observation.noise.variance(observation.y).mean().sqrt())
        observation = Observation(observation.y, Identity(), GaussianNoise(level))
    return one_by_one(serving(restorer, observation.noise), observation)


def with_prior(name: str, observation: Observation, model: Any, seconds: float) -> Tensor:
    if name == "prior":
        return one_by_one(usual_restorer(observation.noise, observation.y[0, 0].numel()), observation, model)
    first = Observation(observation.y[:1], Identity(), observation.noise)

    def restorer(steps: int) -> ScoreDVI:
        return ScoreDVI(steps=steps, tolerance=0.0)

    steps = steps_within(seconds, lambda steps: restorer(steps)(first, model, streams=ImageStreams([0])))
    return one_by_one(restorer(steps), observation, model)


def as_cube(observation: Observation) -> Tensor:
    """Slices ``[N, 1, H, W]`` by HyRes, which sees them together."""
    one = Observation(observation.y.movedim(1, 0), Identity(), observation.noise)
    return HyRes()(one, streams=ImageStreams([0])).x.movedim(1, 0)


def methods(
    arguments: argparse.Namespace, source: str
) -> Iterator[tuple[str, int, Callable[[Observation], Tensor]]]:
    """Name, number of pictures, and what denoises them."""
    is_volume, seconds = source in VOLUMES, arguments.seconds
    few = SLICES if is_volume else min(arguments.counts)
    known: dict[str, Callable[[Observation], Tensor]] = {
        name: partial(classical, name) for name in ("noisy", "bilateral", "non_local_means")
    }
    if arguments.bm3d is not None:
        known["bm3d"] = partial(bm3d, arguments.bm3d)
    known |= {name: partial(fitted, name, seconds=seconds) for name in FITTED}
    model = prior.load()
    known |= {name: partial(with_prior, name, model=model, seconds=seconds) for name in ("prior", "scoredvi")}
    for name, work in known.items():
        if not is_volume or name in OF_SLICES:
            yield name, few, work
    if is_volume:
        yield "hyres", few, as_cube
    for name in ("noise2score", "unet3d") if is_volume else TRAINED:
        for count in [few] if is_volume else arguments.counts:
            yield name, count, partial(trained, name, seconds=seconds)


def measure(
    clean: Tensor, noise: NoiseModel, work: Callable[[Observation], Tensor], few: int, *, is_noisy: bool
) -> dict[str, Any]:
    """Quality on the first ``few`` pictures, which all methods have, and processor seconds for each picture."""
    noisy = Observation.simulate(clean, Identity(), noise, ImageStreams(range(len(clean)), "noise"))
    started = _processor_seconds()
    observation = noisy if is_noisy else without_lines(noisy)
    x = work(observation)
    seconds = (_processor_seconds() - started) / len(clean)
    if not x.isfinite().all():
        return {"psnr": math.nan, "ssim": math.nan, "seconds": seconds}
    return {**quality(x[:few], clean[:few]), "seconds": seconds}


def _processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def of_volumes(rows: list[dict[str, Any]]) -> str:
    """PSNR / SSIM of each method on volume and cube, and seconds."""
    lines = [
        f"| method | sees | {' | '.join(VOLUMES.values())} | s a slice |",
        "| --- " * (len(VOLUMES) + 3) + "|",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        found = {row["set"]: row for row in rows if row["method"] == name}
        cells = [f"{found[k]['psnr']:.2f} / {found[k]['ssim']:.3f}" if k in found else "-" for k in VOLUMES]
        sees = "slices" if name in OF_SLICES else "all slices"
        seconds = np.mean([row["seconds"] for row in found.values()])
        lines.append(f"| {name} | {sees} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """PSNR / SSIM of each method, a column for each set and noise."""
    columns = sorted(
        {(row["set"], row["noise"]) for row in rows}, key=lambda c: (c[0], list(NOISES).index(c[1]))
    )
    names = list(dict.fromkeys((row["method"], row["pictures"]) for row in rows))
    lines = [
        "| method | pictures | " + " | ".join(f"{s}, {IN_WORDS[n]}" for s, n in columns) + " | s a picture |"
    ]
    lines.append("| --- " * (len(columns) + 3) + "|")
    for method, count in names:
        cells, seconds = [], []
        for column in columns:
            found = [
                r
                for r in rows
                if (r["method"], r["pictures"], (r["set"], r["noise"])) == (method, count, column)
            ]
            cells.append(f"{found[0]['psnr']:.2f} / {found[0]['ssim']:.3f}" if found else "-")
            seconds += [r["seconds"] for r in found]
        learned = count if method in TRAINED else ""
        lines.append(f"| {method} | {learned} | " + " | ".join(cells) + f" | {np.mean(seconds):.1f} |")
    pays = []
    for column in columns:
        here = [r for r in rows if (r["set"], r["noise"]) == column]
        best = max((r["psnr"] for r in here if r["method"] in FITTED), default=math.inf)
        enough = [r["pictures"] for r in here if r["method"] in TRAINED and r["psnr"] > best]
        most = max((r["pictures"] for r in here if r["method"] in TRAINED), default=0)
        pays.append(str(min(enough)) if enough else f"more than {most}" if most else "-")
    return "\n".join([*lines, "| training pays from | | " + " | ".join(pays) + " | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kodak", type=Path, help="folder of the Kodak images")
    parser.add_argument("--cifar10", type=Path, help="folder with CIFAR-10's test_batch.bin")
    parser.add_argument("--imageio", type=Path, help="wheel of imageio 2.9.0, with a CT volume")
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    parser.add_argument("--only", nargs="+", help="methods to measure, all by default")
    parser.add_argument("--seconds", type=float, default=3.0, help="of processor time for each picture")
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[4, 16], help="numbers of pictures to train on"
    )
    parser.add_argument("--side", type=int, default=64, help="of Kodak's squares in pixels")
    parser.add_argument("--bm3d", type=Path, help="a Python that has the package bm3d")
    parser.add_argument(
        "--json", type=Path, default=RESULT, help=f"rows, read and added to (default {RESULT})"
    )
    parser.add_argument("--page", action="store_true", help="write the table into docs/self_supervised.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"seconds": arguments.seconds, "side": arguments.side}
    stored = read_json(arguments.json) if arguments.json.exists() else {"rows": []}
    if stored["rows"] and stored["settings"] != settings:
        sys.exit(
            f"error: {arguments.json} was measured with {stored['settings']}: give these, or another --json"
        )
    rows = stored["rows"]
    done = {(row["set"], row["noise"], row["method"], row["pictures"]) for row in rows}
    sources = {"kodak": arguments.kodak, "cifar10": arguments.cifar10, "volume": arguments.imageio}
    sources["cube"] = arguments.kodak
    for source, place in sources.items():
        noises = [n for n in arguments.noises if source not in VOLUMES or n == "gaussian"]
        for noise in noises if place is not None else ():
            for name, count, work in methods(arguments, source):
                key = (source, noise, name, count)
                if key in done or (arguments.only and name not in arguments.only):
                    continue
                if source in VOLUMES:
                    clean = slices(place) if source == "volume" else bands(place, arguments.side)
                else:
                    clean = pictures(source, place, count, arguments.side)
                row = dict(zip(("set", "noise", "method", "pictures"), key, strict=True))
                few = SLICES if source in VOLUMES else min(arguments.counts)
                try:
                    rows.append({**row, **measure(clean, NOISES[noise], work, few, is_noisy=name == "noisy")})
                except subprocess.CalledProcessError as error:
                    print(f"{name} failed on {source}, {noise}: exit code {error.returncode}", flush=True)
                    continue
                except ValueError as error:  # a method that is not for this noise
                    print(f"{name} refuses {source}, {noise}: {error}", flush=True)
                    continue
                print(json.dumps(rows[-1]), flush=True)
                content = {"machine": describe_machine(), "settings": settings, "rows": rows}
                write_json(arguments.json, content)
    volumes = of_volumes([row for row in rows if row["set"] in VOLUMES])
    made = table([row for row in rows if row["set"] not in VOLUMES])
    print(f"{made}\n\n{volumes}")
    if arguments.page:
        head = f"{arguments.seconds:g} s of one thread for each picture, squares of {arguments.side} pixels; PSNR / SSIM."
        write_table(PAGE, "self_supervised", f"{head}\n\n{made}")
        write_table(PAGE, "self_supervised.volumes", volumes)


if __name__ == "__main__":
    main()
