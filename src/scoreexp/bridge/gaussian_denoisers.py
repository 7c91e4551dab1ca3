"""Denoisers of white Gaussian noise: FFDNet and DRUNet, for a range of noise levels, and DnCNN, for one."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.bridge.errors import ForeignModelError
from scoreexp.bridge.foreign import ForeignModel
from scoreexp.bridge.inert import state_dict_of
from scoreexp.core.checked import checked
from scoreexp.core.ranges import sigma_to_model, to_model, to_unit
from scoreexp.core.types import AtLeastTwo, PositiveInt

_BATCH_NORM_EPS = 1e-5


class FFDNet(nn.Module):
    r"""FFDNet as a network ``F(x, c_noise, cond)`` of images in [-1, 1]; c_noise is sigma in units of [0, 1].

    The image is cut into four of half the size, which go through the network beside a constant map of sigma; a side of odd
    length is continued by its last row. The output of the published network is the noise.

    Reference: K. Zhang, W. Zuo, L. Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising", 2018,
    https://arxiv.org/abs/1710.04026.

    >>> network = FFDNet(event_shape=(1, 8, 8), layers=3, width=8)
    >>> network(torch.zeros(1, 1, 7, 9), torch.tensor([0.1])).shape
    torch.Size([1, 1, 7, 9])

    Args:
        event_shape: (C, H, W); H and W are free.
        num_classes: none; given where models are built.
        layers: convolutions: 15 for grey images, 12 for colour.
        width: channels between them: 64 and 96.
        bias: of the inner convolutions.
        batch_norm: after the inner convolutions.
        map_last: one map of sigma behind the four images (KAIR), instead of one for each channel before them (IPOL); KAIR's
            network returns the image itself.
    """

    downsampling_factor = 1

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        layers: AtLeastTwo = 15,
        width: PositiveInt = 64,
        bias: bool = False,
        batch_norm: bool = True,
        map_last: bool = False,
    ) -> None:
        super().__init__()
        channels = event_shape[0]
        self.map_last = map_last
        taken = 4 * channels + (1 if map_last else channels)
        self.body = _convolutions(taken, 4 * channels, layers, width, bias, batch_norm, ends_bias=bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The estimate of the clean image, in [-1, 1]."""
        height, width = x.shape[-2:]
        image = F.pad(to_unit(x), (0, width % 2, 0, height % 2), mode="replicate")
        parts = F.pixel_unshuffle(image, 2)
        level = (
            c_noise[:, None, None, None]
            .to(x)
            .expand(-1, 1 if self.map_last else x.shape[1], *parts.shape[-2:])
        )
        output = F.pixel_shuffle(
            self.body(torch.cat([parts, level] if self.map_last else [level, parts], dim=1)), 2
        )
        clean = output if self.map_last else image - output
        return to_model(clean[..., :height, :width])


class DnCNN(nn.Module):
    r"""DnCNN as a network ``F(x, c_noise, cond)`` of images in [-1, 1], whose output is the clean image.

    Reference: K. Zhang, W. Zuo, Y. Chen, D. Meng, L. Zhang, "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for
    Image Denoising", 2017, https://arxiv.org/abs/1608.03981.

    >>> DnCNN(event_shape=(1, 8, 8), layers=3, width=8)(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape
    torch.Size([1, 1, 8, 8])

    Args:
        event_shape: (C, H, W); H and W are free.
        num_classes: none; given where models are built.
        layers: convolutions: 17, or 20 for a range of noise levels.
        width: channels between them.
        bias: of the inner convolutions.
        batch_norm: after the inner convolutions; its epsilon is taken from the file where it differs.
        ends_bias: of the first and the last convolution.
        padding: what lies outside an image: ``zeros``, or its other side (``circular``, scico).
        eps: of the normalisation.
    """

    downsampling_factor = 1

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        layers: AtLeastTwo = 17,
        width: PositiveInt = 64,
        bias: bool = True,
        batch_norm: bool = True,
        ends_bias: bool = True,
        padding: Literal["zeros", "circular"] = "zeros",
        eps: float = _BATCH_NORM_EPS,
    ) -> None:
        super().__init__()
        channels = event_shape[0]
        self.body = _convolutions(
            channels, channels, layers, width, bias, batch_norm, ends_bias, padding, eps
        )

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The estimate of the clean image, in [-1, 1]."""
        image = to_unit(x)
        return to_model(image - self.body(image))


class DRUNet(nn.Module):
    r"""DRUNet as a network ``F(x, c_noise, cond)`` of images in [-1, 1]; c_noise is sigma in units of [0, 1].

    A U-Net of four levels without normalisation, which takes the image and a constant map of sigma and returns the clean
    image. Sides that 8 does not divide are continued by their last row and column.

    Reference: K. Zhang, Y. Li, W. Zuo, L. Zhang, L. Van Gool, R. Timofte, "Plug-and-Play Image Restoration with Deep
    Denoiser Prior", 2021, https://arxiv.org/abs/2008.13751.

    >>> network = DRUNet(event_shape=(1, 8, 8), widths=(4, 4, 8, 8), blocks=1)
    >>> network(torch.zeros(1, 1, 7, 9), torch.tensor([0.1])).shape
    torch.Size([1, 1, 7, 9])

    Args:
        event_shape: (C, H, W); H and W are free.
        num_classes: none; given where models are built.
        widths: channels of the four levels.
        blocks: residual blocks of each level, on the way down and on the way up.
        bias: of all convolutions.
    """

    downsampling_factor = 1

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (64, 128, 256, 512),
        blocks: PositiveInt = 4,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths has {len(widths)} levels: DRUNet has 4")

        def residual(width: int) -> list[nn.Module]:
            return [_PlainResidual(width, bias) for _ in range(blocks)]

        channels = event_shape[0]
        self.m_head = nn.Conv2d(channels + 1, widths[0], 3, padding=1, bias=bias)
        for i in range(3):
            shrink = nn.Conv2d(widths[i], widths[i + 1], 2, stride=2, bias=bias)
            grow = nn.ConvTranspose2d(widths[i + 1], widths[i], 2, stride=2, bias=bias)
            self.add_module(f"m_down{i + 1}", nn.Sequential(*residual(widths[i]), shrink))
            self.add_module(f"m_up{i + 1}", nn.Sequential(grow, *residual(widths[i])))
        # as in the files: a single block stands without a number
        self.m_body = residual(widths[3])[0] if blocks == 1 else nn.Sequential(*residual(widths[3]))
        self.m_tail = nn.Conv2d(widths[0], channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The estimate of the clean image, in [-1, 1]."""
        height, width = x.shape[-2:]
        level = c_noise[:, None, None, None].to(x).expand(-1, 1, height, width)
        h = F.pad(torch.cat([to_unit(x), level], dim=1), (0, -width % 8, 0, -height % 8), mode="replicate")
        skips = [self.m_head(h)]
        for i in range(3):
            skips.append(self.get_submodule(f"m_down{i + 1}")(skips[-1]))
        h = self.m_body(skips[-1])
        for i in reversed(range(3)):
            h = self.get_submodule(f"m_up{i + 1}")(h + skips.pop())
        found: Tensor = self.m_tail(h + skips.pop())
        return to_model(found[..., :height, :width])


class _PlainResidual(nn.Module):
    """Two convolutions with a ReLU between them, added to their input."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        first, second = (nn.Conv2d(width, width, 3, padding=1, bias=bias) for _ in range(2))
        self.res = nn.Sequential(first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.res(x)
        return found


def _convolutions(
    taken: int,
    returned: int,
    layers: int,
    width: int,
    bias: bool,
    batch_norm: bool,
    ends_bias: bool,
    padding: Literal["zeros", "circular"] = "zeros",
    eps: float = _BATCH_NORM_EPS,
) -> nn.Sequential:
    """Convolutions of 3 x 3 with ReLU between them; the first and the last without normalisation."""

    def conv(inner: int, outer: int, biased: bool) -> nn.Conv2d:
        return nn.Conv2d(inner, outer, 3, padding=1, bias=biased, padding_mode=padding)

    parts: list[nn.Module] = [conv(taken, width, ends_bias), nn.ReLU()]
    for _ in range(layers - 2):
        parts.append(conv(width, width, bias))
        if batch_norm:
            parts.append(nn.BatchNorm2d(width, eps=eps))
        parts.append(nn.ReLU())
    return nn.Sequential(*parts, conv(width, returned, ends_bias))


def read_gaussian_denoiser(held: Any, stated: Mapping[str, Any], path: Path, kind: str) -> ForeignModel:
    """Read the weights of an FFDNet, a DnCNN or a DRUNet; widths and depth follow from their shapes.

    Of FFDNet and DnCNN convolutions and normalisations count in the order in which they are stored, whatever their names.
    ``"sigma_range": [0.004, 0.3]`` beside an FFDNet or a DRUNet states the noise levels that it knows. A DnCNN knows one
    noise level, which its file does not hold: ``{"format": "dncnn", "sigma": 0.098}`` beside it, in units of [0, 1].

    Raises:
        ForeignModelError: its layers are others, or the noise level is not stated.
    """
    state = state_dict_of(held, str(path))
    if kind == "drunet":
        return _drunet(state, stated, path)
    weights, layers = _in_order(state, path)
    first, last = layers[0], layers[-1]
    channels = last[0] // 4 if kind == "ffdnet" else last[0]
    allowed = (5 * channels, 4 * channels + 1) if kind == "ffdnet" else (channels,)
    if first[1] not in allowed or channels < 1:
        raise ForeignModelError(
            f"{path} has layers {first} to {last}: they are not those of {kind}; give another format"
        )
    network = {
        "_target_": f"scoreexp.bridge.{'FFDNet' if kind == 'ffdnet' else 'DnCNN'}",
        "layers": len(layers),
        "width": first[0],
        "bias": "body.2.bias" in weights,
        "batch_norm": "body.3.running_mean" in weights,
    }
    size = stated.get("image_size", 256)
    shape = (channels, size, size)
    if kind == "ffdnet":
        network["map_last"] = first[1] != 5 * channels or not any(
            "intermediate_dncnn" in name for name in state
        )
        label, schedule = _range(stated, 75 / 255, path)
    else:
        network["ends_bias"] = "body.0.bias" in weights
        network["padding"] = stated.get("padding", "zeros")
        eps = stated.get("eps", _BATCH_NORM_EPS)
        if not (isinstance(eps, float) and 0 < eps < 1):
            raise ForeignModelError(
                f"{path.with_suffix('.json')}: eps is {str(eps)[:60]!r}: allowed is such as 1e-5"
            )
        network["eps"] = eps
        sigma = stated.get("sigma")
        if not (isinstance(sigma, float) and 0 < sigma < math.inf):
            raise ForeignModelError(
                f'{path} does not say its noise level: write {{"format": "dncnn", "sigma": 0.098}}, in units of [0, 1], to '
                f"{path.with_suffix('.json').name} beside it"
            )
        label = {"_target_": "scoreexp.bridge.SigmaLabel"}
        schedule = {"_target_": "scoreexp.schedules.ConstantNoise", "sigma": sigma_to_model(sigma)}
    return _denoiser(kind, network, label, schedule, shape, weights)


def _drunet(state: Mapping[str, Tensor], stated: Mapping[str, Any], path: Path) -> ForeignModel:
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    names = [f"m_down{i}" for i in (1, 2, 3)]
    try:
        # behind the residual blocks of a level stands the convolution that halves the size
        blocks = max(int(name.split(".")[1]) for name in weights if name.startswith("m_down1."))
        levels = [weights[f"{name}.{blocks}.weight"] for name in names]
        head = weights["m_head.weight"]
    except (KeyError, ValueError, IndexError) as error:
        raise ForeignModelError(f"{path} has no {str(error)[:60]}: it is no DRUNet") from error
    if (
        head.ndim != 4
        or any(level.ndim != 4 or level.shape[-1] != 2 for level in levels)
        or head.shape[1] < 2
    ):
        raise ForeignModelError(
            f"{path} does not halve its sizes by convolutions of stride 2: other DRUNets are not read"
        )
    channels, size = head.shape[1] - 1, stated.get("image_size", 256)
    network = {
        "_target_": "scoreexp.bridge.DRUNet",
        "widths": [head.shape[0], *(level.shape[0] for level in levels)],
        "blocks": blocks,
        "bias": "m_head.bias" in weights,
    }
    label, schedule = _range(stated, 50 / 255, path)
    return _denoiser("drunet", network, label, schedule, (channels, size, size), weights)


def _range(stated: Mapping[str, Any], highest: float, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Label and schedule of a denoiser that is told sigma in units of [0, 1]."""
    low, high = _levels(stated.get("sigma_range", [1 / 255, highest]), path)
    label = {"_target_": "scoreexp.bridge.SigmaLabel", "scale": 1 / sigma_to_model(1.0)}
    return label, {"_target_": "scoreexp.schedules.EDM", "sigma_min": low, "sigma_max": high}


def _denoiser(
    kind: str,
    network: Mapping[str, Any],
    label: Mapping[str, Any],
    schedule: Mapping[str, Any],
    shape: tuple[int, ...],
    weights: Mapping[str, Tensor],
) -> ForeignModel:
    convention = {"_target_": "scoreexp.bridge.Convention", "prediction": "sample", "label": label}
    once = {
        "_target_": "scoreexp.samplers.UniformGrid",
        "steps": 1,
    }  # the posterior mean, for which it was trained
    sampler = {"_target_": "scoreexp.samplers.DDIM", "grid": once}
    return ForeignModel(kind, network, convention, schedule, shape, None, weights, sampler)


def _levels(stated: Any, path: Path) -> tuple[float, float]:
    if (
        isinstance(stated, list)
        and len(stated) == 2
        and all(isinstance(n, float) and 0 < n < math.inf for n in stated)
    ):
        low, high = (sigma_to_model(level) for level in stated)
        return low, high
    raise ForeignModelError(
        f"{path.with_suffix('.json')}: sigma_range is {stated!r}: allowed is such as [0.004, 0.3]"
    )


def _in_order(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """The weights by the names of ``_convolutions``, and (out, in) of each convolution."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        owner, _, leaf = re.sub(r"^module\.", "", name).rpartition(".")
        if leaf != "num_batches_tracked":
            parts.setdefault(owner, {})[leaf] = tensor
    renamed: dict[str, Tensor] = {}
    layers: list[tuple[int, int]] = []
    position = 0
    for owner, tensors in parts.items():
        weight = tensors.get("weight")
        if weight is not None and weight.ndim == 4 and weight.shape[-2:] == (3, 3):
            position = (
                0 if not layers else position + (2 if position == 0 or not _is_norm(renamed, position) else 1)
            )
            layers.append((weight.shape[0], weight.shape[1]))
        elif "running_mean" in tensors:
            position += 1
            renamed[f"body.{position}.num_batches_tracked"] = torch.tensor(0)
        else:
            raise ForeignModelError(
                f"{path} has a layer {owner or '?'} that is no 3 x 3 convolution or normalisation"
            )
        renamed |= {f"body.{position}.{leaf}": tensor for leaf, tensor in tensors.items()}
        if "running_mean" in tensors:
            position += 1  # of the ReLU behind it
    if len(layers) < 2:
        raise ForeignModelError(f"{path} has {len(layers)} convolutions: FFDNet and DnCNN have at least 2")
    return renamed, layers


def _is_norm(renamed: Mapping[str, Tensor], position: int) -> bool:
    return f"body.{position - 1}.running_mean" in renamed
