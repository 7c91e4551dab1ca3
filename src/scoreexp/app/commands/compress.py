"""A trained model in fewer bits, and what that costs."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from scoreexp.app.run_data import data_of_run
from scoreexp.app.run_settings import sampler_settings
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.denoisers import Denoiser
from scoreexp.diagnostics.compression import calibration_set, compression_error, quantise, stored_bytes
from scoreexp.diagnostics.estimates import usable_levels
from scoreexp.diagnostics.forward_finetuning import finetune
from scoreexp.metrics.score_error import LEVELS
from scoreexp.runs.checkpoint_file import write_checkpoint
from scoreexp.runs.directory import shown
from scoreexp.runs.model import load
from scoreexp.samplers import Sampler, draw, labels_for
from scoreexp.system.devices import choose_device
from scoreexp.system.json_files import write_json


def compress(cfg: DictConfig) -> Path:
    """Quantise the model of ``cfg.ckpt``, see ``conf/compress.yaml``; returns the new checkpoint."""
    model = load(cfg.ckpt, weights=cfg.weights, device=str(choose_device(cfg.device)), trust=tuple(cfg.trust))
    node = dict(model.record["config"]["network"])
    if str(node["_target_"]).endswith(".Quantised"):
        raise UserError(f"{cfg.ckpt} is compressed already: give the checkpoint that it was made from")
    out = _out(cfg)
    sampler = instantiate(sampler_settings(cfg, model.record))
    data = _data(cfg, model) if cfg.calibration in ("raw", "forward") else None
    try:
        calibration = calibration_set(
            model, cfg.calibration, sampler=sampler, data=data, n=cfg.n, seed=cfg.seed
        )
        small = quantise(model, node, calibration, bits=cfg.bits, batch=cfg.batch_size)
    except ValueError as error:
        raise UserError(str(error)) from error
    tuned = None
    if cfg.finetune_steps:
        seeds = range(cfg.seed, cfg.seed + cfg.n)
        cond = labels_for(seeds, model.record, device=model.device)
        samples = draw(model, sampler, seeds, cond=cond).x
        tuned = finetune(
            small,
            samples,
            cond,
            teacher=model,
            steps=cfg.finetune_steps,
            batch=cfg.batch_size,
            seed=cfg.seed,
        )
        small = tuned.model
    seeds = range(cfg.seed + cfg.n, cfg.seed + cfg.n + cfg.measured_on)  # not those of the calibration
    cond = labels_for(seeds, model.record, device=model.device)
    (drawn, before), (again, after) = (_timed(one, sampler, seeds, cond) for one in (model, small))
    levels = usable_levels(LEVELS, *model.schedule.sigma_range)
    errors = compression_error(model, small, drawn, levels, seed=cfg.seed)
    sizes = stored_bytes(model), stored_bytes(small)
    kept = {
        key: value.numel() * value.element_size()
        for key, value in small.state_dict().items()
        if value.is_floating_point() and value.ndim > 1
    }
    apart = float((again - drawn).square().mean().sqrt())
    state = {f"denoiser.{key}": value.cpu() for key, value in small.state_dict().items()}
    write_checkpoint({"state_dict": state, "scoreexp": dict(small.record)}, out)
    write_json(
        out.with_suffix(".json"),
        {
            "checkpoint": str(cfg.ckpt),
            "bits": cfg.bits,
            "calibration": cfg.calibration,
            "bytes": {"before": sizes[0], "after": sizes[1]},
            "bytes of arrays that stay as they are": kept,
            "relative squared error of the score": {f"{r:g}": e._asdict() for r, e in errors.items()},
            "rms difference of samples of the same seeds": apart,
            "seconds of these samples": {"before": before, "after": after, "device": str(model.device)},
            "fine-tuning": None
            if tuned is None
            else {"steps": cfg.finetune_steps, "loss before": tuned.before, "loss after": tuned.after},
        },
    )
    if tuned is not None:
        unchanged = "" if tuned.after < tuned.before else ": no better, so the model is as quantised"
        say_labelled("fine-tuning", f"loss {tuned.before:.4g} before, {tuned.after:.4g} after{unchanged}")
    say("noise level    relative squared error of the score, against the model before")
    for level, estimate in errors.items():
        say_labelled(f"{level:g}", f"{estimate.value:.3g} +- {estimate.error:.1g}")
    say_labelled("samples", f"differ by {apart:.3g} rms for the same seeds (units of the model)")
    say_labelled("seconds", f"{after:.3g} for {len(seeds)} samples on {model.device}, {before:.3g} before")
    say_labelled("bytes", f"{sizes[1]} of {sizes[0]} ({sizes[1] / sizes[0]:.3f})")
    if kept:
        say_labelled(
            "as before", f"{', '.join(kept)}: {sum(kept.values())} bytes of constants of the network"
        )
    say_labelled("checkpoint", shown(out))
    return out


def _timed(
    model: Denoiser, sampler: Sampler, seeds: Sequence[int], cond: Tensor | None
) -> tuple[Tensor, float]:
    """Samples, and how long they took."""
    began = time.perf_counter()
    x = draw(model, sampler, seeds, cond=cond).x.cpu()  # waits for the device
    return x.to(model.device), time.perf_counter() - began


def _data(cfg: DictConfig, model: Denoiser) -> Tensor:
    """As many training samples as the calibration takes."""
    data = data_of_run(cfg, model)
    positions = data.train_positions
    chosen = torch.linspace(0, len(positions) - 1, min(cfg.n, len(positions))).round().long().numpy()
    return data.split("train").samples(np.asarray(positions)[chosen])


def _out(cfg: DictConfig) -> Path:
    """The checkpoint to write, which must not be there."""
    given = Path(cfg.ckpt).expanduser()
    out = (
        given.with_name(f"{given.stem}_{cfg.bits}bit.ckpt") if cfg.out is None else Path(cfg.out).expanduser()
    )
    if out.suffix != ".ckpt":
        raise UserError(f"out={cfg.out} is not the name of a checkpoint: end it with .ckpt")
    for path in (out, out.with_suffix(".json")):
        if path.exists():
            raise UserError(f"{path} exists: give another name with out=FILE.ckpt")
    return out
