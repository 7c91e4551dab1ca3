"""The Inception network of the published FID.

It is the Inception-v3 that M. Heusel et al. (2017) took from TensorFlow's archive of 5 December 2015, in the PyTorch
copy of its weights that the field uses. It differs from later Inception-v3 networks in three ways: means over
3 x 3 windows do not count the padding, the last block takes maxima instead of means, and images are resized
by TensorFlow 1's bilinear rule, which samples at the corner of a pixel instead of its centre. Each of them
changes FID visibly, so values computed with another network, other weights or another resize are not FID.

Reference: Rethinking the Inception architecture for computer vision, C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens,
Z. Wojna, 2015, https://arxiv.org/abs/1512.00567
"""

import os
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.metrics.features import FeatureExtractor, file_digest

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS_FILE}"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
ENVIRONMENT_VARIABLE = "SCOREEXP_INCEPTION"
INPUT_SIZE = 299

_mean_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class MissingWeightsError(UserError):
    """The weights of the Inception network are not on this machine.

    >>> import scoreexp as se
    >>> try:
    ...     extractor = se.metrics.InceptionFeatures("no_such_file.pth")
    ... except se.metrics.MissingWeightsError:
    ...     extractor = se.metrics.RandomConvFeatures()  # whose Frechet distance is not called FID
    >>> extractor.name
    'random_conv'
    """


class InceptionFeatures(FeatureExtractor):
    """The 2048 means over positions of the network's last maps ("pool3"): the features of the published FID.

    >>> import scoreexp as se
    >>> se.metrics.InceptionFeatures("no_such_file.pth")
    Traceback (most recent call last):
        ...
    scoreexp.metrics.inception.MissingWeightsError: the Inception weights are missing (no_such_file.pth is no file): ...

    Args:
        path: the weights' file; null takes the environment variable ``SCOREEXP_INCEPTION``.
        sha256: checksum that the file must have; with any but the published one, values are not called FID.

    Raises:
        MissingWeightsError: no path is given, or there is no file.
        UserError: the file is not the one of that checksum, or holds something else.
    """

    name = "inception"
    dimension = 2048
    resize = f"bilinear to {INPUT_SIZE} x {INPUT_SIZE} as in TensorFlow 1 (corners not aligned, no antialias)"

    @checked
    def __init__(self, path: str | None = None, sha256: str = WEIGHTS_SHA256) -> None:
        given = path or os.environ.get(ENVIRONMENT_VARIABLE)
        if not given or not Path(given).expanduser().is_file():
            problem = f"{given} is no file" if given else "no path is given"
            raise MissingWeightsError(
                f"the Inception weights are missing ({problem}): "
                f"download {WEIGHTS_URL} (96 MB, sha256 {WEIGHTS_SHA256}) and give its path or set "
                f"{ENVIRONMENT_VARIABLE}; without them use the extractors random_conv or pixels, whose values are "
                "not FID"
            )
        file = Path(given).expanduser()
        self.digest = file_digest(file)
        if self.digest != sha256:
            raise UserError(
                f"{file} has sha256 {self.digest}, not {sha256}: it is another file or was cut short, "
                f"download {WEIGHTS_URL} again"
            )
        with torch.device("meta"):  # without drawing weights that are replaced at once
            self.network = InceptionV3()
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True)
            kept = {name: value for name, value in weights.items() if not name.startswith("fc.")}
            self.network.load_state_dict(kept, assign=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{file} does not hold the weights of the Inception network ({reason}): download {WEIGHTS_URL}"
            ) from error
        self.network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return super().to(device)

    def features(self, images: Tensor) -> Tensor:
        x = resize_as_tensorflow1(images.float(), INPUT_SIZE)
        return self.network((x - 128) / 128)


def resize_as_tensorflow1(x: Tensor, size: int) -> Tensor:
    """``x[B, C, H, W]`` to ``[B, C, size, size]`` by TensorFlow 1's ``resize_bilinear`` with its defaults.

    Output pixel i is the linear interpolation of the input at ``i H / size``, without the half-pixel offset and
    without averaging when it shrinks; beyond the last pixel it is constant.
    """
    for axis in (3, 2):
        length = x.shape[axis]
        position = torch.arange(size, dtype=torch.float32) * torch.tensor(length / size)
        below = position.long()
        above = (below + 1).clamp(max=length - 1)
        weight = (position - below).to(x.device)
        low, high = (x.index_select(axis, index.to(x.device)) for index in (below, above))
        x = low + (high - low) * (weight if axis == 3 else weight[:, None])
    return x


class InceptionV3(nn.Module):
    """The convolutional part, ``[B, 3, 299, 299]`` in [-1, 1] to ``[B, 2048]``; submodules are named as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNormReLU(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNormReLU(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNormReLU(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNormReLU(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNormReLU(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB()
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, _mean_pool)
        self.Mixed_7c = BlockE(2048, partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)  # 192 channels, 35 x 35
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)  # 768 channels, 17 x 17
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # 2048 channels, 8 x 8
        return x.mean((2, 3))


class ConvNormReLU(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _row(inputs: int, outputs: int, length: int) -> ConvNormReLU:
    return ConvNormReLU(inputs, outputs, (1, length), padding=(0, length // 2))


def _column(inputs: int, outputs: int, length: int) -> ConvNormReLU:
    return ConvNormReLU(inputs, outputs, (length, 1), padding=(length // 2, 0))


class BlockA(nn.Module):
    """35 x 35: 1 x 1, 5 x 5 and two 3 x 3 convolutions beside a mean."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormReLU(inputs, 64, 1)
        self.branch5x5_1 = ConvNormReLU(inputs, 48, 1)
        self.branch5x5_2 = ConvNormReLU(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNormReLU(inputs, 64, 1)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, padding=1)
        self.branch_pool = ConvNormReLU(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean_pool(x))], 1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = ConvNormReLU(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNormReLU(288, 64, 1)
        self.branch3x3dbl_2 = ConvNormReLU(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNormReLU(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17: 7 x 7 convolutions taken apart into rows and columns."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNormReLU(768, 192, 1)
        self.branch7x7_1 = ConvNormReLU(768, inner, 1)
        self.branch7x7_2 = _row(inner, inner, 7)
        self.branch7x7_3 = _column(inner, 192, 7)
        self.branch7x7dbl_1 = ConvNormReLU(768, inner, 1)
        self.branch7x7dbl_2 = _column(inner, inner, 7)
        self.branch7x7dbl_3 = _row(inner, inner, 7)
        self.branch7x7dbl_4 = _column(inner, inner, 7)
        self.branch7x7dbl_5 = _row(inner, 192, 7)
        self.branch_pool = ConvNormReLU(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNormReLU(768, 192, 1)
        self.branch3x3_2 = ConvNormReLU(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNormReLU(768, 192, 1)
        self.branch7x7x3_2 = _row(192, 192, 7)
        self.branch7x7x3_3 = _column(192, 192, 7)
        self.branch7x7x3_4 = ConvNormReLU(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8: rows and columns of 3 side by side."""

    def __init__(self, inputs: int, pool: partial[Tensor]) -> None:
        super().__init__()
        self.branch1x1 = ConvNormReLU(inputs, 320, 1)
        self.branch3x3_1 = ConvNormReLU(inputs, 384, 1)
        self.branch3x3_2a = _row(384, 384, 3)
        self.branch3x3_2b = _column(384, 384, 3)
        self.branch3x3dbl_1 = ConvNormReLU(inputs, 448, 1)
        self.branch3x3dbl_2 = ConvNormReLU(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _row(384, 384, 3)
        self.branch3x3dbl_3b = _column(384, 384, 3)
        self.branch_pool = ConvNormReLU(inputs, 192, 1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return torch.cat(
            [
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(self.pool(x)),
            ],
            1,
        )
