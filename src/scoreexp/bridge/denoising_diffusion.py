"""Checkpoints of denoising-diffusion-pytorch (lucidrains): ``model-N.pt`` of its trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError, require_package
from scoreexp.bridge.foreign import ForeignModel, is_shape
from scoreexp.bridge.inert import state_dict_of
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_OBJECTIVES = {"epsilon": lambda snr: 1.0, "sample": lambda snr: snr, "v": lambda snr: snr / (snr + 1)}
"""The loss weight of each, where the signal-to-noise ratio is not clipped: what tells them apart in a file."""


class LucidrainsUNet(nn.Module):
    """``Unet`` of denoising-diffusion-pytorch as a network ``F(x, c_noise, cond)``; c_noise is its time.

    A network with self-conditioning gets zeros for its earlier estimate, as in the first step of its own sampler.

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: none; given where models are built.
        dim: width.
        dim_mults: width of each level in units of ``dim``.
        init_dim: width of the first convolution.
        full_attn: levels with full instead of linear attention.
        attn_heads: heads of each level.
        attn_dim_head: width of a head on each level.
        self_condition: it takes an earlier estimate beside the image.

    Raises:
        ForeignModelError: the package is not installed.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        dim: PositiveInt,
        dim_mults: tuple[PositiveInt, ...],
        init_dim: PositiveInt,
        full_attn: tuple[bool, ...],
        attn_heads: tuple[PositiveInt, ...],
        attn_dim_head: tuple[PositiveInt, ...],
        self_condition: bool,
    ) -> None:
        super().__init__()
        require_package("denoising_diffusion_pytorch", "this checkpoint is a network of it")
        from denoising_diffusion_pytorch import Unet

        self.unet = Unet(
            dim=dim,
            init_dim=init_dim,
            dim_mults=tuple(dim_mults),  # its helper tells tuples from lists
            channels=event_shape[0],
            self_condition=self_condition,
            full_attn=tuple(full_attn),
            attn_heads=tuple(attn_heads),
            attn_dim_head=tuple(attn_dim_head),
        )
        self.downsampling_factor = 2 ** (len(dim_mults) - 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F."""
        output: Tensor = self.unet(x, c_noise)
        return output


def read_denoising_diffusion(
    held: Any, stated: Mapping[str, Any], path: Path, raw: bool = False
) -> ForeignModel:
    """Read ``{"model": ..., "ema": ...}``: its buffers hold betas and objective, its shapes the architecture.

    Images were normalised to [-1, 1], the library's default; ``auto_normalize=False`` leaves no trace in the file.

    Args:
        held: what the file holds.
        stated: beside it, ``{"image_size": 32}``, the one thing that the file does not say.
        path: of the file, for errors.
        raw: take the weights themselves instead of their average.

    Raises:
        ForeignModelError: something is missing.
    """
    if not isinstance(held, dict) or not isinstance(held.get("model"), dict):
        raise ForeignModelError(
            f"{path} is no model-N.pt of denoising-diffusion-pytorch: give what its Trainer saves"
        )
    online = state_dict_of(held["model"], str(path))
    average = held.get("ema")
    averaged = _stripped(state_dict_of(average, str(path)), "ema_model.") if isinstance(average, dict) else {}
    chosen = online if raw or not averaged else averaged
    size = stated.get("image_size")
    sides = [size, size] if isinstance(size, int) else size
    if not is_shape(sides, dimensions=2):
        raise ForeignModelError(
            f'{path} does not say the size of its images: write {{"image_size": 32}}, or [H, W], to '
            f"{path.with_suffix('.json').name} beside it"
        )
    weights = {f"unet.{name}": tensor for name, tensor in _stripped(chosen, "model.").items()}
    try:
        network = {"_target_": "scoreexp.bridge.LucidrainsUNet", **_architecture(weights)}
        betas = {"_target_": "scoreexp.bridge.Betas", "kind": "given", "cumulative": _cumulative(chosen)}
        prediction = _prediction(chosen)
    except (KeyError, IndexError, ValueError) as error:
        raise ForeignModelError(
            f"{path} lacks {str(error)[:80]}, which a network of denoising-diffusion-pytorch has: other networks of that "
            "package are not read"
        ) from error
    convention = {
        "_target_": "scoreexp.bridge.Convention",
        "prediction": prediction,
        "label": {"_target_": "scoreexp.bridge.Step", "betas": betas},
    }
    steps = len(betas["cumulative"])
    grid = {
        "_target_": "scoreexp.bridge.TimestepGrid",
        "steps": min(50, steps),
        "spacing": "trailing",
        "total_steps": steps,
    }
    return ForeignModel(
        "denoising_diffusion_pytorch",
        network,
        convention,
        {"_target_": "scoreexp.bridge.DiscreteVP", "betas": betas},
        (weights["unet.final_conv.weight"].shape[0], *sides),
        None,
        weights,
        {"_target_": "scoreexp.samplers.DDIM", "grid": grid},
        {
            "version": str(held.get("version", "unknown")),
            "weights": "raw" if chosen is online else "averaged",
        },
    )


def _stripped(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _architecture(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ``Unet`` that shapes determine."""
    channels = weights["unet.final_conv.weight"].shape[0]
    init_dim, taken = weights["unet.init_conv.weight"].shape[:2]
    dim = weights["unet.time_mlp.1.weight"].shape[1]
    mults: list[int] = []
    full, heads, widths = [], [], []
    while any(name.startswith(f"unet.downs.{len(mults)}.") for name in weights):
        level = f"unet.downs.{len(mults)}"
        names = (f"{level}.3.1.weight", f"{level}.3.weight")
        down = next((weights[name] for name in names if name in weights), None)
        if down is None:
            raise ValueError(names[1])
        mults.append(down.shape[0] // dim)
        full.append(f"{level}.2.to_out.weight" in weights)
        memory = weights[f"{level}.2.mem_kv"].shape
        heads.append(memory[1])
        widths.append(memory[3] if full[-1] else memory[2])
    if not mults:
        raise ValueError("downs.0")
    return {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": mults,
        "full_attn": full,
        "attn_heads": heads,
        "attn_dim_head": widths,
        "self_condition": taken == 2 * channels,
    }


def _cumulative(state: Mapping[str, Tensor]) -> Sequence[float]:
    """``abar_n`` from its two roots, each of which is exact to a relative 1e-7."""
    signal, noise = (state[f"sqrt_{name}alphas_cumprod"].double() for name in ("", "one_minus_"))
    found: list[float] = (1 / (1 + (noise / signal) ** 2)).tolist()
    return found


def _prediction(state: Mapping[str, Tensor]) -> str:
    """What the loss weight, a buffer, says of the objective, at the step whose signal-to-noise ratio is nearest to 1/2."""
    bars, weight = state["alphas_cumprod"].double(), state["loss_weight"].double()
    snr = bars / (1 - bars)
    step = int((snr - 0.5).abs().argmin())
    distances = {name: abs(float(weight[step]) - law(float(snr[step]))) for name, law in _OBJECTIVES.items()}
    best = min(distances, key=lambda name: distances[name])
    if distances[best] > 1e-3 or not torch.isfinite(weight[step]):
        raise ValueError("loss_weight of a known objective")
    return best
