"""Models of ours, written for other libraries; weights are never approximated."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreexp.bridge.errors import ForeignModelError, require_package
from scoreexp.denoisers import Denoiser
from scoreexp.runs.model import MODEL_PARTS
from scoreexp.schedules.base import Schedule, VarianceExploding
from scoreexp.system.atomic import atomic_write
from scoreexp.system.json_files import write_json

STEPS = 1000
"""Timesteps of an exported pipeline."""

_BATCH = 2  # of the example: 1 would fix the size of every batch


def vp_scales(levels: Tensor) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` with ``alpha^2 + sigma^2 = 1`` at a noise level ``sigma / alpha``.

    >>> vp_scales(torch.tensor([0.75]))
    (tensor([0.8000]), tensor([0.6000]))
    """
    root = torch.hypot(torch.ones_like(levels), levels)
    alpha = torch.where(levels.isinf(), 0.0, 1 / root)
    return alpha, torch.where(levels.isinf(), 1.0, levels / root)


def timestep_levels(schedule: Schedule, steps: int = STEPS) -> Tensor:
    """``sigma / alpha`` of each timestep: even in time, or in the logarithm of the level where alpha is always 1.

    >>> from scoreexp.schedules import DDPM, EDM
    >>> timestep_levels(EDM(0.5, 50.0), 3), len(timestep_levels(DDPM()))
    (tensor([ 0.5000,  5.0000, 50.0000], dtype=torch.float64), 1000)

    Raises:
        ForeignModelError: the schedule has one noise level.
    """
    low, high = schedule.sigma_range
    if low == high:
        raise ForeignModelError(
            f"the model knows the noise level {low:g} alone: no sampler of diffusers can use it"
        )
    if isinstance(schedule, VarianceExploding):
        ends = torch.tensor([low, high], dtype=torch.float64).log()
        return (
            torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64).exp().clamp(low, high)
        )
    times = schedule.t_max * torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return schedule.noise_level(times.clamp(min=schedule.t_min))


def to_diffusers(model: Denoiser, record: Mapping[str, Any], folder: Path) -> None:
    """A pipeline ``DDIMPipeline`` that draws what DDIM draws here, with ``trailing`` steps that divide 1000.

    A network of diffusers goes out as the ``UNet2DModel`` that it is, where its scheduler's convention is one; any other as
    ``ScoreexpUNet``, with a prediction of v, the same posterior mean, and noise levels of the model's own schedule. The
    scheduler is pinned: no clipping, trailing spacing, the products ``abar`` as betas.

    Args:
        model: to write.
        record: of its checkpoint.
        folder: a new one.

    Raises:
        ForeignModelError: diffusers is not installed, or the model has one noise level.
    """
    require_package("diffusers", "export to diffusers")
    from diffusers import DDIMPipeline, DDIMScheduler

    from scoreexp.bridge.betas import DiscreteVP
    from scoreexp.bridge.conventions import Convention
    from scoreexp.bridge.diffusers import DiffusersUNet

    schedule, convention = model.schedule, model.preconditioning
    pinned = {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    if (
        isinstance(model.network, DiffusersUNet)
        and isinstance(schedule, DiscreteVP)
        and isinstance(convention, Convention)
        and not convention.scaled
    ):
        names = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
        betas = _betas(record["config"]["schedule"]["betas"], schedule)
        scheduler = DDIMScheduler(prediction_type=names[convention.prediction], **betas, **pinned)
        unet = model.network.unet
    else:
        from scoreexp.api import diffusers_model

        levels = timestep_levels(schedule)
        alpha, _ = vp_scales(levels)
        products = alpha**2
        trained = 1 - products / torch.cat([products.new_ones(1), products[:-1]])
        config, shape = record["config"], list(record["event_shape"])
        if len(shape) != 3:
            raise ForeignModelError(
                f"the model's samples have shape {tuple(shape)}: pipelines of diffusers draw images (C, H, W)"
            )
        unet = diffusers_model.model_class()(
            model={part: dict(config[part]) for part in MODEL_PARTS},
            event_shape=shape,
            num_classes=record["num_classes"],
            levels=levels.tolist(),
            sample_size=shape[1:],
            in_channels=shape[0],
        )
        unet.denoiser.load_state_dict(model.state_dict())
        scheduler = DDIMScheduler(
            num_train_timesteps=STEPS,
            trained_betas=trained.tolist(),
            prediction_type="v_prediction",
            **pinned,
        )
    pipeline = DDIMPipeline(unet=unet.eval(), scheduler=scheduler)
    pipeline.scheduler.register_to_config(**pinned, prediction_type=scheduler.config.prediction_type)
    pipeline.save_pretrained(folder)


def _betas(stated: Mapping[str, Any], schedule: Any) -> dict[str, Any]:
    """The arguments of a scheduler that say what ``Betas`` says."""
    if stated.get("kind") == "given":
        products = torch.tensor(stated["cumulative"], dtype=torch.float64)
        trained = 1 - products / torch.cat([products.new_ones(1), products[:-1]])
        return {"num_train_timesteps": schedule.steps, "trained_betas": trained.tolist()}
    return {
        "num_train_timesteps": schedule.steps,
        "beta_schedule": stated.get("kind", "linear"),
        "beta_start": stated.get("start", 1e-4),
        "beta_end": stated.get("end", 0.02),
        "rescale_betas_zero_snr": bool(stated.get("zero_terminal_snr")),
    }


def _example(model: Denoiser, record: Mapping[str, Any]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_BATCH, *record["event_shape"], generator=generator)
    example: tuple[Tensor, ...] = (x, torch.tensor([0.1, 0.2]))
    return example if record["num_classes"] is None else (*example, torch.zeros(_BATCH, dtype=torch.long))


def _convention(record: Mapping[str, Any], format_: str) -> dict[str, Any]:
    """What stands beside a program: all that is needed to use it, and to read it again."""
    config = record["config"]
    return {
        "format": format_,
        "inputs": ["x", "c_noise"] + ["cond"] * (record["num_classes"] is not None),
        "precond": config["precond"],
        "schedule": config["schedule"],
        "sampler": config.get("sampler"),
        "event_shape": list(record["event_shape"]),
        "num_classes": record["num_classes"],
    }


def to_torch_export(model: Denoiser, record: Mapping[str, Any], path: Path) -> None:
    """The network as a ``torch.export`` program ``F(x, c_noise)`` of any batch size, with ``NAME.json``."""
    example = _example(model, record)
    network = model.network.eval()
    sizes = tuple({0: torch.export.Dim("batch")} for _ in example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, example, dynamic_shapes=sizes)
        with atomic_write(path) as temporary:
            torch.export.save(program, temporary)
    write_json(path.with_suffix(".json"), _convention(record, "torch_export"))


def to_onnx(model: Denoiser, record: Mapping[str, Any], path: Path) -> None:
    """The network as ONNX ``F(x, c_noise)`` of any batch size, its convention in ``NAME.onnx.json`` beside it.

    Raises:
        ForeignModelError: a package is missing, or ONNX lacks an operation; the message names it.
    """
    for package in ("onnx", "onnxscript"):
        require_package(package, "export to ONNX")
    example = _example(model, record)
    names = ["x", "c_noise", "cond"][: len(example)]
    sizes = tuple({0: torch.export.Dim("batch")} for _ in example)
    try:
        with torch.no_grad(), warnings.catch_warnings(), atomic_write(path) as temporary:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model.network.eval(),
                example,
                temporary,
                dynamo=True,
                dynamic_shapes=sizes,
                input_names=names,
                output_names=["F"],
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise ForeignModelError(
            f"the network cannot be written as ONNX ({reason}): export it with to=torch_export"
        ) from error
    write_json(path.with_name(f"{path.name}.json"), _convention(record, "onnx"))
