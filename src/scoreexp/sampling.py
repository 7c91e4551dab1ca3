"""Draw pictures from a trained model: a seed names a picture, whatever the batch it is drawn in."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from scoreexp.build import load
from scoreexp.data.image_io import write_image
from scoreexp.data.ranges import to_unit
from scoreexp.devices import choose_device
from scoreexp.errors import UserError
from scoreexp.figures import image_grid
from scoreexp.run_directory import git_revision, shown, write_json
from scoreexp.samplers import start_from_prior
from scoreexp.streams import ImageStreams


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` pictures, see ``conf/sample.yaml``; returns the folder with the PNGs, a grid and ``meta.json``."""
    seeds = _seeds(cfg)
    device = choose_device(cfg.device)
    model = load(cfg.ckpt, weights=cfg.weights, device=str(device))
    shape = model.event_shape
    if shape is None or len(shape) != 3:
        raise UserError(f"{cfg.ckpt} models samples of shape {shape}, not pictures: give another checkpoint")
    classes = model.record["num_classes"]
    if cfg.label is not None and (classes is None or not 0 <= cfg.label < classes):
        allowed = "none: the model has no classes" if classes is None else f"0 to {classes - 1}"
        raise UserError(f"label={cfg.label}: allowed is {allowed}")
    sampler = instantiate(cfg.sampler)
    folder = _folder(cfg)
    started = time.perf_counter()
    batches = [seeds[i : i + cfg.batch_size] for i in range(0, len(seeds), cfg.batch_size)]
    pictures = []
    for batch in track(batches, "sampling", console=Console(stderr=True), disable=len(batches) < 2):
        streams = ImageStreams(batch)
        cond = None if cfg.label is None else torch.full((len(batch),), cfg.label, device=device)
        start = start_from_prior(model, shape, streams, device=device)
        result = sampler(model, start, streams=streams, cond=cond)
        pictures.append(to_unit(result.x).clamp(0, 1).cpu())
    images = torch.cat(pictures)
    for seed, image in zip(seeds, images, strict=True):
        write_image(folder / f"seed_{seed:06d}.png", np.moveaxis(image.numpy(), 0, -1))
    image_grid(images[:64], folder / "grid.png")
    meta: dict[str, Any] = {
        "checkpoint": str(cfg.ckpt),
        "weights": cfg.weights,
        "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
        "seeds": seeds,
        "label": cfg.label,
        "nfe_per_picture": result.nfe,
        "seconds": round(time.perf_counter() - started, 3),
        "revision": git_revision(),
        "torch": torch.__version__,
        "device": str(device),
    }
    write_json(folder / "meta.json", meta)
    warning = _degenerate(images)
    if warning:
        print(f"warning: {warning}", flush=True)
    print(f"pictures       {shown(folder)} ({len(images)} PNGs, {result.nfe} network evaluations each)")
    print(f"grid           {shown(folder / 'grid.png')}")
    print(
        "try next       another sampler (sampler=ddpm), more steps (sampler.grid.steps=100), other pictures (seeds=100)",
        flush=True,
    )
    return folder


def _seeds(cfg: DictConfig) -> list[int]:
    if cfg.seeds is None:
        return list(range(cfg.n))
    if isinstance(cfg.seeds, int):
        return list(range(cfg.seeds, cfg.seeds + cfg.n))
    return [int(seed) for seed in cfg.seeds]


def _folder(cfg: DictConfig) -> Path:
    """A folder of this draw's own, made whole here so that a wrong path fails before the drawing."""
    if cfg.out is not None:
        folder = Path(cfg.out).expanduser()
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"out={cfg.out} is not empty: give a new folder")
    else:
        run = Path(cfg.ckpt).expanduser().resolve().parent.parent
        folder = run / "samples" / time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out={folder} cannot be written to ({error.strerror}): give another with out=DIR"
        ) from error
    return folder


def _degenerate(images: torch.Tensor) -> str | None:
    """A remark on pictures that hold nothing, or None."""
    if float(images.std(dim=(1, 2, 3)).mean()) < 0.01:
        return "the pictures are of one colour: the model is probably not trained yet"
    if float(((images <= 0.002) | (images >= 0.998)).float().mean()) > 0.7:
        return "most pixels are black or white: the sampler diverged or the model is not trained yet"
    shifted = images[..., :-1] - images[..., 1:]
    if float(shifted.var() / (2 * images.var())) > 0.9:
        return "the pictures are still white noise: the model is not trained yet"
    return None
