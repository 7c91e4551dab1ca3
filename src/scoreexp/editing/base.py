"""What every editor is: from one or two given images to a strip of images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase


class Editor(ABC):
    """Makes images of given ones. What it needs beyond that are constructor arguments.

    Attributes:
        inputs: how many images it takes.
    """

    inputs: ClassVar[int]

    @abstractmethod
    def strip(
        self,
        model: DenoiserBase,
        images: Sequence[Tensor],
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """The images ``[S, B, *]``.

        Args:
            model: the denoiser; put a network into evaluation mode first.
            images: as many as ``inputs``, each ``[B, *]`` in the range of the model.
            streams: one random stream per sample.
            cond: class labels ``[B]`` of the given images, or None.
            target: class labels ``[B]`` that are wanted, or None for the same.

        Raises:
            ValueError: an image does not suit the model.
        """
