"""How a command uses a model: what its own configuration does not say, sampler and noise level, is that of the run."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from scoreexp import prior
from scoreexp.app.config_check import check_config
from scoreexp.app.terminal import say_labelled
from scoreexp.core.construct import construct
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import of_255, sigma_to_model
from scoreexp.denoisers import DenoiserBase
from scoreexp.guidance.base import LabelGuidance
from scoreexp.restorers import Restorer
from scoreexp.runs.model import load, require_trusted
from scoreexp.samplers import Sampler, label_of_observed
from scoreexp.samplers.labels import Label
from scoreexp.schedules import Schedule
from scoreexp.system.devices import choose_device

NEAR = 1.2  # ratio of noise levels up to which the model's nearest one serves an estimated one


def guided(model: DenoiserBase, cfg: DictConfig) -> DenoiserBase:
    """The model with the guidance of ``cfg`` around it, if there is any.

    Raises:
        UserError: the guidance does not take this model.
    """
    if not cfg.get("guidance"):
        return model
    found: DenoiserBase = construct(
        OmegaConf.to_container(cfg.guidance, resolve=True), "guidance", model=model
    )
    return found


def model_of_pictures(cfg: DictConfig) -> DenoiserBase:
    """The model of ``cfg.ckpt`` with the guidance of ``cfg``.

    Raises:
        UserError: it is none of images, or the guidance does not take it.
    """
    device = str(choose_device(cfg.device))
    model = guided(load(cfg.ckpt, weights=cfg.weights, device=device, trust=tuple(cfg.trust)), cfg)
    if not isinstance(kind_of(model.event_shape), Images):
        raise UserError(
            f"{cfg.ckpt} models samples of shape {model.event_shape}, not images: give another checkpoint"
        )
    return model


def prior_of_pictures(cfg: DictConfig) -> DenoiserBase:
    """``model_of_pictures``; without a checkpoint the prior of photographs that comes with the package, and says so.

    Raises:
        UserError: of ``model_of_pictures``.
    """
    if cfg.ckpt is not None:
        return model_of_pictures(cfg)
    say_labelled("prior", "the bundled one of photographs; ckpt=FILE takes another")
    return guided(prior.load(choose_device(cfg.device)), cfg)


def label_of_pictures(cfg: DictConfig, model: DenoiserBase) -> Label:
    """The label with which a model restores the user's images; says what is to be said of that and of its training.

    Raises:
        UserError: the model has no such class, or there is guidance by labels and no class.
    """
    record = model.record
    label, doubt = label_of_observed(record, cfg.seed, cfg.label)
    if isinstance(model, LabelGuidance) and not isinstance(label, int):
        raise UserError(
            f"guidance needs a class: give that of the image, label=0 to {record['num_classes'] - 1}"
        )
    if doubt is not None:
        say_labelled("warning", doubt)
    if trained_on_one_picture(record.get("config", {})):
        say_labelled("note", "this model was trained on 1 image and can only return that one")
    return label


def trained_on_one_picture(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a run says that its training set was a single picture."""
    data = config.get("data") or {}
    if data.get("num_images") == 1 or len(data.get("indices") or ()) == 1:
        return True
    if not str(data.get("_target_")).endswith(".Photo"):
        return False
    names = data.get("name")
    pictures = 1 if names is None or isinstance(names, str) else len(names)
    return pictures * (data.get("crops", 16) if data.get("crop") == "random" else 1) == 1


def restorer_of(cfg: DictConfig) -> Restorer | None:
    """The restorer of ``cfg``, or None where it names none.

    Raises:
        UserError: something is given that it does not use.
    """
    if not cfg.get("restorer"):
        return None
    restorer: Restorer = construct(OmegaConf.to_container(cfg.restorer, resolve=True), "restorer")
    name = type(restorer).__name__
    unused = ["sampler"] if restorer.needs_model else ["sampler", "ckpt", "guidance", "label"]
    if given := [key for key in unused if cfg.get(key) is not None]:
        raise UserError(
            f"restorer: {name} takes no {' and no '.join(given)}: leave {' and '.join(given)} out"
        )
    return restorer


def own_settings(
    cfg: DictConfig, record: Mapping[str, Any], key: str, package: str, remedy: str
) -> dict[str, Any]:
    """A group's configuration: that of the run, with the keys that ``cfg`` changes, or another.

    Args:
        cfg: of the command.
        record: of the checkpoint.
        key: of the group, such as ``sampler``.
        package: whose classes a run's own configuration may name, beside those of ``cfg.trust``.
        remedy: what the run does not say and what to give instead, for the error.

    Raises:
        UserError: it is wrong, or the run has none.
    """
    given: Any = OmegaConf.to_container(cfg.get(key) or OmegaConf.create(), resolve=True)
    if "_target_" not in given:
        own = record.get("config", {}).get(key)
        if not own:
            raise UserError(f"{cfg.ckpt} does not say {remedy}")
        require_trusted(own, key, {package, *(cfg.get("trust") or ())})
        given = OmegaConf.to_container(OmegaConf.merge(own, given))
    if problems := check_config({key: given}, schema={key: "Node"}):
        raise UserError(problems[0])
    return dict(given)


def sampler_settings(cfg: DictConfig, record: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's ``own_settings``."""
    remedy = "how its run denoised: give sampler=ddim"
    return own_settings(cfg, record, "sampler", "scoreexp.samplers", remedy)


def own_sigma(record: Mapping[str, Any]) -> float | None:
    """The noise level that the run's own evaluations denoised, in units of the [0, 1] range, or None."""
    monitor = (record.get("config", {}).get("callbacks") or {}).get("monitor") or {}
    sigma = monitor.get("sigma")
    return None if sigma is None else float(sigma)


def require_reachable(sampler: Sampler, schedule: Schedule, sigma: float) -> None:
    """Refuse a noise level, in units of the [0, 1] range, from which the sampler cannot start on ``schedule``."""
    try:
        sampler.start(schedule, torch.zeros(1, 1), sigma_to_model(sigma))
    except ValueError as error:
        low, high = _range(schedule)
        if low <= sigma <= high:
            raise
        hint = f"; {of_255(sigma)}" if sigma > 1 else ""
        raise UserError(
            f"sigma={sigma:g}: this model denoises {_in_words(schedule)} (units of [0, 1]{hint})"
        ) from error


def nearest_level(schedule: Schedule, estimated: float) -> float:
    """The model's noise level for an estimated one, both in units of the [0, 1] range.

    An estimate is never exact, so a level within a factor of 1.2 serves.

    Raises:
        UserError: the model knows none so near.
    """
    low, high = _range(schedule)
    near = min(max(estimated, low), high)
    if max(near / estimated, estimated / near) <= NEAR:
        return near
    raise UserError(
        f"sigma={estimated:.3g} was estimated, but this model denoises {_in_words(schedule)} (units of [0, 1]): give a "
        f"model of more levels, such as one of experiment=photo32_ddpm, or take this one's nearest, sigma={near:.3g}"
    )


def _range(schedule: Schedule) -> tuple[float, float]:
    low, high = (level / sigma_to_model(1.0) for level in schedule.sigma_range)
    return low, high


def _in_words(schedule: Schedule) -> str:
    low, high = _range(schedule)
    return f"{low:.4g} alone" if low == high else f"{_rounded(low, 1):g} to {_rounded(high, -1):g}"


def _rounded(level: float, sign: int) -> float:
    """Three digits of a noise level that limits a range from below (1) or above (-1), rounded into the range."""
    near = float(f"{level:.3g}")
    outside = (near - level) * sign < 0
    return near + sign * 10.0 ** (math.floor(math.log10(level)) - 2) if outside else near
