"""Network pickles of EDM: the averaged network of a ``network-snapshot-*.pkl``, without running the source in it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel
from scoreexp.bridge.inert import Inert
from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_KINDS = {"SongUNet": "song", "DhariwalUNet": "adm"}
_KNOWN = {
    "model_channels": "channels", "channel_mult": "multipliers", "channel_mult_emb": "embedding_multiplier",
    "num_blocks": "blocks", "attn_resolutions": "attention_resolutions", "embedding_type": "embedding",
    "channel_mult_noise": "noise_multiplier", "encoder_type": "encoder", "decoder_type": "decoder",
    "resample_filter": "taps",
}  # fmt: skip
_USUAL = {
    "song": {"channels": 128, "multipliers": [1, 2, 2, 2], "blocks": 4, "attention_resolutions": [16]},
    "adm": {"channels": 192, "multipliers": [1, 2, 3, 4], "blocks": 3, "attention_resolutions": [32, 16, 8]},
}
_TRAINING_ONLY = ("dropout", "label_dropout", "augment_dim", "model_type", "use_fp16")
_MOST = 2**16


class _Resample(nn.Module):
    """Half or twice the size through a separable filter, on each channel by itself."""

    kernel: Tensor

    def __init__(self, taps: tuple[float, ...], up: bool) -> None:
        super().__init__()
        row = torch.tensor(taps)
        self.register_buffer("kernel", torch.outer(row, row) / row.sum() ** 2, persistent=False)
        self.up, self.padding = up, (len(taps) - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernels = self.kernel.expand(channels, 1, *self.kernel.shape)
        if self.up:
            return F.conv_transpose2d(x, 4 * kernels, stride=2, padding=self.padding, groups=channels)
        return F.conv2d(x, kernels, stride=2, padding=self.padding, groups=channels)


class _ShrinkingConv(nn.Conv2d):
    """A 3 x 3 convolution, then a filter of stride 2, with the padding of both before them; the bias last."""

    def __init__(self, taken: int, returned: int, taps: tuple[float, ...]) -> None:
        super().__init__(taken, returned, 3)
        self.shrink = _Resample(taps, up=False)

    def forward(self, x: Tensor) -> Tensor:
        inside = 1 + self.shrink.padding
        h = F.conv2d(x, self.weight, padding=inside)
        kernels = self.shrink.kernel.expand(h.shape[1], 1, *self.shrink.kernel.shape)
        h = F.conv2d(h, kernels, stride=2, groups=h.shape[1])
        return h if self.bias is None else h + self.bias[:, None, None]


class _Block(nn.Module):
    """A residual block with attention behind it where asked; the noise level shifts, or scales and shifts, its middle."""

    def __init__(
        self,
        taken: int,
        returned: int,
        embedding: int,
        *,
        song: bool,
        attends: bool = False,
        resample: _Resample | None = None,
    ) -> None:
        super().__init__()
        eps = 1e-6 if song else 1e-5

        def norm(channels: int) -> nn.GroupNorm:
            return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=eps)

        self.taken, self.song = taken, song
        self.resample = resample
        self.norm0, self.norm1 = norm(taken), norm(returned)
        self.conv0 = nn.Conv2d(taken, returned, 3, padding=1)
        self.affine = nn.Linear(embedding, returned * (1 if song else 2))
        self.conv1 = nn.Conv2d(returned, returned, 3, padding=1)
        projects = taken != returned or (resample is not None and song)
        self.skip = nn.Conv2d(taken, returned, 1) if projects else None
        self.heads = 0 if not attends else 1 if song else returned // 64
        if self.heads:
            self.norm2 = norm(returned)
            self.qkv, self.proj = nn.Conv2d(returned, 3 * returned, 1), nn.Conv2d(returned, returned, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        change = nn.Identity() if self.resample is None else self.resample
        h = self.conv0(change(F.silu(self.norm0(x))))
        told = self.affine(embedding)[:, :, None, None]
        if self.song:
            h = F.silu(self.norm1(h + told))
        else:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(self.norm1(h) * (1 + scale) + shift)
        around = change(x) if self.skip is None else self.skip(change(x))
        factor = math.sqrt(0.5) if self.song else 1.0
        h = factor * (self.conv1(h) + around)
        return factor * (h + self._attended(h)) if self.heads else h

    def _attended(self, h: Tensor) -> Tensor:
        batch, channels, height, width = h.shape
        # in the file channels are ordered by head, then by coordinate, then query, key, value
        parts = self.qkv(self.norm2(h)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        q, k, v = (part.transpose(2, 3) for part in parts.unbind(3))
        found = F.scaled_dot_product_attention(q, k, v)
        return self.proj(found.transpose(2, 3).reshape(batch, channels, height, width))


class EDMNetwork(nn.Module):
    """The networks of EDM, ``song`` (DDPM++ and NCSN++) and ``adm``, by the names of their weights.

    References:
        T. Karras, M. Aittala, T. Aila, S. Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
        https://arxiv.org/abs/2206.00364, appendix F;
        Y. Song et al., 2021, https://arxiv.org/abs/2011.13456; P. Dhariwal, A. Nichol, "Diffusion Models Beat GANs on Image
        Synthesis", 2021, https://arxiv.org/abs/2105.05233.

    >>> network = EDMNetwork(event_shape=(3, 8, 8), channels=8, multipliers=(1, 2), blocks=1)
    >>> network(torch.zeros(1, 3, 8, 8), torch.zeros(1)).shape
    torch.Size([1, 3, 8, 8])

    Args:
        event_shape: (C, H, W) of one image, H the size that it was trained on.
        num_classes: of a model with labels; without a label it gets a row of zeros.
        kind: ``song`` or ``adm``.
        channels: width at full resolution.
        multipliers: width of each level in units of ``channels``.
        embedding_multiplier: width of the conditioning vector in the same units.
        blocks: residual blocks per level on the way down; there is one more on the way up.
        attention_resolutions: heights of the levels that attend.
        embedding: features of c_noise: geometric frequencies or Gaussian ones.
        noise_multiplier: number of features in units of ``channels``.
        encoder: how the shrunk image enters each level.
        decoder: ``skip``: every level adds to the output.
        taps: of the filter that resamples.
        returns_variance: twice as many channels are made, of which the first half is F.
        augmentations: parameters of the augmentation that the network was told of in training; none when sampling.
    """

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        kind: Literal["song", "adm"] = "song",
        channels: PositiveInt = 128,
        multipliers: tuple[PositiveInt, ...] = (1, 2, 2, 2),
        embedding_multiplier: PositiveInt = 4,
        blocks: PositiveInt = 4,
        attention_resolutions: tuple[int, ...] = (16,),
        embedding: Literal["positional", "fourier"] = "positional",
        noise_multiplier: PositiveInt = 1,
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        taps: tuple[float, ...] = (1, 1),
        returns_variance: bool = False,
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        image, resolution = event_shape[0], event_shape[1]
        returned = image * (2 if returns_variance else 1)
        self.image_channels, self.num_classes, self.kind = image, num_classes, kind
        self.downsampling_factor = 2 ** (len(multipliers) - 1)
        song, width = kind == "song", embedding_multiplier * channels
        features = noise_multiplier * channels

        self.map_noise = _Frequencies(features) if embedding == "fourier" else None
        self.features = features
        self.map_label = None
        if num_classes is not None:
            self.map_label = nn.Linear(num_classes, features if song else width, bias=song)
        self.map_augment = nn.Linear(augmentations, features, bias=False) if augmentations else None
        self.map_layer0, self.map_layer1 = nn.Linear(features, width), nn.Linear(width, width)

        def block(taken: int, made: int, attends: bool = False, resample: _Resample | None = None) -> _Block:
            return _Block(taken, made, width, song=song, attends=attends, resample=resample)

        size = [f"{resolution >> level}x{resolution >> level}" for level in range(len(multipliers))]
        attends = [resolution >> level in attention_resolutions for level in range(len(multipliers))]
        now = channels if song else channels * multipliers[0]
        pyramid, skips = image, [now]
        self.enc = nn.ModuleDict({f"{size[0]}_conv": nn.Conv2d(image, now, 3, padding=1)})
        for level, multiplier in enumerate(multipliers):
            if level:
                self.enc[f"{size[level]}_down"] = block(now, now, resample=_Resample(taps, up=False))
                if encoder == "skip":
                    self.enc[f"{size[level]}_aux_down"] = _Resample(taps, up=False)
                    self.enc[f"{size[level]}_aux_skip"] = nn.Conv2d(image, now, 1)
                elif encoder == "residual":
                    self.enc[f"{size[level]}_aux_residual"] = _ShrinkingConv(pyramid, now, taps)
                    pyramid = now
                skips.append(now)
            for i in range(blocks):
                self.enc[f"{size[level]}_block{i}"] = block(now, channels * multiplier, attends[level])
                now = channels * multiplier
                skips.append(now)
        self.dec = nn.ModuleDict()
        for level, multiplier in reversed([*enumerate(multipliers)]):
            if level == len(multipliers) - 1:
                self.dec[f"{size[level]}_in0"] = block(now, now, attends=True)
                self.dec[f"{size[level]}_in1"] = block(now, now)
            else:
                self.dec[f"{size[level]}_up"] = block(now, now, resample=_Resample(taps, up=True))
            for i in range(blocks + 1):
                here = attends[level] and (i == blocks or not song)
                self.dec[f"{size[level]}_block{i}"] = block(now + skips.pop(), channels * multiplier, here)
                now = channels * multiplier
            if song and (decoder == "skip" or level == 0):
                if level < len(multipliers) - 1 and decoder == "skip":
                    self.dec[f"{size[level]}_aux_up"] = _Resample(taps, up=True)
                self.dec[f"{size[level]}_aux_norm"] = nn.GroupNorm(max(1, min(32, now // 4)), now, eps=1e-6)
                self.dec[f"{size[level]}_aux_conv"] = nn.Conv2d(now, returned, 3, padding=1)
        if not song:
            self.out_norm = nn.GroupNorm(max(1, min(32, now // 4)), now, eps=1e-5)
            self.out_conv = nn.Conv2d(now, returned, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Evaluate F."""
        embedding = self._embedded(c_noise, cond)
        h, pyramid = x, x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                pyramid = layer(pyramid)
            elif name.endswith("aux_skip"):
                h = skips[-1] = h + layer(pyramid)
            elif name.endswith("aux_residual"):
                h = pyramid = skips[-1] = math.sqrt(0.5) * (h + layer(pyramid))
            else:
                h = layer(h, embedding) if isinstance(layer, _Block) else layer(h)
                skips.append(h)
        image: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                part = layer(h)
            elif name.endswith("aux_conv"):
                part = layer(F.silu(part))
                image = part if image is None else image + part
            else:
                assert isinstance(layer, _Block)
                joined = h if h.shape[1] == layer.taken else torch.cat([h, skips.pop()], dim=1)
                h = layer(joined, embedding)
        if self.kind == "adm":
            image = self.out_conv(F.silu(self.out_norm(h)))
        assert image is not None
        return image[:, : self.image_channels]

    def _embedded(self, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        song = self.kind == "song"
        if self.map_noise is not None:
            phase = 2 * math.pi * c_noise[:, None] * self.map_noise.freqs
        else:
            half = self.features // 2
            order = torch.arange(half, device=c_noise.device, dtype=torch.float32) / (half - song)
            phase = c_noise[:, None] * (1 / 10000) ** order
        waves = [phase.sin(), phase.cos()] if song else [phase.cos(), phase.sin()]
        embedding = torch.cat(waves, dim=1)
        label = None
        if self.map_label is not None:
            shape = (c_noise.shape[0], self.map_label.in_features)
            rows = c_noise.new_zeros(shape) if cond is None else F.one_hot(cond, shape[1]).to(c_noise)
            label = self.map_label(rows * math.sqrt(shape[1]) if song else rows)
        if label is not None and song:
            embedding = embedding + label
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        return F.silu(embedding if label is None or song else embedding + label)


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(features // 2))


def read_edm(held: Any, path: Path) -> ForeignModel:
    """Read ``{"ema": network, ...}``, or a network alone.

    Raises:
        ForeignModelError: it is a pickle of something else, or of an unknown preconditioning.
    """
    found = held.get("ema") if isinstance(held, dict) and "ema" in held else held
    kind, state = _persistent(found, path)
    arguments = _mapping(state.get("_init_kwargs"))
    _, inner = _persistent(_mapping(state.get("_modules")).get("model"), path)
    unet = str(
        arguments.get("model_type", "DhariwalUNet" if kind in ("EDMPrecond", "iDDPMPrecond") else "SongUNet")
    )
    if unet not in _KINDS:
        raise ForeignModelError(f"{path}: its network is {unet}: allowed are {', '.join(_KINDS)}")
    channels, side, classes = (
        arguments.get(key, 0) for key in ("img_channels", "img_resolution", "label_dim")
    )
    network = _arguments(arguments, _KINDS[unet], path)
    weights = _tensors(inner, "")
    if (told := weights.get("map_augment.weight")) is not None:
        network["augmentations"] = told.shape[1]
    network["returns_variance"] = kind == "iDDPMPrecond"
    numbers = [channels, side, network["channels"], network["blocks"], *network["multipliers"]]
    if not all(isinstance(n, int) and 0 < n <= _MOST for n in numbers) or not isinstance(classes, int):
        raise ForeignModelError(
            f"{path} states sizes that no network has: it is not a pickle of EDM, download it again"
        )
    precond, schedule = _convention(kind, arguments, state, path)
    return ForeignModel(
        "edm",
        {"_target_": "scoreexp.bridge.EDMNetwork", **network},
        precond,
        schedule,
        (channels, side, side),
        classes or None,
        {name: tensor for name, tensor in weights.items() if not name.endswith("resample_filter")},
        {
            "_target_": "scoreexp.samplers.Heun",
            "grid": {"_target_": "scoreexp.samplers.KarrasGrid", "steps": 18},
        },
        {"precond": kind},
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """A dictionary, or the contents of a class derived from it."""
    inner = value.state if isinstance(value, Inert) else value
    return inner if isinstance(inner, dict) else {}


def _persistent(value: Any, path: Path) -> tuple[str, Mapping[str, Any]]:
    """Class name and attributes of an object that carries its source."""
    if (
        isinstance(value, Inert)
        and value.name.endswith("persistence._reconstruct_persistent_obj")
        and value.args
    ):
        meta = _mapping(value.args[0])
        if isinstance(meta.get("class_name"), str):
            return meta["class_name"], _mapping(meta.get("state"))
    kind = value.name if isinstance(value, Inert) else type(value).__name__
    raise ForeignModelError(
        f"{path} holds a {kind[:80]}, not a network of EDM: give its network-snapshot-*.pkl"
    )


def _tensors(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers of a module and of those inside it, by their dotted names."""
    found: dict[str, Tensor] = {}
    for group in ("_parameters", "_buffers"):
        for name, tensor in _mapping(state.get(group)).items():
            if isinstance(tensor, Tensor):
                found[f"{prefix}{name}"] = tensor
    for name, module in _mapping(state.get("_modules")).items():
        if len(prefix) > 200:
            raise ForeignModelError("its modules are nested too deep: it is not a network of EDM")
        if isinstance(module, Inert):
            held = _mapping(module.args[0]).get("state") if module.args and not module.state else module.state
            found |= _tensors(_mapping(held), f"{prefix}{name}.")
    return found


def _arguments(arguments: Mapping[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """The network's arguments under our names."""
    sizes, levels = ("img_resolution", "img_channels", "label_dim"), ("sigma_min", "sigma_max", "sigma_data")
    own = {*_TRAINING_ONLY, *sizes, *levels, "beta_d", "beta_min", "M", "epsilon_t", "C_1", "C_2"}
    unknown = [key for key in arguments if key not in _KNOWN and key not in own]
    if unknown:
        raise ForeignModelError(
            f"{path} has an argument {unknown[0]!r} that is not known: it is of another version of EDM"
        )
    given = {_KNOWN[key]: value for key, value in arguments.items() if key in _KNOWN}
    found: dict[str, Any] = {"kind": kind, **_USUAL[kind], **given}
    for key in ("multipliers", "attention_resolutions", "taps"):
        if key in found and not isinstance(found[key], list | tuple):
            raise ForeignModelError(
                f"{path}: {key} is {found[key]!r}: it is not a pickle of EDM, download it again"
            )
        if key in found:
            found[key] = list(found[key])
    return found


def _convention(
    kind: str, arguments: Mapping[str, Any], state: Mapping[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Preconditioning and schedule: sigma is the time, the image has scale 1."""

    def number(key: str, usual: float) -> float:
        value = arguments.get(key, usual)
        if not isinstance(value, int | float):
            raise ForeignModelError(
                f"{path}: {key} is {value!r}: it is not a pickle of EDM, download it again"
            )
        return float(value)

    def levels(low: float, high: float) -> dict[str, Any]:
        return {"_target_": "scoreexp.schedules.EDM", "sigma_min": low, "sigma_max": high}

    convention: dict[str, Any] = {"_target_": "scoreexp.bridge.Convention"}
    if kind == "EDMPrecond":
        low, high = max(number("sigma_min", 0.0), 0.002), min(number("sigma_max", math.inf), 80.0)
        data = number("sigma_data", 0.5)
        return {"_target_": "scoreexp.denoisers.EDMPrediction", "sigma_data": data}, levels(low, high)
    if kind == "VEPrecond":
        label = {"_target_": "scoreexp.bridge.LogLevel", "scale": 1.0, "unit": 0.5}
        low, high = number("sigma_min", 0.02), number("sigma_max", 100.0)
        return {**convention, "prediction": "scaled_score", "label": label}, levels(low, high)
    if kind == "VPPrecond":
        slope, start = number("beta_d", 19.9), number("beta_min", 0.1)
        label = {
            "_target_": "scoreexp.bridge.VPTime",
            "beta_min": start,
            "beta_max": start + slope,
            "scale": number("M", 1000) - 1,
        }
        low, high = (
            math.sqrt(math.expm1(0.5 * slope * t**2 + start * t)) for t in (number("epsilon_t", 1e-5), 1.0)
        )
        return {**convention, "prediction": "epsilon", "label": label, "scaled": True}, levels(low, high)
    if kind == "iDDPMPrecond":
        table = _mapping(state.get("_buffers")).get("u")
        if not isinstance(table, Tensor) or table.ndim != 1 or len(table) < 3:
            raise ForeignModelError(
                f"{path} has no table of noise levels: it is not a pickle of EDM, download it again"
            )
        u = table.double()[:-1].flip(0)  # the last entry is no noise at all
        betas = {
            "_target_": "scoreexp.bridge.Betas",
            "kind": "given",
            "cumulative": (1 / (1 + u**2)).tolist(),
        }
        label = {"_target_": "scoreexp.bridge.Step", "betas": betas, "rounded": True}
        found = {**convention, "prediction": "epsilon", "label": label, "scaled": True}
        return found, levels(float(u[0]), float(u[-1]))
    known = "EDMPrecond, VEPrecond, VPPrecond and iDDPMPrecond"
    raise ForeignModelError(f"{path}: its preconditioning is {kind[:60]}: allowed are {known}")
