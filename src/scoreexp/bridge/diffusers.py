"""Models of diffusers: a folder of ``model_index.json``, ``unet/`` and ``scheduler/``, or a U-Net with a scheduler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError, require_package
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import read_weights, state_dict_of
from scoreexp.bridge.recognise import WEIGHTS, read_object
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.types import PositiveInt

_DISCRETE = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler",
)  # fmt: skip
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_LATENT = (
    "AutoencoderKL",
    "VQModel",
    "AsymmetricAutoencoderKL",
    "AutoencoderTiny",
    "AutoencoderDC",
    "ConsistencyDecoderVAE",
)
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_PRIVATE = ("_class_name", "_diffusers_version", "_name_or_path")
_LARGEST_WIDTH = 2**16


class DiffusersUNet(nn.Module):
    """``UNet2DModel`` of diffusers as a network ``F(x, c_noise, cond)``; c_noise is its timestep.

    Where the U-Net has twice as many channels on its output, a mean and a variance (A. Nichol, P. Dhariwal, "Improved
    Denoising Diffusion Probabilistic Models", 2021, https://arxiv.org/abs/2102.09672), F is the first half.

    Args:
        config: the arguments of ``UNet2DModel``.
        event_shape: (C, H, W) of one image.
        num_classes: of a model with labels: the rows of its table of labels.

    Raises:
        ForeignModelError: diffusers is not installed, or refuses the configuration.
    """

    @checked
    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        require_package("diffusers", "this checkpoint is a network of diffusers")
        from diffusers import UNet2DModel

        try:
            self.unet = UNet2DModel.from_config(dict(config))
        except UserError:
            raise
        except Exception as error:  # a configuration of another version, or no configuration
            reason = (str(error).strip().splitlines() or [""])[0][:120]
            raise ForeignModelError(
                f"diffusers' UNet2DModel does not take this configuration ({type(error).__name__}: {reason}): "
                "use the version that wrote it, see _diffusers_version in its config.json"
            ) from error
        self.downsampling_factor = 2 ** (len(self.unet.config["down_block_types"]) - 1)
        self.channels, self.num_classes = event_shape[0], num_classes

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Raises:
            UserError: the model needs a label and none is given, or the reverse.
        """
        require_label(cond, self.num_classes)
        timestep = c_noise.long() if self.unet.config["time_embedding_type"] == "learned" else c_noise
        output: Tensor = self.unet(x, timestep, class_labels=cond, return_dict=False)[0]
        return output[:, : self.channels]


def require_label(cond: Tensor | None, num_classes: int | None) -> None:
    """Refuse to evaluate a conditional model without its condition, and the reverse."""
    if num_classes is not None and cond is None:
        raise UserError(f"the model needs a class: give label=0 to {num_classes - 1}")
    if num_classes is None and cond is not None:
        raise UserError("the model has no classes: leave label out")


def read_diffusers(path: Path) -> ForeignModel:
    """Read a folder of diffusers, or the snapshot of a repository.

    Raises:
        ForeignModelError: it is latent or conditioned on text, or its scheduler is unknown, or a file is missing.
    """
    folder = _snapshot(path)
    unet, scheduler = _parts(folder)
    config = read_object(unet / "config.json")
    if config.get("_class_name") == "ScoreexpUNet":
        return _our_own(config, unet)
    _require_unet(config, unet)
    shape, classes = _shape(config, unet), config.get("num_class_embeds")
    if config.get("class_embed_type") is not None:
        raise ForeignModelError(
            f"{unet}: class_embed_type={config['class_embed_type']}: only tables of labels are read"
        )
    precond, schedule, sampler = convention_of(read_object(scheduler), scheduler, config)
    weights = {f"unet.{name}": tensor for name, tensor in _weights(unet).items()}
    arguments = {key: value for key, value in config.items() if key not in _PRIVATE}
    network = {"_target_": "scoreexp.bridge.DiffusersUNet", "config": arguments}
    details = {"diffusers": str(config.get("_diffusers_version", "unknown"))}
    return ForeignModel("diffusers", network, precond, schedule, shape, classes, weights, sampler, details)


def _our_own(config: Mapping[str, Any], unet: Path) -> ForeignModel:
    """A model that ``convert to=diffusers`` wrote."""
    parts, shape = config.get("model"), config.get("event_shape")
    if not (
        isinstance(parts, dict)
        and {"network", "precond", "schedule"} <= set(parts)
        and isinstance(shape, list)
    ):
        raise ForeignModelError(f"{unet}/config.json lacks the model's configuration: export it again")
    weights = {name.removeprefix("denoiser.network."): tensor for name, tensor in _weights(unet).items()}
    return ForeignModel(
        "diffusers",
        parts["network"],
        parts["precond"],
        parts["schedule"],
        tuple(shape),
        config.get("num_classes"),
        weights,
    )


def _snapshot(path: Path) -> Path:
    """The folder of files inside a cached repository, ``models--NAME``."""
    main = path / "refs" / "main"
    if not main.is_file():
        return path
    revision = main.read_text(errors="replace").strip()[:64]
    if not revision.isalnum() or not (path / "snapshots" / revision).is_dir():
        raise ForeignModelError(
            f"{path} is the cache of a repository without the snapshot {revision}: download it again"
        )
    return path / "snapshots" / revision


def _parts(folder: Path) -> tuple[Path, Path]:
    """The U-Net's folder and the scheduler's file."""
    index = read_object(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    classes = {
        name: str(entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[1]
    }
    if latent := [name for name, kind in classes.items() if kind in _LATENT]:
        raise ForeignModelError(
            f"{folder} is a latent model ({latent[0]} is {classes[latent[0]]}): not supported, because metrics, restorers "
            "and noise levels are those of pixels"
        )
    if conditioned := [
        name for name in classes if name.startswith(("text_encoder", "image_encoder", "tokenizer", "prior"))
    ]:
        raise ForeignModelError(
            f"{folder} is conditioned by its {conditioned[0]}: not supported, give one of images alone or of class labels"
        )
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    if not (unet / "config.json").is_file():
        raise ForeignModelError(
            f"{unet} has no config.json: the weights alone do not say what network they are of"
        )
    candidates = (folder / "scheduler", folder, folder.parent / "scheduler", folder.parent)
    for candidate in candidates:
        if (candidate / "scheduler_config.json").is_file():
            return unet, candidate / "scheduler_config.json"
    raise ForeignModelError(
        f"{folder} has no scheduler/scheduler_config.json, which states what the network predicts: give the whole pipeline, "
        "or write the file with scheduler.save_pretrained(folder)"
    )


def _require_unet(config: Mapping[str, Any], unet: Path) -> None:
    kind = config.get("_class_name")
    if kind in _LATENT:
        raise ForeignModelError(
            f"{unet} is {kind}, a part of a latent model: not supported, give a model of pixels"
        )
    if kind != "UNet2DModel":
        remedy = (
            "a model conditioned on text or images is not supported"
            if "Condition" in str(kind)
            else "give one of these"
        )
        raise ForeignModelError(
            f"{unet}/config.json: _class_name is {kind!r}: allowed is UNet2DModel; {remedy}"
        )
    widths = config.get("block_out_channels", ())
    numbers = [*widths] if isinstance(widths, list | tuple) else [widths]
    numbers += [
        config.get(key) or 1
        for key in ("in_channels", "out_channels", "layers_per_block", "num_class_embeds")
    ]
    if (
        not all(isinstance(number, int) and 0 < number <= _LARGEST_WIDTH for number in numbers)
        or len(numbers) > 40
    ):
        raise ForeignModelError(f"{unet}/config.json states widths that no network has: download it again")


def _shape(config: Mapping[str, Any], unet: Path) -> tuple[int, ...]:
    size, channels, out = (
        config.get("sample_size"),
        config.get("in_channels", 3),
        config.get("out_channels", 3),
    )
    sides = [size, size] if isinstance(size, int) else size
    if not is_shape(sides, dimensions=2):
        raise ForeignModelError(
            f"{unet}/config.json: sample_size is {size}: write the size of its images there, such as 32"
        )
    if out not in (channels, 2 * channels):
        raise ForeignModelError(
            f"{unet}/config.json: {channels} channels in and {out} out: it takes more than an image, which is not supported"
        )
    return (channels, *sides)


def convention_of(
    stated: Mapping[str, Any], where: Path, unet: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]:
    """Preconditioning, schedule and sampler that a scheduler's configuration stands for.

    >>> precond, schedule, _ = convention_of({"_class_name": "FlowMatchEulerDiscreteScheduler"}, Path("s.json"), {})
    >>> precond["prediction"], schedule["_target_"]
    ('flow', 'scoreexp.schedules.FlowMatching')

    Args:
        stated: of the scheduler.
        where: its file, for errors.
        unet: configuration of the network.

    Raises:
        ForeignModelError: the scheduler, or what it says that the network predicts, is unknown.
    """
    kind = str(stated.get("_class_name"))
    if kind in _EDM:
        return _edm(stated, where)
    if kind in _FLOW:
        convention = {
            "_target_": "scoreexp.bridge.Convention",
            "prediction": "flow",
            "label": {
                "_target_": "scoreexp.bridge.FlowTime",
                "scale": _number(stated, "num_train_timesteps", 1000.0, where),
            },
        }
        sampler = {
            "_target_": "scoreexp.samplers.DDIM",
            "grid": {"_target_": "scoreexp.samplers.UniformGrid", "steps": 50, "t_end": 0.02},
        }
        return convention, {"_target_": "scoreexp.schedules.FlowMatching"}, sampler
    if kind not in _DISCRETE:
        known = ", ".join((*_DISCRETE, *_EDM, *_FLOW))
        raise ForeignModelError(f"{where}: the scheduler {kind} is unknown: known are {known}")
    return _discrete(stated, where, unet)


def _discrete(
    stated: Mapping[str, Any], where: Path, unet: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    prediction = stated.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS or stated.get("use_flow_sigmas"):
        raise ForeignModelError(
            f"{where}: prediction_type is {prediction!r}{' with use_flow_sigmas' if stated.get('use_flow_sigmas') else ''}: "
            f"allowed are {', '.join(_PREDICTIONS)}, and flow in a FlowMatch scheduler"
        )
    no_signal = bool(stated.get("rescale_betas_zero_snr", False))
    if no_signal and prediction == "epsilon":
        raise ForeignModelError(
            f"{where}: rescale_betas_zero_snr with epsilon prediction: at its last step the noise does not "
            "determine the image; such a model predicts v (prediction_type)"
        )
    steps = stated.get("num_train_timesteps", 1000)
    betas = {
        "_target_": "scoreexp.bridge.Betas",
        **_betas(stated, where, steps),
        "zero_terminal_snr": no_signal,
    }
    label = {
        "_target_": "scoreexp.bridge.Step",
        "betas": betas,
        "rounded": unet.get("time_embedding_type") == "learned",
    }
    convention = {
        "_target_": "scoreexp.bridge.Convention",
        "prediction": _PREDICTIONS[prediction],
        "label": label,
    }
    spacing, offset = stated.get("timestep_spacing", "leading"), stated.get("steps_offset", 0)
    grid = {
        "_target_": "scoreexp.bridge.TimestepGrid",
        "steps": min(50, steps),
        "spacing": spacing if spacing in ("leading", "trailing", "linspace") else "leading",
        "offset": offset
        if spacing == "leading" and isinstance(offset, int) and 0 <= offset < steps // min(50, steps)
        else 0,
        "total_steps": steps,
    }
    schedule = {"_target_": "scoreexp.bridge.DiscreteVP", "betas": betas}
    return convention, schedule, {"_target_": "scoreexp.samplers.DDIM", "grid": grid}


def _betas(stated: Mapping[str, Any], where: Path, steps: Any) -> dict[str, Any]:
    if not (isinstance(steps, int) and 2 <= steps <= 10**6):
        raise ForeignModelError(f"{where}: num_train_timesteps is {steps!r}: allowed is 2 to 1000000")
    trained = stated.get("trained_betas")
    if trained is not None:
        if not (
            isinstance(trained, list) and len(trained) == steps and all(isinstance(b, float) for b in trained)
        ):
            raise ForeignModelError(
                f"{where}: trained_betas is no list of {steps} numbers: download it again"
            )
        products = torch.cumprod(1.0 - torch.tensor(trained, dtype=torch.float32), dim=0).tolist()
        if stated.get("rescale_betas_zero_snr"):
            raise ForeignModelError(
                f"{where}: trained_betas with rescale_betas_zero_snr is not read: store the rescaled betas"
            )
        return {"kind": "given", "cumulative": products}
    kind = stated.get("beta_schedule", "linear")
    if kind not in ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"):
        raise ForeignModelError(
            f"{where}: beta_schedule is {kind!r}: allowed are linear, scaled_linear, squaredcos_cap_v2 and sigmoid"
        )
    start, end = stated.get("beta_start", 1e-4), stated.get("beta_end", 0.02)
    if not all(isinstance(beta, float) and 0 < beta < 1 for beta in (start, end)):
        raise ForeignModelError(f"{where}: beta_start={start!r}, beta_end={end!r}: allowed is 0 to 1")
    return {"kind": kind, "steps": steps, "start": start, "end": end}


def _edm(stated: Mapping[str, Any], where: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    prediction = stated.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ForeignModelError(
            f"{where}: prediction_type is {prediction!r}: allowed are epsilon and v_prediction"
        )
    low, high, data = (
        _number(stated, key, usual, where)
        for key, usual in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5))
    )
    name = "EDMPrediction" if prediction == "epsilon" else "NegatedEDM"
    target = f"scoreexp.{'denoisers' if prediction == 'epsilon' else 'bridge'}.{name}"
    schedule = {"_target_": "scoreexp.schedules.EDM", "sigma_min": low, "sigma_max": high}
    grid = {
        "_target_": "scoreexp.samplers.KarrasGrid",
        "steps": 50,
        "rho": _number(stated, "rho", 7.0, where),
    }
    sampler = {"_target_": "scoreexp.samplers.DDIM", "grid": grid}
    return {"_target_": target, "sigma_data": data}, schedule, sampler


def _number(stated: Mapping[str, Any], key: str, usual: float, where: Path) -> float:
    value = stated.get(key, usual)
    if isinstance(value, int | float) and 0 < value < 1e9:
        return float(value)
    raise ForeignModelError(f"{where}: {key} is {str(value)[:40]!r}: allowed are numbers above 0")


def _weights(unet: Path) -> dict[str, Tensor]:
    """The weights, in one file or in several that an index names."""
    for suffix in ("safetensors", "bin"):
        for variant in ("", ".fp16"):
            if (single := unet / f"{WEIGHTS}{variant}.{suffix}").is_file():
                return state_dict_of(read_weights(single), str(single))
        index = unet / f"{WEIGHTS}.{suffix}.index.json"
        if index.is_file():
            files = read_object(index).get("weight_map")
            names = set(files.values()) if isinstance(files, dict) else set()
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ForeignModelError(f"{index} names no files beside it: download it again")
            parts = [state_dict_of(read_weights(unet / name), str(unet / name)) for name in sorted(names)]
            return {key: tensor for part in parts for key, tensor in part.items()}
    raise ForeignModelError(f"{unet} has no {WEIGHTS}.safetensors or .bin: download its weights")
