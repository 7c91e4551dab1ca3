"""A score network of three convolutions, for one noise level."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.networks.layers import check_image_shape


class ScoreCNN(nn.Module):
    """3x3 convolutions ``C - 64 - 128 - C`` with ReLU between them.

    For a model of a single noise level: ``c_noise`` is not used, and neither are class labels (data sets that have
    them may be trained on). A pixel of the output depends on the 7 x 7 pixels around it. The published network's
    output is the score itself; here, as in every network, it is what the preconditioning says (``precond=score``:
    sigma times the score, so that the output is of unit scale).

    Reference: Nguyen, Senequier, Arthaud, "Score-Based Denoising with Reverse-Time SDEs".

    >>> import torch
    >>> import scoreexp as se
    >>> network = se.networks.ScoreCNN(event_shape=(1, 9, 9), widths=(8, 16))
    >>> model = se.denoisers.Denoiser(network, se.denoisers.ScorePrediction(), se.schedules.ConstantNoise(0.2))
    >>> model(torch.zeros(2, 1, 9, 9), torch.ones(2)).shape
    torch.Size([2, 1, 9, 9])

    Args:
        event_shape: (C, H, W) of one image.
        num_classes: not used.
        widths: channels between the convolutions.

    Raises:
        ValueError: if the event shape is not that of an image, or a width is not positive.
    """

    downsampling_factor = 1

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        widths: tuple[PositiveInt, ...] = (64, 128),
    ) -> None:
        super().__init__()
        if not widths:
            raise ValueError(f"widths={tuple(widths)} must be one or more numbers of channels")
        check_image_shape(tuple(event_shape), self.downsampling_factor)
        channels = (event_shape[0], *widths, event_shape[0])
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]`` -> ``[B, C, H, W]``; ``c_noise`` and ``cond`` are not used."""
        return self.layers(x.contiguous(memory_format=torch.channels_last))
