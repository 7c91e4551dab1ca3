"""The pictures of docs/gallery.md and the table of the README: ``python -m benchmarks.gallery [NAME ...]``

One picture for each family of methods, from the bundled prior, scikit-image's photographs, exact distributions and the
results in ``benchmarks/results``; all of them without a name. Two small networks are trained, a minute each, unless
``outputs`` holds a run of ``experiment=swiss_roll_vp`` and the network of an earlier call. About 4 minutes of one core.

Photographs: grace_hopper of matplotlib's sample data (U.S. Navy, public domain), and of scikit-image's camera (Lav
Varshney, CC0), coins (Brooklyn Museum, no known copyright restrictions) and hubble_deep_field (NASA, public domain). None of
them is among the bundled prior's.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from matplotlib.figure import Figure
from skimage import data
from skimage.transform import iradon
from torch import Tensor

import scoreexp as se
from benchmarks import embedding_figures
from benchmarks.pages import FIGURES, shrink, write_table
from scoreexp import prior
from scoreexp.core.ranges import to_model, to_uint8, to_unit
from scoreexp.core.streams import ImageStreams, generator
from scoreexp.data import SwissRoll
from scoreexp.data.image_io import read_image
from scoreexp.denoisers import ConditionalOracle, OracleDenoiser
from scoreexp.diagnostics.fields import denoised as posterior_mean
from scoreexp.diagnostics.jacobian import jacobian_spectrum
from scoreexp.figures.images import COLOURS, LINES, comparison, save_figure
from scoreexp.lit.ema import EMA
from scoreexp.metrics import psnr, sliced_wasserstein
from scoreexp.observations import Observation
from scoreexp.samplers import draw

ROOT = Path(__file__).parents[1]
RESULTS, OUTPUTS = ROOT / "benchmarks" / "results", ROOT / "outputs"
README = ROOT / "README.md"
GRAY, SEED = "0.6", 0
WHITE = {"fc": "white", "ec": "none", "pad": 1}  # behind letters


PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "portrait": lambda: read_image(Path(get_data_path(), "sample_data", "grace_hopper.jpg")).pixels,
    "camera": lambda: data.camera() / np.float32(255),
    "coins": lambda: data.coins() / np.float32(255),
    "hubble": lambda: data.hubble_deep_field() / np.float32(255),
}


def photograph(name: str, top: int, left: int, height: int, width: int, reduction: int = 1) -> np.ndarray:
    """A part of one, ``[H, W, C]`` in [0, 1]; means of ``reduction`` x ``reduction`` pixels."""
    whole = np.atleast_3d(PHOTOGRAPHS[name]())
    cut = whole[top : top + height * reduction, left : left + width * reduction]
    return cut.reshape(height, reduction, width, reduction, -1).mean((1, 3))


def as_model(pixels: np.ndarray) -> Tensor:
    """``[1, C, H, W]`` in [-1, 1]."""
    return to_model(torch.from_numpy(pixels).movedim(-1, 0)[None].float())


def as_pixels(x: Tensor) -> np.ndarray:
    """``[H, W, C]`` of ``[1, C, H, W]`` in [-1, 1]."""
    return to_unit(x[0].float()).clamp(0, 1).movedim(0, -1).numpy()


def decibel(pixels: np.ndarray, clean: np.ndarray) -> str:
    a, b = (torch.from_numpy(p.clip(0, 1)).movedim(-1, 0)[None].double() for p in (pixels, clean))
    return f"{float(psnr(a, b)):.1f} dB"


def denoised(path: Path) -> None:
    """A photograph with the noise of few photons, 8 bits, denoised with nothing given."""
    clean = photograph("portrait", 0, 0, 600, 512)
    noise = se.observations.PoissonGaussianNoise(peak=40.0, sigma=0.04)
    y = Observation.simulate(as_model(clean), se.observations.Identity(), noise, ImageStreams([SEED])).y
    noisy = to_uint8(np.ascontiguousarray(as_pixels(y)))
    result = se.denoise(noisy, say=print) / np.float32(255)
    cut = (slice(70, 286), slice(150, 366))
    y, x, truth = noisy[cut] / np.float32(255), result[cut], clean[cut]
    titles = [f"noisy, {decibel(y, truth)}", f"denoised, {decibel(x, truth)}", "what was removed", "clean"]
    comparison([y, x, 0.5 + y - x, truth], titles, path, side=216)


def restored(path: Path) -> None:
    """Three damages of three photographs, each undone by the restorer that the command chooses."""
    operators = {
        "70 % missing": se.observations.RandomMask(hole=0.7, size=160, seed=0),
        "blurred": se.observations.GaussianBlur(2.0, size=160),
        "reduced by 4": se.observations.SuperResolution(factor=4, size=160),
    }
    photographs = [
        photograph("portrait", 100, 185, 160, 160),
        photograph("camera", 60, 130, 160, 160),
        photograph("coins", 0, 0, 160, 160),
    ]
    model, pictures, titles = prior.load(), [], []
    for (name, operator), clean in zip(operators.items(), photographs, strict=True):
        x = as_model(clean)
        if clean.shape[2] == 1:
            x = x.expand(-1, 3, -1, -1)
        observation = Observation.simulate(
            x, operator, se.observations.GaussianNoise(0.04), ImageStreams([SEED])
        )
        found = as_pixels(se.restore(observation, model, seeds=[SEED]).x)
        seen = observation.y
        if isinstance(operator, se.observations.RandomMask):
            seen = operator.adjoint(seen + 1) - 1  # holes are black
        seen = as_pixels(seen)
        truth = as_pixels(x)
        pictures += [seen, found, truth]
        titles += [name, f"restored, {decibel(found, truth)}", "original"]
    comparison(pictures, titles, path, columns=3, side=160)


def embedding(path: Path) -> None:
    """The score field of a photograph in its plane, and the photograph moved along it."""
    embedding_figures.draw("spectral")
    for name in ("score_field_spectral", "embedded_spectral"):
        shrink(FIGURES / f"{name}.png")


def samplers(path: Path) -> None:
    """Points of the Swiss Roll by the exact score, for samplers and numbers of evaluations."""
    oracle = SwissRoll().oracle()
    model, exact = OracleDenoiser(oracle, se.schedules.VP()), oracle.sample(800, generator(SEED, "gallery"))
    made: dict[str, Callable[[int], Any]] = {
        "DDIM": lambda n: se.samplers.DDIM(se.samplers.KarrasGrid(n)),
        "Heun": lambda n: se.samplers.Heun(se.samplers.KarrasGrid((n + 1) // 2)),
        "DPM-Solver++(2M)": lambda n: se.samplers.DPMSolverPP(se.samplers.KarrasGrid(n)),
    }
    counts = (5, 9, 15, 25)
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    axes = figure.subplots(len(made), len(counts))
    for row, (name, sampler) in zip(axes, made.items(), strict=True):
        for axis, count in zip(row, counts, strict=True):
            result = draw(model, sampler(count), range(len(exact)))
            away = float(sliced_wasserstein(result.x.double(), exact, projections=512))
            axis.scatter(*exact.T, s=1, color="0.85", lw=0)
            axis.scatter(*result.x.T, s=2, color=COLOURS[0], lw=0)
            axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
            axis.text(-1.08, -1.05, f"distance {away:.2f}", fontsize=9, bbox=WHITE)
            if name == "DDIM":
                axis.set_title(f"{result.nfe} evaluations", fontsize=11)
        row[0].set_ylabel(name, fontsize=11)
    save_figure(figure, path, dpi=90)


def guidance(path: Path) -> None:
    """Three classes that overlap, and samples of one of them with growing weight of the guidance."""
    turn = torch.arange(3) * 2 * torch.pi / 3
    arm = torch.linspace(0.15, 1.6, 12, dtype=torch.float64)
    classes = []
    for start in turn:
        angle = start + 0.9 * arm
        means = torch.stack([arm * angle.cos(), arm * angle.sin()], 1)
        classes.append(se.oracles.GaussianMixture(torch.ones(12), means, 0.01 + 0.02 * arm))
    model = ConditionalOracle(classes, [1, 1, 1], se.schedules.VP())
    n, cond = 600, torch.zeros(600, dtype=torch.long)
    grid = torch.linspace(-2.4, 2.4, 160, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid)
    one, zero = torch.ones(len(u), dtype=torch.float64), torch.zeros(len(u), dtype=torch.float64)
    density = [oracle.log_prob(u, one, zero).reshape(160, 160).T for oracle in classes]
    figure = Figure(figsize=(9.6, 3.5), layout="constrained")
    for axis, weight in zip(figure.subplots(1, 3), (1.0, 2.0, 5.0), strict=True):
        guided = se.guidance.ClassifierFree(model, weight=weight)
        x = draw(guided, se.samplers.Heun(se.samplers.KarrasGrid(30)), range(n), cond=cond).x
        for k, values in enumerate(density):
            levels = [float(values.max()) - drop for drop in (4.0, 2.0)]
            axis.contour(
                grid,
                grid,
                values,
                levels,
                colors=[COLOURS[0] if k == 0 else GRAY],
                linestyles="-",
                linewidths=0.9,
            )
        axis.scatter(*x.T, s=4, color=COLOURS[1], lw=0)
        axis.set(xlim=(-2.0, 2.0), ylim=(-1.65, 2.4), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"weight {weight:g}", fontsize=11)
    save_figure(figure, path)


def swiss_roll(path: Path) -> None:
    """The figure that a run of ``experiment=swiss_roll_vp`` draws."""
    from hydra import compose, initialize_config_dir

    from scoreexp.app.commands.train import train
    from scoreexp.app.conf_dir import conf_dir

    found = [
        folder
        for folder in (file.parent for file in OUTPUTS.rglob("metrics.json"))
        if (folder / "pictures" / "swiss_roll.png").exists()
        and "name: swiss_roll_vp" in (folder / "config.yaml").read_text()
        and json.loads((folder / "metrics.json").read_text())["step"] >= 1000
    ]
    run = OUTPUTS / "gallery" / "swiss_roll"
    if found:
        run = max(found, key=lambda folder: (folder / "metrics.json").stat().st_mtime)
    else:
        words = [
            "experiment=swiss_roll_vp",
            "trainer.max_steps=1000",
            "trainer.val_check_interval=1000",
            f"run_dir={run}",
        ]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            train(compose("train", words))
    shutil.copyfile(run / "pictures" / "swiss_roll.png", path)


def stars(path: Path) -> None:
    """Star fields drawn by a network that was trained for a minute on parts of one photograph."""
    whole = torch.from_numpy(photograph("hubble", 0, 0, 436, 500, reduction=2)).movedim(-1, 0)
    places = torch.rand(3000, 2, generator=generator(SEED, "gallery"))
    corners = (places * torch.tensor([436 - 31, 500 - 31])).int().tolist()
    x = torch.stack([whole[:, i : i + 32, j : j + 32].rot90(i + j, (1, 2)) for i, j in corners])
    mean, scale = x.mean(), 2 * x.std()
    torch.manual_seed(SEED)
    network = se.networks.UNet(
        event_shape=(3, 32, 32), channels=12, blocks=1, multipliers=(1, 2, 2), attention_resolutions=()
    )
    denoiser = se.denoisers.Denoiser(network, se.denoisers.EDMPrediction(), se.schedules.VP())
    weights = OUTPUTS / "gallery" / "stars.pt"
    if weights.exists():
        denoiser.load_state_dict(torch.load(weights, weights_only=True))
        denoiser.event_shape = (3, 32, 32)
        model = denoiser.eval()
    else:
        model = se.train(
            denoiser,
            (x - mean) / scale,
            steps=700,
            batch_size=32,
            ema=EMA(decay=0.995),
            optimizer=lambda weights: torch.optim.Adam(weights, lr=2e-3),
        )
        weights.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), weights)
    drawn = draw(model, se.samplers.Heun(se.samplers.KarrasGrid(20)), range(24)).x * scale + mean
    nearest = torch.cdist(drawn.flatten(1), x.flatten(1)).min(1).values
    between = torch.cdist(x[:24].flatten(1), x.flatten(1)).topk(2, largest=False).values[:, 1]
    print(
        f"distance to the nearest part: {nearest.median():.2f}; of parts to each other: {between.median():.2f}"
    )
    pictures = [one.clamp(0, 1).movedim(0, -1).numpy() for one in drawn]
    comparison(pictures, [""] * len(pictures), path, columns=8, side=96)


def rivals(path: Path) -> None:
    """Error of the score and distance of the samples for training objectives, from the stored study."""
    from benchmarks.study_rivals_points import RIVALS

    found = json.loads((RESULTS / "rivals_points.json").read_text())
    shown = [
        name
        for name in (
            "eps",
            "edm",
            "stable_target",
            "flow",
            "flow_levels",
            "consistency",
            "consistency_tuning",
        )
        if any(row["rival"] == name for row in found["rows"])
    ]
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, key, label in (
        (left, "score_error", "relative squared error of the score"),
        (right, "sliced_wasserstein", "sliced Wasserstein distance"),
    ):
        axis.set_prop_cycle(**LINES)
        for name in shown:
            rows = [row for row in found["rows"] if row["rival"] == name]
            keys = list(rows[0].get(key) or {})
            values = [np.mean([row[key][at] for row in rows]) for at in keys]
            axis.loglog(
                [float(at) for at in keys], values, marker="o", ms=3, lw=1.3, label=RIVALS[name].label
            )
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
    left.set(xlabel="noise level sigma / alpha")
    right.set(xlabel="network evaluations")
    right.axhline(found["rows"][0]["floor"], color=GRAY, lw=1, ls=":", label="two exact sets")
    ticks = [float(at) for at in found["rows"][0]["sliced_wasserstein"]]
    right.set_xticks(ticks, [f"{at:g}" for at in ticks])
    right.minorticks_off()
    right.set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    seeds = len({row["seed"] for row in found["rows"]})
    figure.suptitle(
        f"{found['seconds']:g} CPU seconds of training, {seeds} seed{'s' * (seeds > 1)}", fontsize=10
    )
    save_figure(figure, path)


def directions(path: Path) -> None:
    """What the bundled prior keeps of a noisy photograph: the directions of the largest eigenvalues of its Jacobian."""
    model, level = prior.load(), 0.4
    x = as_model(photograph("camera", 50, 120, 64, 64, reduction=3).repeat(3, 2))
    u = x + level * ImageStreams([SEED]).normal(x)
    with torch.no_grad():
        clean = posterior_mean(model, u, level)
    found = jacobian_spectrum(model, u, level, k=6, iterations=8, seed=SEED)
    pictures, titles = [as_pixels(u), as_pixels(clean)], ["noisy", "denoised"]
    for value, vector in zip(found.eigenvalues[0], found.eigenvectors[0], strict=True):
        gray = vector.mean(0)
        pictures.append((0.5 + 0.5 * gray / gray.abs().max())[..., None].numpy())
        titles.append(f"eigenvalue {float(value):.2f}")
    comparison(pictures, titles, path, columns=4, side=192)


def self_supervised(path: Path) -> None:
    """One noisy picture denoised without a clean one, beside the prior."""
    clean = photograph("coins", 20, 75, 120, 120)
    noise = se.observations.GaussianNoise(2 * 25 / 255)
    y = Observation.simulate(as_model(clean), se.observations.Identity(), noise, ImageStreams([SEED])).y
    noisy = to_unit(y[0]).movedim(0, -1).numpy()
    made: dict[str, Any] = {
        "zs_n2n": se.restorers.ZSN2N(steps=400),
        "filter2noise": se.restorers.Filter2Noise(),
        "bundled prior": None,
    }
    pictures, titles = [noisy], [f"noisy\n{decibel(noisy, clean)}"]
    for name, restorer in made.items():
        result = se.denoise(noisy, sigma=25 / 255, restorer=restorer)
        pictures.append(result)
        titles.append(f"{name}\n{decibel(result, clean)}")
    comparison([*pictures, clean], [*titles, "clean"], path, side=120)


def tomography(path: Path) -> None:
    """A phantom from few projections: filtered back-projection, and the bundled prior with the same data."""
    phantom = torch.from_numpy(data.shepp_logan_phantom())[None, None].float()
    x = F.interpolate(phantom, (128, 128), mode="area")
    operator, noise = se.observations.Radon(128, angles=30), se.observations.GaussianNoise(1.0)
    observation = Observation.simulate(to_model(x), operator, noise, ImageStreams([SEED]))
    sinogram = (observation.y + operator(torch.ones_like(x))) / 2  # of the picture in [0, 1]
    angles = np.arange(30) * 180 / 30
    back = iradon(sinogram[0, 0].numpy().T, theta=angles, circle=False, output_size=128)[..., None]
    restored = se.restore(observation, prior.load(), seeds=[SEED])
    found, truth = as_pixels(restored.x), x[0].movedim(0, -1).numpy()
    shown = F.interpolate(sinogram, (128, 128), mode="nearest")[0].movedim(0, -1).numpy()
    titles = [
        "30 projections",
        f"filtered back-projection\n{decibel(back, truth)}",
        f"with the prior\n{decibel(found, truth)}",
        "phantom",
    ]
    comparison([shown / shown.max(), back, found, truth], titles, path, side=256)


def spectra(path: Path) -> None:
    """A cube of 31 bands, made of a photograph by three spectra, with noise and denoised by HyRes."""
    colours = photograph("portrait", 16, 100, 160, 160, reduction=2)
    band = np.linspace(0, 1, 31)
    spectrum = np.stack([np.exp(-(((band - middle) / 0.22) ** 2)) for middle in (0.8, 0.5, 0.2)])
    cube = (colours @ spectrum / spectrum.sum(0).max()).astype(np.float32)
    x = as_model(cube)
    noise = se.observations.GaussianNoise(0.3)
    observation = Observation.simulate(x, se.observations.Identity(), noise, ImageStreams([SEED]))
    found = se.restore(observation, None, se.restorers.HyRes()).x
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.35))
    states = {"noisy": to_unit(observation.y)[0], "denoised": to_unit(found)[0], "clean": to_unit(x)[0]}
    row, column = 100, 95
    for axis, (name, state) in zip(axes, states.items(), strict=False):
        axis.imshow(state[[25, 15, 5]].clamp(0, 1).movedim(0, -1).numpy(), interpolation="nearest")
        axis.plot(column, row, "o", ms=9, mfc="none", mec="white", mew=1.5)
        axis.set_title(f"{name}: 3 of 31 bands", fontsize=10)
        axis.set_axis_off()
    for (name, state), colour in zip(states.items(), (GRAY, COLOURS[1], COLOURS[0]), strict=True):
        axes[3].plot(np.arange(1, 32), state[:, row, column], color=colour, lw=1.6, label=name)
    axes[3].set(xlabel="band", ylabel="value", title="spectrum of the marked pixel")
    axes[3].title.set_fontsize(10)
    axes[3].grid(alpha=0.3)
    axes[3].legend(fontsize=8)
    save_figure(figure, path)


PICTURES: dict[str, Callable[[Path], None]] = {
    "denoised": denoised,
    "restored": restored,
    "stars": stars,
    "embedding": embedding,
    "samplers_points": samplers,
    "guidance": guidance,
    "swiss_roll": swiss_roll,
    "rivals": rivals,
    "directions": directions,
    "self_supervised": self_supervised,
    "tomography": tomography,
    "spectra": spectra,
}


def table() -> str:
    """Markdown: PSNR of restorers under noises of which nothing is given, from the stored study."""
    found = json.loads((RESULTS / "denoise_misspecified.json").read_text())
    chosen = {
        "Gaussian, sigma 25/255": "Gaussian, sigma 25",
        "Poisson, peak 4": "photons, 4 at white",
        "Gamma, 8 looks": "speckle, 8 looks",
        "correlated, sigma 25/255, length 0.7": "correlated, sigma 25",
    }
    rows = {row["noise"]: row for row in found["rows"]}
    missing = [name for name in chosen if name not in rows]
    if missing:
        raise SystemExit(f"error: denoise_misspecified.json lacks {missing}: have {list(rows)}")
    lines = [
        "| PSNR, dB | " + " | ".join(chosen.values()) + " |",
        "| --- |" + " ---: |" * len(chosen),
        "| noisy | " + " | ".join(f"{rows[name]['noisy']:.2f}" for name in chosen) + " |",
    ]
    methods = {"usual": "**the default**", "posterior_mean": "`restorer=posterior_mean`"}
    methods |= {name: f"`restorer={name}`" for name in ("non_local_means", "tv", "bilateral")}
    for key, label in methods.items():
        values = [rows[name]["psnr"].get(key, {}).get("estimated") for name in chosen]
        lines.append(f"| {label} | " + " | ".join("–" if v is None else f"{v:.2f}" for v in values) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all by default")
    names = parser.parse_args(arguments).names or [*PICTURES]
    if unknown := sorted(set(names) - set(PICTURES)):
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(PICTURES)}")
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name in names:
        start, path = time.process_time(), FIGURES / f"{name}.png"
        PICTURES[name](path)
        if path.exists():
            shrink(path)
        print(f"{name}: {time.process_time() - start:.1f} CPU seconds", flush=True)
    write_table(README, "methods", table())


if __name__ == "__main__":
    main()
