"""Checkpoints of OpenAI's guided-diffusion and improved-diffusion: a state dict, and the flags of its script."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel
from scoreexp.bridge.inert import state_dict_of
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_MODEL: Mapping[str, Any] = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "num_head_channels": -1, "attention_resolutions": "16,8", "channel_mult": "", "class_cond": False,
    "use_scale_shift_norm": True, "resblock_updown": False, "use_new_attention_order": False, "learn_sigma": False,
    "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False,
}  # fmt: skip
"""Defaults of ``model_and_diffusion_defaults`` in guided-diffusion; those of improved-diffusion rescale their timesteps."""
_NOT_OF_THE_MODEL = {
    "dropout", "use_checkpoint", "use_fp16", "timestep_respacing", "use_kl", "rescale_learned_sigmas", "sigma_small",
    "model_path", "num_samples", "batch_size", "use_ddim", "clip_denoised", "classifier_path", "classifier_scale",
}  # fmt: skip
_MULTIPLIERS: Mapping[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
_BETAS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
_GROUPS = 32
_MOST = 2**14


class _Block(nn.Module):
    """A residual block; the embedding scales and shifts its middle, or shifts it."""

    def __init__(
        self, taken: int, made: int, embedding: int, scales: bool, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.scales, self.resample = scales, resample
        self.in_layers = nn.Sequential(_norm(taken), nn.SiLU(), nn.Conv2d(taken, made, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, made * (2 if scales else 1)))
        self.out_layers = nn.Sequential(
            _norm(made), nn.SiLU(), nn.Identity(), nn.Conv2d(made, made, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if taken == made else nn.Conv2d(taken, made, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, told = conv(h), self.emb_layers(embedding)[:, :, None, None]
        norm, act, _, conv = self.out_layers
        if self.scales:
            scale, shift = told.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        found: Tensor = self.skip_connection(x) + conv(act(h))
        return found


class _Attention(nn.Module):
    """Self-attention over pixels. Channels of ``qkv`` are ordered by head first, or by query, key and value first."""

    def __init__(self, channels: int, heads: int, qkv_first: bool) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels: choose a divisor")
        self.heads, self.qkv_first = heads, qkv_first
        self.norm, self.qkv = _norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(2)
        made = self.qkv(self.norm(pixels))
        if self.qkv_first:
            parts = made.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            parts = made.unflatten(1, (self.heads, 3, -1)).unbind(2)
        q, k, v = (part.transpose(2, 3) for part in parts)
        found = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)
        return (pixels + self.proj_out(found)).reshape(x.shape)


class _Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.op(x)
        return found


class _Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return found


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels)


class OpenAIUNet(nn.Module):
    """The U-Net of guided-diffusion and improved-diffusion as ``F(x, c_noise, cond)``, by the names of their weights.

    References: P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
    https://arxiv.org/abs/2105.05233; A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
    https://arxiv.org/abs/2102.09672.

    >>> network = OpenAIUNet(event_shape=(3, 8, 8), channels=32, multipliers=(1, 2), blocks=1, attention_rates=(2,))
    >>> network(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: of a model with labels, which needs one for every image.
        channels: width in units of which the levels are given; every width is divisible by 32.
        multipliers: width of each level; a half is allowed.
        blocks: residual blocks per level on the way down; there is one more on the way up.
        attention_rates: by how much the levels that attend are smaller than the image.
        heads: of attention.
        heads_up: of attention on the way up.
        head_channels: width of a head, from which their number follows instead; None: as given.
        qkv_first: channels are ordered by query, key and value before head ("new attention order").
        scales: the noise level scales and shifts; False: it shifts.
        resblock_updown: residual blocks resample, without weights; False: convolutions do.
        returns_variance: twice as many channels are made, of which the first half is F.

    Raises:
        ValueError: a width is not divisible by 32, or by its heads.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        channels: PositiveInt = 128,
        multipliers: tuple[float, ...] = (1, 2, 2, 2),
        blocks: PositiveInt = 2,
        attention_rates: tuple[int, ...] = (),
        heads: PositiveInt = 1,
        heads_up: PositiveInt = 1,
        head_channels: PositiveInt | None = None,
        qkv_first: bool = False,
        scales: bool = True,
        resblock_updown: bool = False,
        returns_variance: bool = False,
    ) -> None:
        super().__init__()
        self.image_channels, self.channels, self.num_classes = event_shape[0], channels, num_classes
        self.downsampling_factor = 2 ** (len(multipliers) - 1)
        widths, told = [int(channels * multiplier) for multiplier in multipliers], 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, told), nn.SiLU(), nn.Linear(told, told))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, told)

        def attention(width: int, number: int) -> _Attention:
            if head_channels is not None and width % head_channels:
                raise ValueError(f"head_channels={head_channels} does not divide {width}: choose a divisor")
            return _Attention(width, number if head_channels is None else width // head_channels, qkv_first)

        def parts(taken: int, width: int, level: int, number: int) -> list[nn.Module]:
            block = _Block(taken, width, told, scales)
            return [block, attention(width, number)] if 2**level in attention_rates else [block]

        now, skips = widths[0], [widths[0]]
        down = [nn.ModuleList([nn.Conv2d(event_shape[0], now, 3, padding=1)])]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                down.append(nn.ModuleList(parts(now, width, level, heads)))
                skips.append(now := width)
            if level < len(widths) - 1:
                shrink: nn.Module = (
                    _Block(now, now, told, scales, nn.AvgPool2d(2)) if resblock_updown else _Down(now)
                )
                down.append(nn.ModuleList([shrink]))
                skips.append(now)
        self.input_blocks = nn.ModuleList(down)
        self.middle_block = nn.ModuleList(
            [_Block(now, now, told, scales), attention(now, heads), _Block(now, now, told, scales)]
        )
        up = []
        for level, width in reversed([*enumerate(widths)]):
            for i in range(blocks + 1):
                step = parts(now + skips.pop(), width, level, heads_up)
                now = width
                if level and i == blocks:
                    grow = nn.Upsample(scale_factor=2.0, mode="nearest")
                    step.append(_Block(now, now, told, scales, grow) if resblock_updown else _Up(now))
                up.append(nn.ModuleList(step))
        self.output_blocks = nn.ModuleList(up)
        made = event_shape[0] * (2 if returns_variance else 1)
        self.out = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, made, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F.

        Raises:
            ForeignModelError: a label is missing or given without need.
        """
        if (cond is None) != (self.num_classes is None):
            raise ForeignModelError(
                "the network has no classes but got labels: leave them out"
                if self.num_classes is None
                else f"the network knows images of a class alone: give a label of 0 to {self.num_classes - 1}"
            )
        half = self.channels // 2
        order = torch.arange(half, device=c_noise.device, dtype=torch.float32) / half
        phase = c_noise[:, None].float() * (-math.log(10000) * order).exp()
        embedding = self.time_embed(torch.cat([phase.cos(), phase.sin()], dim=1).to(x))
        if cond is not None:
            embedding = embedding + self.label_emb(cond)
        h, skips = x, []
        for step in self.input_blocks:
            h = _through(step, h, embedding)
            skips.append(h)
        h = _through(self.middle_block, h, embedding)
        for step in self.output_blocks:
            h = _through(step, torch.cat([h, skips.pop()], dim=1), embedding)
        found: Tensor = self.out(h)
        return found[:, : self.image_channels]


def _through(parts: nn.Module, h: Tensor, embedding: Tensor) -> Tensor:
    assert isinstance(parts, nn.ModuleList)
    for part in parts:
        h = part(h, embedding) if isinstance(part, _Block) else part(h)
    return h


def read_openai(held: Any, stated: Mapping[str, Any], path: Path, kind: str) -> ForeignModel:
    """Read ``torch.save(model.state_dict())`` with the flags of its script beside it.

    ``NAME.json`` holds ``{"format": "guided_diffusion", "flags": "--image_size 256 --learn_sigma True ..."}``, as they stand
    on the script's command line, or as an object. Flags that are not given have the defaults of its
    ``model_and_diffusion_defaults``. Of a network with a learned variance only the half that predicts the noise is used.

    Raises:
        ForeignModelError: the flags are missing or unknown.
    """
    state, beside = state_dict_of(held, str(path)), path.with_suffix(".json")
    flags = {
        **_MODEL,
        "rescale_timesteps": kind == "improved_diffusion",
        **_given(stated.get("flags"), beside),
    }
    try:
        first, last = state["input_blocks.0.0.weight"], state["out.2.weight"]
    except KeyError as error:
        raise ForeignModelError(f"{path} has no {error}: it is no model of {kind}") from error
    if first.ndim != 4 or last.ndim != 4:
        raise ForeignModelError(f"{path} has other layers than {kind}: give another format")
    size, steps, width = (flags[name] for name in ("image_size", "diffusion_steps", "num_channels"))
    schedule = flags["noise_schedule"]
    if schedule not in _BETAS:
        raise ForeignModelError(f"{beside}: noise_schedule is {schedule!r}: allowed are {', '.join(_BETAS)}")
    multipliers = _numbers(flags, "channel_mult", beside) or _MULTIPLIERS.get(size)
    if multipliers is None:
        raise ForeignModelError(
            f"{beside}: image_size {size} has no channel_mult of its own: give it, such as 1,2,2"
        )
    attending = _numbers(flags, "attention_resolutions", beside)
    if any(int(width * m) % _GROUPS or not 0 < width * m <= _MOST for m in multipliers) or 0 in attending:
        raise ForeignModelError(
            f"{beside}: num_channels {width} times channel_mult {list(multipliers)} are not widths of {kind}, which divide "
            "by 32: give the flags that the model was trained with"
        )
    heads, heads_up, head = (flags[name] for name in ("num_heads", "num_heads_upsample", "num_head_channels"))
    image = first.shape[1]
    network = {
        "_target_": "scoreexp.bridge.OpenAIUNet",
        "channels": width,
        "multipliers": list(multipliers),
        "blocks": flags["num_res_blocks"],
        "attention_rates": [int(size // resolution) for resolution in attending],
        "heads": heads,
        "heads_up": heads if heads_up == -1 else heads_up,
        "head_channels": None if head == -1 else head,
        "qkv_first": flags["use_new_attention_order"],
        "scales": flags["use_scale_shift_norm"],
        "resblock_updown": flags["resblock_updown"],
        "returns_variance": flags["learn_sigma"],
    }
    labels = state.get("label_emb.weight")
    if (labels is not None) != flags["class_cond"] or last.shape[0] != image * (1 + flags["learn_sigma"]):
        raise ForeignModelError(
            f"{path} makes {last.shape[0]} channels of {image} {'with' if labels is not None else 'without'} labels: flags "
            f"are learn_sigma={flags['learn_sigma']}, class_cond={flags['class_cond']}: correct {beside.name}"
        )
    # its scripts keep the range of beta from 1e-4 to 0.02 at 1000 steps, and stretch it at others
    betas = {"_target_": "scoreexp.bridge.Betas", "kind": _BETAS[schedule], "steps": steps, "double": True}
    if schedule == "linear":
        betas |= {"start": 0.1 / steps, "end": 20.0 / steps}
    label = {"_target_": "scoreexp.bridge.Step", "betas": betas}
    if flags["rescale_timesteps"] and steps != 1000:
        label["scale"] = 1000.0 / steps
    convention = {
        "_target_": "scoreexp.bridge.Convention",
        "prediction": "sample" if flags["predict_xstart"] else "epsilon",
        "label": label,
    }
    return ForeignModel(
        kind,
        network,
        convention,
        {"_target_": "scoreexp.bridge.DiscreteVP", "betas": betas},
        (image, size, size),
        None if labels is None else labels.shape[0],
        state,
        details={"variance": "learned, not used" if flags["learn_sigma"] else "fixed"},
    )


def _given(stated: Any, beside: Path) -> dict[str, Any]:
    """The flags of the model, of the types of their defaults.

    >>> _given("--image_size 32 --learn_sigma True --use_fp16 True", Path("a.json"))
    {'image_size': 32, 'learn_sigma': True}
    """
    if isinstance(stated, str):
        try:
            words = shlex.split(stated.replace("=", " "))
        except ValueError as error:
            raise ForeignModelError(f"{beside}: flags are {stated[:80]!r}: {error}") from error
        if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
            raise ForeignModelError(
                f"{beside}: flags are {stated[:80]!r}: allowed is such as --image_size 64"
            )
        stated = {name[2:]: value for name, value in zip(words[::2], words[1::2])}
    if not isinstance(stated, dict):
        raise ForeignModelError(
            f'{beside} has no flags: write {{"format": "guided_diffusion", "flags": "--image_size 256 --learn_sigma True '
            '..."}, those of the script that trained it, or improved_diffusion as the format'
        )
    found = {}
    for name, value in stated.items():
        if name in _NOT_OF_THE_MODEL:
            continue
        if name not in _MODEL:
            raise ForeignModelError(
                f"{beside}: the flag {name[:40]} is unknown: known are {', '.join(_MODEL)}"
            )
        found[name] = _typed(name, value, beside)
    return found


def _typed(name: str, value: Any, beside: Path) -> Any:
    usual, text = _MODEL[name], str(value).strip()
    if isinstance(usual, str):
        return text
    if isinstance(usual, bool):
        truths = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in truths:
            return truths[text.lower()]
        allowed = "True and False"
    else:
        if (text.isdecimal() and 0 < int(text[:9]) <= _MOST and len(text) < 9) or (
            text == "-1" and usual == -1
        ):
            return int(text)
        allowed = f"whole numbers of 1 to {_MOST}"
    raise ForeignModelError(f"{beside}: {name} is {text[:40]!r}: allowed are {allowed}")


def _numbers(flags: Mapping[str, Any], name: str, beside: Path) -> Sequence[float]:
    words = flags[name].split(",") if flags[name] else []
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = [math.nan]
    if not all(0 < number <= _MOST for number in found):
        raise ForeignModelError(f"{beside}: {name} is {flags[name][:40]!r}: allowed is such as 16,8")
    return found
