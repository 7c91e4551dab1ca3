"""A page of findings about one model."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from scoreexp.api.diagnose import diagnose as diagnose_model
from scoreexp.app.progress import StepProgress
from scoreexp.app.run_data import data_of_run
from scoreexp.app.run_settings import sampler_settings
from scoreexp.app.terminal import say, say_labelled
from scoreexp.core.errors import UserError
from scoreexp.denoisers import Denoiser
from scoreexp.metrics.score_error import LEVELS
from scoreexp.numerics.oracles import Oracle
from scoreexp.runs.directory import home_of, own_folder, shown
from scoreexp.runs.model import load
from scoreexp.runs.reporting.diagnosis import write_diagnosis
from scoreexp.runs.reporting.reading import read_rows
from scoreexp.system.devices import choose_device


def diagnose(cfg: DictConfig) -> Path:
    """Diagnose the model of ``cfg.ckpt``, see ``conf/diagnose.yaml``; returns the page."""
    device = str(choose_device(cfg.device))
    model = load(cfg.ckpt, weights=cfg.weights, device=device, trust=tuple(cfg.trust))
    other = None
    if cfg.other is not None:
        other = load(cfg.other, weights=cfg.weights, device=device, trust=tuple(cfg.trust))
        if other.event_shape != model.event_shape:
            raise UserError(
                f"other={cfg.other} models samples of shape {other.event_shape}, ckpt of {model.event_shape}: give a model "
                "of the other half of the same data"
            )
    data, missing = _Data(), None
    try:
        data = _data(cfg, model)
    except (UserError, OSError) as error:
        if cfg.get("data") is not None:  # asked for
            raise
        missing = str(error)
    sampler = instantiate(sampler_settings(cfg, model.record))
    with (
        own_folder(cfg.out, home_of(cfg.ckpt) / "diagnoses") as folder,
        StepProgress("drawing samples") as progress,
    ):
        found = diagnose_model(
            model,
            data.train,
            held_out=data.held_out,
            oracle=data.oracle,
            other=other,
            labels=data.labels,
            held_out_labels=data.held_out_labels,
            history=read_rows(Path(cfg.ckpt).expanduser().resolve().parent.parent / "metrics.csv"),
            diti_steps=cfg.diti_steps,
            sampler=sampler,
            samples=cfg.samples,
            n=cfg.n,
            levels=list(LEVELS if cfg.levels is None else cfg.levels),
            seed=cfg.seed,
            batch_size=cfg.batch_size,
            progress=progress.item,
        )
        found.settings["checkpoint"] = Path(cfg.ckpt).name
        if missing is not None:
            reason = f"{missing}; +data.KEY=VALUE changes where a run's data are"
            unsaid = {"anything that needs the data of the run": reason, **found.unsaid}
            found = found._replace(unsaid=unsaid)
        page = write_diagnosis(found, folder, title=f"What {Path(cfg.ckpt).name} knows")
    say(found.text().rstrip())
    say_labelled("page", shown(page))
    return page


class _Data(NamedTuple):
    """The training samples, some that were held out, their classes, and the exact distribution where it is known."""

    train: Tensor | None = None
    held_out: Tensor | None = None
    oracle: Oracle | None = None
    labels: Tensor | None = None
    held_out_labels: Tensor | None = None


def _data(cfg: DictConfig, model: Denoiser) -> _Data:
    data = data_of_run(cfg, model)
    seen, unseen = data.split("train"), data.split("val")
    train, positions = seen.samples(data.train_positions), np.arange(min(len(unseen), cfg.n))
    held_out: Tensor | None = unseen.samples(positions)
    assert held_out is not None
    if len(held_out) < 2 or any(
        torch.equal(held_out[0], one) for one in train
    ):  # of a single photograph, say
        held_out = None
    return _Data(
        train,
        held_out,
        data.oracle() if hasattr(data, "oracle") else None,
        seen.classes(data.train_positions),
        None if held_out is None else unseen.classes(positions),
    )
