"""Checkpoints of k-diffusion whose model is ``image_v1``: its own configuration beside the weights says all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError, require_package
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import state_dict_of
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_DEFAULTS = {
    "patch_size": 1,
    "augment_wrapper": True,
    "mapping_cond_dim": 0,
    "skip_stages": 0,
    "has_variance": False,
}
_REFUSED = ("unet_cond_dim", "cross_cond_dim")
_AUGMENTATIONS = 9  # parameters of the augmentation that its wrapper tells the network; 0 when sampling


class KDiffusionImageV1(nn.Module):
    """``ImageDenoiserModelV1`` of k-diffusion as a network ``F(x, c_noise, cond)``.

    The inner network takes the noise level sigma, and its augmentation parameters as zeros.

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: none; given where models are built.
        config: its ``model`` section.

    Raises:
        ForeignModelError: the package is not installed.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        require_package("k_diffusion", "this checkpoint is a network of it")
        from k_diffusion.models import ImageDenoiserModelV1

        given = {**_DEFAULTS, **config}
        self.inner = ImageDenoiserModelV1(
            event_shape[0],
            given["mapping_out"],
            given["depths"],
            given["channels"],
            given["self_attn_depths"],
            patch_size=given["patch_size"],
            mapping_cond_dim=given["mapping_cond_dim"] + _AUGMENTATIONS * bool(given["augment_wrapper"]),
            skip_stages=given["skip_stages"],
            has_variance=given["has_variance"],
        )
        self.downsampling_factor = given["patch_size"] * 2 ** (
            len(given["depths"]) - 1 - given["skip_stages"]
        )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F, with ``c_noise = log(sigma / alpha) / 4``."""
        output: Tensor = self.inner(x, (4 * c_noise).exp())
        return output


def read_k_diffusion(held: Any, stated: Mapping[str, Any], path: Path, raw: bool = False) -> ForeignModel:
    """Read ``{"model": ..., "model_ema": ...}`` with its configuration ``NAME.json`` beside it.

    Raises:
        ForeignModelError: the configuration is missing or of another kind of model.
    """
    config = stated.get("model")
    if not isinstance(config, dict) or config.get("type") != "image_v1":
        kind = config.get("type") if isinstance(config, dict) else None
        raise ForeignModelError(
            f"{path.with_suffix('.json')}: model.type is {kind!r}: allowed is image_v1; put the configuration that the "
            "model was trained with beside its weights"
        )
    if conditioned := [key for key in _REFUSED if config.get(key)]:
        raise ForeignModelError(
            f"{path} is a conditional model ({conditioned[0]}): not supported, give one of images alone"
        )
    missing = [
        key
        for key in ("input_channels", "input_size", "mapping_out", "depths", "channels", "self_attn_depths")
        if key not in config
    ]
    if missing:
        raise ForeignModelError(
            f"{path.with_suffix('.json')}: model has no {missing[0]}: give the whole configuration"
        )
    keys = ("model", "model_ema") if raw else ("model_ema", "model")
    state = next(
        (held[key] for key in keys if isinstance(held, dict) and isinstance(held.get(key), dict)), held
    )
    weights = {}
    for name, tensor in state_dict_of(state, str(path)).items():
        while name.startswith("inner_model."):  # of the preconditioner, and of the wrapper that augments
            name = name.removeprefix("inner_model.")
        weights[f"inner.{name}"] = tensor
    sides = config["input_size"]
    if not is_shape(sides, dimensions=2):
        raise ForeignModelError(f"{path.with_suffix('.json')}: input_size is {sides!r}: allowed is [H, W]")
    low, high, data = (
        float(config.get(key, usual))
        for key, usual in (("sigma_min", 1e-2), ("sigma_max", 80.0), ("sigma_data", 1.0))
    )
    network = {"_target_": "scoreexp.bridge.KDiffusionImageV1", "config": dict(config)}
    return ForeignModel(
        "k_diffusion",
        network,
        {"_target_": "scoreexp.denoisers.EDMPrediction", "sigma_data": data},
        {"_target_": "scoreexp.schedules.EDM", "sigma_min": low, "sigma_max": high},
        (config["input_channels"], *sides),
        None,
        weights,
    )
