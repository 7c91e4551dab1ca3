"""Checkpoints of score_sde_pytorch: NCSN++ and DDPM++ of its continuous models, and DDPM++ of its discrete ones.

Its networks are those that EDM has taken over, in another order of names: a list of layers by number, with queries, keys
and values apart. They become an ``EDMNetwork``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from scoreexp.bridge.edm import EDMNetwork
from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import state_dict_of

_USUAL: Mapping[str, Mapping[str, Any]] = {
    "training": {"sde": "vesde", "continuous": True},
    "data": {"image_size": 32, "num_channels": 3, "centered": False},
    "model": {
        "name": "ncsnpp", "nf": 128, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 4, "attn_resolutions": [16],
        "embedding_type": "fourier", "fir": True, "fir_kernel": [1, 3, 3, 1], "progressive": "none",
        "progressive_input": "residual", "progressive_combine": "sum", "resblock_type": "biggan", "skip_rescale": True,
        "conditional": True, "scale_by_sigma": True, "sigma_min": 0.01, "sigma_max": 50.0, "beta_min": 0.1,
        "beta_max": 20.0, "num_scales": 1000,
    },
}  # fmt: skip
"""What a configuration that states less means; as in ``configs/ve/cifar10_ncsnpp_continuous.py``."""


def read_score_sde(held: Any, stated: Mapping[str, Any], path: Path, raw: bool = False) -> ForeignModel:
    """Read ``{"model": ..., "ema": {"shadow_params": [...]}, ...}``, with its configuration beside it.

    ``NAME.json`` holds ``{"format": "score_sde", "config": {"training": {"sde": "vesde"}, "data": {...}, "model": {...}}}``,
    the configuration by its own names. The averaged weights are a list without names, one for each parameter that is
    trained, in the order of the model's.

    Args:
        held: what the file holds.
        stated: what stands beside it.
        path: of the file, for errors.
        raw: take the weights themselves instead of their average.

    Raises:
        ForeignModelError: the configuration is missing or of a network that is not read.
    """
    config, beside = _config(stated.get("config"), path), path.with_suffix(".json")
    model = config["model"]
    network = _network(config, beside)
    image, side = config["data"]["num_channels"], config["data"]["image_size"]
    held = held if isinstance(held, dict) else {}
    state = {
        name.removeprefix("module."): tensor
        for name, tensor in state_dict_of(held.get("model"), str(path)).items()
    }
    state.pop("sigmas", None)  # a table of noise levels, which the configuration states
    average = held.get("ema")
    averaged = isinstance(average, dict) and not raw
    if averaged:
        state |= _average(state, average.get("shadow_params"), path)
    with torch.device("meta"):
        ours = EDMNetwork(
            event_shape=(image, side, side), **{k: v for k, v in network.items() if k != "_target_"}
        )
    precond, schedule = _convention(config, beside)
    return ForeignModel(
        "score_sde",
        network,
        precond,
        schedule,
        (image, side, side),
        None,
        _renamed(state, ours, path),
        details={
            "sde": str(config["training"]["sde"]),
            "weights": "averaged" if averaged else "raw",
            "embedding": model["embedding_type"],
        },
    )


def _config(given: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(given, dict):
        raise ForeignModelError(
            f'{path} does not say how it was trained: write {{"format": "score_sde", "config": {{"training": {{"sde": '
            f'"vesde"}}, "data": {{...}}, "model": {{...}}}}}} to {path.with_suffix(".json").name} beside it'
        )
    found = {}
    for section, usual in _USUAL.items():
        part = given.get(section, {})
        if not isinstance(part, dict):
            raise ForeignModelError(
                f"{path.with_suffix('.json')}: config.{section} is no object: give the model's own"
            )
        found[section] = {**usual, **part}
        for key, value in usual.items():
            stated = found[section][key]
            kind = float if isinstance(value, float) else type(value)
            allowed = (
                (int, float) if kind is float else (list, tuple) if kind is list else (kind,)
            )  # JSON has lists alone
            if not isinstance(stated, allowed) or (isinstance(stated, bool) and kind is not bool):
                _refuse(path.with_suffix(".json"), f"{section}.{key}", stated, f"such as {value!r}")
    return found


def _refuse(beside: Path, key: str, value: Any, allowed: str) -> NoReturn:
    raise ForeignModelError(f"{beside}: {key} is {str(value)[:60]!r}: allowed is {allowed}")


def _network(config: Mapping[str, Mapping[str, Any]], beside: Path) -> dict[str, Any]:
    """The arguments of ``EDMNetwork``."""
    model, data = config["model"], config["data"]
    only = {
        "name": "ncsnpp", "resblock_type": "biggan", "skip_rescale": True, "conditional": True, "progressive_combine": "sum",
        "fir_kernel": [1, 3, 3, 1],
    }  # fmt: skip
    for key, value in only.items():
        if model[key] != value:
            _refuse(beside, f"model.{key}", model[key], f"{value}: other networks are not read")
    names = {
        "embedding_type": {"fourier", "positional"},
        "progressive": {"none", "output_skip"},
        "progressive_input": {"none", "input_skip", "residual"},
    }
    for key, allowed in names.items():
        if model[key] not in allowed:
            _refuse(beside, f"model.{key}", model[key], " or ".join(sorted(allowed)))
    for key, sides in (
        ("model.nf, ch_mult", [model["nf"], *model["ch_mult"]]),
        ("model.num_res_blocks, data", [model["num_res_blocks"], data["image_size"], data["num_channels"]]),
    ):
        if not is_shape(sides):
            _refuse(beside, key, sides, "whole numbers from 1")
    progressive = model["progressive_input"]
    if progressive == "residual" and not model["fir"]:
        _refuse(
            beside, "model.fir", False, "true with progressive_input=residual: other networks are not read"
        )
    return {
        "_target_": "scoreexp.bridge.EDMNetwork",
        "kind": "song",
        "channels": model["nf"],
        "multipliers": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention_resolutions": [n for n in model["attn_resolutions"] if isinstance(n, int)],
        "embedding": model["embedding_type"],
        "noise_multiplier": 2 if model["embedding_type"] == "fourier" else 1,
        "encoder": {"none": "standard", "input_skip": "skip", "residual": "residual"}[progressive],
        "decoder": "standard" if model["progressive"] == "none" else "skip",
        "taps": [1, 3, 3, 1] if model["fir"] else [1, 1],
    }


def _convention(
    config: Mapping[str, Mapping[str, Any]], beside: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Preconditioning and schedule.

    A variance exploding model of images in [0, 1] (``centered=False``) stretches what it is given to [-1, 1], so sigma
    there is half of what it is here.
    """
    model, training = config["model"], config["training"]
    sde, centered = training["sde"].lower(), config["data"]["centered"]
    convention: dict[str, Any] = {"_target_": "scoreexp.bridge.Convention"}
    if sde == "vesde":
        if not training["continuous"] or not model["scale_by_sigma"] or model["embedding_type"] != "fourier":
            _refuse(
                beside,
                "training.continuous, model.scale_by_sigma, model.embedding_type",
                [training["continuous"], model["scale_by_sigma"], model["embedding_type"]],
                "[True, True, 'fourier'] with vesde: other conventions are not read",
            )
        unit = 1.0 if centered else 0.5
        label = {"_target_": "scoreexp.bridge.LogLevel", "scale": 1.0, "unit": unit}
        schedule = {
            "_target_": "scoreexp.schedules.EDM",
            "sigma_min": model["sigma_min"] / unit,
            "sigma_max": model["sigma_max"] / unit,
        }
        return {**convention, "prediction": "scaled_score", "label": label}, schedule
    if sde not in ("vpsde", "subvpsde"):
        _refuse(beside, "training.sde", training["sde"], "vesde, vpsde or subvpsde")
    if not centered or model["scale_by_sigma"] or model["embedding_type"] != "positional":
        _refuse(
            beside,
            "data.centered, model.scale_by_sigma, model.embedding_type",
            [centered, model["scale_by_sigma"], model["embedding_type"]],
            f"[True, False, 'positional'] with {sde}",
        )
    low, high, steps = (model[key] for key in ("beta_min", "beta_max", "num_scales"))
    if training["continuous"] or sde == "subvpsde":
        times = {"beta_min": low, "beta_max": high}
        label = {"_target_": "scoreexp.bridge.VPTime", **times, "sub_vp": sde == "subvpsde"}
        name = "SubVP" if sde == "subvpsde" else "VP"
        schedule = {"_target_": f"scoreexp.schedules.{name}", **times}
    else:
        betas = {
            "_target_": "scoreexp.bridge.Betas",
            "steps": steps,
            "start": low / steps,
            "end": high / steps,
        }
        label = {"_target_": "scoreexp.bridge.Step", "betas": betas}
        schedule = {"_target_": "scoreexp.bridge.DiscreteVP", "betas": betas}
    return {**convention, "prediction": "epsilon", "label": label}, schedule


def _average(state: Mapping[str, Tensor], shadow: Any, path: Path) -> dict[str, Tensor]:
    """The averaged parameters by their names; the frequencies of Fourier features are not trained."""
    trained = [name for name in state if name != "all_modules.0.W"]
    values = [tensor for tensor in shadow if isinstance(tensor, Tensor)] if isinstance(shadow, list) else []
    wrong = [name for name, tensor in zip(trained, values) if state[name].shape != tensor.shape]
    if len(values) != len(trained) or wrong:
        what = (
            f"{wrong[0]} has another shape" if wrong else f"{len(values)} averages of {len(trained)} weights"
        )
        raise ForeignModelError(f"{path}: {what}: take weights=raw, or download it again")
    return dict(zip(trained, values))


def _renamed(state: Mapping[str, Tensor], ours: EDMNetwork, path: Path) -> dict[str, Tensor]:
    """The weights under the names of ``EDMNetwork``, whose layers are walked in the order of the list."""
    rest = dict(state)
    found: dict[str, Tensor] = {}

    def take(number: int, name: str, ours: str) -> None:
        for leaf in ("weight", "bias"):
            if (tensor := rest.pop(f"all_modules.{number}.{name}{leaf}", None)) is not None:
                found[f"{ours}.{leaf}"] = tensor

    def take_block(number: int, prefix: str) -> None:
        for theirs, name in (
            ("GroupNorm_0", "norm0"), ("Conv_0", "conv0"), ("Dense_0", "affine"), ("GroupNorm_1", "norm1"),
            ("Conv_1", "conv1"), ("Conv_2", "skip"),
        ):  # fmt: skip
            take(number, f"{theirs}.", f"{prefix}.{name}")

    def take_attention(number: int, prefix: str) -> None:
        take(number, "GroupNorm_0.", f"{prefix}.norm2")
        parts = [
            [rest.pop(f"all_modules.{number}.NIN_{i}.{leaf}", torch.zeros(0)) for leaf in "Wb"]
            for i in range(4)
        ]
        if any(weight.ndim != 2 or bias.ndim != 1 for weight, bias in parts):
            raise ForeignModelError(
                f"{path} has no attention at layer {number}: its configuration is of another network"
            )
        if len({weight.shape for weight, _ in parts}) > 1 or len({bias.shape for _, bias in parts}) > 1:
            raise ForeignModelError(f"{path} has a damaged attention at layer {number}: download it again")
        # channels are ordered by coordinate, then query, key, value
        qkv = torch.stack([weight.T for weight, _ in parts[:3]], dim=1).flatten(0, 1)
        found[f"{prefix}.qkv.weight"] = qkv[:, :, None, None]
        found[f"{prefix}.qkv.bias"] = torch.stack([bias for _, bias in parts[:3]], dim=1).flatten()
        found[f"{prefix}.proj.weight"] = parts[3][0].T[:, :, None, None]
        found[f"{prefix}.proj.bias"] = parts[3][1]

    numbers: Iterator[int] = iter(range(len(state) + len(ours.enc) + len(ours.dec)))
    if ours.map_noise is not None:
        found["map_noise.freqs"] = rest.pop(f"all_modules.{next(numbers)}.W", torch.zeros(0))
    for name in ("map_layer0", "map_layer1"):
        take(next(numbers), "", name)
    for part, layers in (("enc", ours.enc), ("dec", ours.dec)):
        for name, layer in layers.items():
            prefix = f"{part}.{name}"
            if name.endswith(("aux_down", "aux_up")):  # filters without weights
                continue
            number = next(numbers)
            if hasattr(layer, "conv0"):
                take_block(number, prefix)
                if layer.heads:
                    take_attention(next(numbers), prefix)
            elif name.endswith("aux_skip"):
                take(number, "Conv_0.", prefix)
            elif name.endswith("aux_residual"):
                take(number, "Conv2d_0.", prefix)
            else:
                take(number, "", prefix)
    return found | rest  # what is left has no place, which the comparison with the network says
