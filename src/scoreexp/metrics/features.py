"""Feature extractors: what sets of images are compared by.

An extractor maps 8-bit images to vectors. Its name, and the digest of all that determines its output, go into
every value's card, so values of different extractors are never taken for one another. The ones here need no
published weights; the network of the published FID is in ``scoreexp.metrics.inception``.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.ranges import check_unit, to_uint8
from scoreexp.core.streams import generator
from scoreexp.core.types import PositiveInt

RESERVED_NAMES = ("efficientnet_lite", "inception", "pixels", "random_conv")


def as_bytes(images: Tensor) -> Tensor:
    """Images ``[B, C, H, W]`` as 8-bit values: unchanged, or ``to_uint8`` of values in [0, 1].

    >>> import torch
    >>> as_bytes(torch.tensor([[[[0.0, 0.5, 1.0]]]]))
    tensor([[[[  0, 128, 255]]]], dtype=torch.uint8)

    Raises:
        ValueError: neither 8-bit nor floating point in [0, 1]; samples of a model are clamped to it first, as a
            saved image is.
    """
    if images.dtype == torch.uint8:
        return images
    check_unit(images, "the images")
    return to_uint8(images)


class FeatureExtractor(ABC):
    """Maps 8-bit images to feature vectors, without gradients.

    >>> import torch
    >>> import scoreexp as se
    >>> class MeanColour(se.metrics.FeatureExtractor):
    ...     name, dimension, digest, resize = "mean_colour", 3, "mean colour, version 1", "none"
    ...     def features(self, images):
    ...         return images.float().mean((2, 3))
    >>> MeanColour()(torch.full((2, 3, 8, 8), 100, dtype=torch.uint8))
    tensor([[100., 100., 100.],
            [100., 100., 100.]])

    Attributes:
        name: how metrics computed with it are called.
        dimension: length D of a feature vector.
        digest: SHA-256 of what determines its output.
        resize: how it resizes images, in words.
        device: where it computes; images are moved there.
    """

    name: str
    dimension: int
    digest: str
    resize: str
    device: torch.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Compute on ``device`` from now on."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` (float32) of ``images[B, C, H, W]`` (uint8), C = 3, or 1 and repeated three times.

        Raises:
            ValueError: the images have another type or shape, or features are not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"extractor {self.name} got {images.dtype} of shape {tuple(images.shape)}: give uint8 images "
                "[B, 3, H, W] or [B, 1, H, W], such as to_uint8 makes of values in [0, 1]"
            )
        with torch.autocast(self.device.type, enabled=False):
            features = self.features(images.to(self.device).expand(-1, 3, -1, -1)).float()
        if features.shape != (len(images), self.dimension):
            raise ValueError(
                f"extractor {self.name} made features of shape {tuple(features.shape)} from {len(images)} images; "
                f"[{len(images)}, {self.dimension}] is expected: check its dimension"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"extractor {self.name} made features that are not finite: check its weights")
        return features

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features ``[B, D]`` of ``images[B, 3, H, W]`` (uint8)."""


class PixelFeatures(FeatureExtractor):
    """The pixels themselves, in [0, 1], averaged over boxes to ``size x size``.

    Distances between them see brightness, colour and layout, not objects.

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.PixelFeatures(size=1)(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))
    tensor([[1., 1., 1.]])

    Args:
        size: side of the small image; D = 3 size^2.
    """

    @checked
    def __init__(self, size: Annotated[PositiveInt, "8 to 32 are usual"] = 16) -> None:
        self.size = size
        self.name = f"pixels{size}"
        self.dimension = 3 * size**2
        self.resize = f"box means to {size} x {size}"
        self.digest = hashlib.sha256(f"pixels, {self.resize}".encode()).hexdigest()

    def features(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.size:
            raise ValueError(
                f"{self.name} got images of {images.shape[-2]} x {images.shape[-1]} pixels: "
                f"give at least {self.size} x {self.size}, or a smaller size"
            )
        return F.adaptive_avg_pool2d(images.float() / 255, self.size).flatten(1)


class RandomConvFeatures(FeatureExtractor):
    """Means and standard deviations of the maps of a random convolutional network: texture without any training.

    Three levels of 3 x 3 convolutions to 16, 32 and 64 channels with ReLU, each followed by a 2 x 2 mean; the
    weights are normal with the variance 2 / (9 C_in), drawn from ``seed``.

    Reference: Reliable fidelity and diversity metrics for generative models, M. F. Naeem, S. J. Oh, Y. Uh, Y. Choi,
    J. Yoo, 2020, https://arxiv.org/abs/2002.09797 (on random embeddings for data unlike photographs)

    >>> import torch
    >>> import scoreexp as se
    >>> se.metrics.RandomConvFeatures()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([2, 224])

    Args:
        seed: names the weights; another seed is another extractor.
    """

    name = "random_conv"
    resize = "none"
    CHANNELS = (3, 16, 32, 64)

    @checked
    def __init__(self, seed: int = 0) -> None:
        draw = generator("random_conv", seed)
        pairs = zip(self.CHANNELS, self.CHANNELS[1:])
        self.weights = [torch.randn(b, a, 3, 3, generator=draw) * (2 / (9 * a)) ** 0.5 for a, b in pairs]
        self.dimension = 2 * sum(self.CHANNELS[1:])
        self.digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in self.weights)).hexdigest()

    def to(self, device: torch.device | str) -> Self:
        self.weights = [w.to(device) for w in self.weights]
        return super().to(device)

    def features(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < 8:
            raise ValueError(
                f"{self.name} got images of {images.shape[-2]} x {images.shape[-1]} pixels: give at least 8 x 8"
            )
        x = (images.float() - 128) / 128
        found = []
        for w in self.weights:
            x = F.relu(F.conv2d(x, w, padding=1))
            found += [x.mean((2, 3)), x.flatten(2).std(2, correction=0)]
            x = F.avg_pool2d(x, 2)
        return torch.cat(found, 1)


class ExportedExtractor(FeatureExtractor):
    """A network of the user's own from a file: a program of ``torch.export.save`` (.pt2) or TorchScript.

    It is called with uint8 images ``[B, 3, H, W]`` and resizes and scales them itself. Such files hold code:
    load only those you trust.

    >>> import tempfile
    >>> import torch
    >>> import scoreexp as se
    >>> class Network(torch.nn.Module):
    ...     def forward(self, images):
    ...         return images.float().mean((2, 3))
    >>> pictures = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    >>> with tempfile.NamedTemporaryFile(suffix=".pt2") as file:
    ...     torch.export.save(torch.export.export(Network(), (pictures,)), file.name)
    ...     extractor = se.metrics.ExportedExtractor(file.name, name="mean_colour", dimension=3)
    >>> extractor(pictures).shape
    torch.Size([2, 3])

    Args:
        path: the file.
        name: what metrics computed with it are called.
        dimension: length of its feature vectors.

    Raises:
        UserError: the file is missing or cannot be loaded, or the name belongs to an extractor of the project.
    """

    resize = "inside the network"

    @checked
    def __init__(self, path: str, name: str, dimension: PositiveInt) -> None:
        if name.rstrip("0123456789") in RESERVED_NAMES or not name.isidentifier():
            raise UserError(
                f"an extractor cannot be called {name!r}: give letters, digits and underscores, other than "
                f"{', '.join(RESERVED_NAMES)}"
            )
        self.name, self.dimension = name, dimension
        self.path = Path(path).expanduser()
        self.digest = file_digest(self.path)
        self._network = self._load("cpu")

    def to(self, device: torch.device | str) -> Self:
        self._network = self._load(device)
        return super().to(device)

    def features(self, images: Tensor) -> Tensor:
        return self._network(images)

    def _load(self, device: torch.device | str) -> Callable[[Tensor], Tensor]:
        try:
            if self.path.suffix == ".pt2":
                from torch.export.passes import move_to_device_pass

                program = move_to_device_pass(torch.export.load(self.path), device)
                return program.module()
            return torch.jit.load(self.path, map_location=device).eval()
        except Exception as error:  # a file of any content may fail anywhere in torch's readers
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{self.path} cannot be loaded ({reason}): give a file of torch.export.save (.pt2) or torch.jit.save"
            ) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the path of an existing file"
        ) from error
