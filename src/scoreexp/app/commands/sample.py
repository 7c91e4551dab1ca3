"""Draw images or points from a trained model: a seed names a sample, whatever the batch it is drawn in."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from scoreexp.app.early_checks import seeds_of
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_settings import guided
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import to_unit
from scoreexp.data.image_io import write_image
from scoreexp.denoisers import DenoiserBase
from scoreexp.figures.images import image_grid
from scoreexp.figures.points import scatter
from scoreexp.runs.directory import git_revision, home_of, own_folder, shown
from scoreexp.runs.model import load
from scoreexp.runs.solvers import StoredSolver, solver_beside
from scoreexp.samplers import Auto, Sampler, draw, labels_for
from scoreexp.system.atomic import atomic_write
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json

SHOWN = 64  # images in the overview


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, see ``conf/sample.yaml``; returns the folder that holds them and ``meta.json``.

    Images become one PNG each and a grid, points a table (``points.npz`` and ``points.csv``) and a scatter plot.
    """
    seeds = seeds_of(cfg.n, cfg.seeds)
    device = choose_device(cfg.device)
    model = guided(load(cfg.ckpt, weights=cfg.weights, device=str(device), trust=tuple(cfg.trust)), cfg)
    labels_for([], model.record, cfg.label)
    shape = model.event_shape
    if kind_of(shape) is None:
        raise UserError(
            f"{cfg.ckpt} models samples of shape {shape}, neither images nor points: give another checkpoint"
        )
    sampler: Sampler = instantiate(cfg.sampler)
    with own_folder(cfg.out, home_of(cfg.ckpt) / "samples") as folder:
        solver = None
        if isinstance(sampler, Auto):
            settings = {"weights": cfg.weights, "guidance": _plain(cfg.get("guidance"))}
            solver = solver_beside(cfg.ckpt, model, sampler, label=cfg.label, settings=settings)
            print(f"solver         {shown(solver.path)} ({solver.said})", flush=True)
        _draw_into(folder, model, sampler, solver, seeds, cfg, device)
    return folder


def _plain(node: DictConfig | None) -> Any:
    return OmegaConf.to_container(node, resolve=True) if node else None


def _draw_into(
    folder: Path,
    model: DenoiserBase,
    sampler: Sampler,
    solver: StoredSolver | None,
    seeds: list[int],
    cfg: DictConfig,
    device: torch.device,
) -> None:
    started = time.perf_counter()
    shape = model.event_shape or ()
    batches = [seeds[i : i + cfg.batch_size] for i in range(0, len(seeds), cfg.batch_size)]
    drawn = []
    with StepProgress("sampling", len(batches)) as progress:
        for done, batch in enumerate(batches):
            progress.part_done(done, len(batches))
            cond = labels_for(batch, model.record, cfg.label, device=device)
            result = draw(
                model,
                solver.sampler if solver else sampler,
                batch,
                cond=cond,
                device=device,
                callback=progress.step,
            )
            drawn.append(result.x.cpu())
    samples = torch.cat(drawn)
    are_images = isinstance(kind_of(shape), Images)
    what, overview, warning = (_write_pictures if are_images else _write_points)(folder, seeds, samples)
    meta: dict[str, Any] = {
        "checkpoint": str(cfg.ckpt),
        "weights": cfg.weights,
        "sampler": _plain(cfg.sampler),
        "solver": _of_solver(solver, sampler) if solver else None,
        "guidance": _plain(cfg.get("guidance")),
        "seeds": seeds,
        "label": cfg.label,
        "nfe_per_sample": result.nfe,
        "seconds": round(time.perf_counter() - started, 3),
        "revision": git_revision(),
        "torch": torch.__version__,
        "device": str(device),
    }
    write_json(folder / "meta.json", meta)
    if (classes := model.record.get("num_classes")) is not None and cfg.label is None:
        print(f"labels         seed mod {classes}, one class after another (label=K for one)")
    if warning:
        print(f"warning: {warning}", flush=True)
    print(f"{what:<14} {shown(folder)} ({len(samples)}, {result.nfe} network evaluations each)")
    if overview is not None:
        part = f" (the first {SHOWN} of {len(samples)})" if are_images and len(samples) > SHOWN else ""
        print(f"overview       {shown(overview)}{part}")
    other = ["other samples (seeds=100)"] if cfg.seeds is None else []
    steps = f"sampler.steps={2 * sampler.steps}" if isinstance(sampler, Auto) else "sampler.grid.steps=100"
    # a generator has its own sampler and steps
    others = [] if model.latent_channels else ["another sampler (sampler=heun)", f"more steps ({steps})"]
    if others + other:
        print(f"try next       {', '.join(others + other)}", flush=True)


def _of_solver(solver: StoredSolver, auto: Sampler) -> dict[str, Any]:
    taken = "fitted" if solver.sampler is not auto else "without a fit"
    return {"path": str(solver.path), "taken": taken, "error": solver.error}


def _write_pictures(folder: Path, seeds: list[int], samples: Tensor) -> tuple[str, Path | None, str | None]:
    """One PNG per seed and a grid; returns what was written, the overview and a warning."""
    images = to_unit(samples).clamp(0, 1)
    for seed, image in zip(seeds, images, strict=True):
        write_image(folder / f"seed_{seed:06d}.png", np.moveaxis(image.numpy(), 0, -1))
    image_grid(images[:SHOWN], folder / "grid.png")
    return "images", folder / "grid.png", _degenerate(images)


def _write_points(folder: Path, seeds: list[int], samples: Tensor) -> tuple[str, Path | None, str | None]:
    """A row per seed, as NPZ and CSV, and a scatter plot of points in the plane; returns as ``_write_pictures``."""
    points = samples.numpy()
    with atomic_write(folder / "points.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, seeds=np.asarray(seeds), points=points)
    with atomic_write(folder / "points.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["seed", *(f"x{i}" for i in range(points.shape[1]))])
        table.writerows([seed, *row] for seed, row in zip(seeds, points.tolist(), strict=True))
    overview = None
    if points.shape[1] == 2:
        overview = folder / "points.png"
        scatter(samples, overview, title=f"{len(points)} samples")
    at_one_place = len(points) > 1 and float(points.std(axis=0).max()) < 1e-3
    return (
        "points",
        overview,
        "the points are all at one place: is the model trained?" if at_one_place else None,
    )


def _degenerate(images: torch.Tensor) -> str | None:
    """A remark on images that hold nothing, or None."""
    if float(images.std(dim=(1, 2, 3)).mean()) < 0.01:
        return "the images are of one colour: the model is probably not trained yet"
    if float(((images <= 0.002) | (images >= 0.998)).float().mean()) > 0.7:
        return "most pixels are black or white: the sampler diverged or the model is not trained yet"
    shifted = images[..., :-1] - images[..., 1:]
    if float(shifted.var() / (2 * images.var())) > 0.9:
        return "the images are still white noise: the model is not trained yet"
    return None
