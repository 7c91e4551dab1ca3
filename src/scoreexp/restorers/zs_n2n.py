r"""Zero-Shot Noise2Noise: a small network fitted to the two halves of one noisy image.

``D_1`` and ``D_2`` average the two diagonals of each 2 x 2 block: two images of half the size with the same signal, where it
is smooth, and independent noise. With the residual network ``f`` and ``d_k = D_k y`` the loss is

.. math:: \tfrac12 \left[ |d_1 - f(d_1) - d_2|^2 + |d_2 - f(d_2) - d_1|^2 \right]
          + \tfrac12 \sum_k |d_k - f(d_k) - D_k(y - f(y))|^2 ,

means over the pixels, and the result ``y - f(y)``. It needs noise that is independent from pixel to pixel.

Reference: Y. Mansour, R. Heckel, "Zero-Shot Noise2Noise: Efficient Image Denoising without any Data", 2023,
https://arxiv.org/abs/2303.11253.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import skip_init

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.networks.layers import start_as_usual
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage
from scoreexp.restorers.tiling import mirror_to_multiple


def diagonal_means(x: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the two diagonals of each 2 x 2 block of ``x[B, C, H, W]``, H and W even: ``[B, C, H/2, W/2]``.

    >>> diagonal_means(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    (tensor([[[[2.5000]]]]), tensor([[[[2.5000]]]]))
    """
    upper, lower = x[..., 0::2, :], x[..., 1::2, :]
    return (upper[..., 1::2] + lower[..., 0::2]) / 2, (upper[..., 0::2] + lower[..., 1::2]) / 2


class ZSN2N(PerImage):
    """Fits about 22,000 weights to each image; no prior, no training set, and no evaluation of a model (``nfe`` is 0).

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> observation = Observation(torch.zeros(1, 3, 8, 8), Identity(), GaussianNoise(0.2))
    >>> ZSN2N(steps=2)(observation, streams=ImageStreams([0])).x.shape
    torch.Size([1, 3, 8, 8])

    Args:
        steps: of the optimiser (2000 in the authors' program).
        width: channels of the two hidden layers.
        lr: learning rate of Adam, halved after each 1500 steps.
        tolerance: the fit is over when the estimate moves by less than this share of the noise's standard deviation within
            25 steps; 0 takes all steps.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image under the identity.
    """

    method: ClassVar[str] = "ZS-N2N"

    @checked
    def __init__(
        self,
        steps: PositiveInt = 2000,
        width: PositiveInt = 48,
        lr: PositiveFloat = 1e-3,
        tolerance: NonNegativeFloat = 0.0,
    ) -> None:
        self.steps, self.width, self.lr, self.tolerance = steps, width, lr, tolerance

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        """As of the base class; odd sides are mirrored by a pixel for the fit."""
        y = observation.y
        height, width = y.shape[-2:]
        network = residual_network(y.shape[1], self.width, generator(seed, "zs_n2n")).to(y)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1500, gamma=0.5)
        even = mirror_to_multiple(y, 2)
        halves = diagonal_means(even)
        for step in range(1, self.steps + 1):
            first, second = (half - network(half) for half in halves)
            estimate = even - network(even)
            whole = diagonal_means(estimate)
            loss = (mse_loss(first, halves[1]) + mse_loss(second, halves[0])) / 2
            loss = loss + (mse_loss(first, whole[0]) + mse_loss(second, whole[1])) / 2
            self.descend(optimizer, loss, step)
            schedule.step()
            if followed(step, estimate.detach()[..., :height, :width]):
                break
        return y - network(y)


def residual_network(channels: int, width: int, random: torch.Generator) -> nn.Module:
    """``f``: convolutions of 3, 3 and 1 pixels a side, with torch's usual law of initial weights."""
    sizes = ((channels, width, 3), (width, width, 3), (width, channels, 1))
    layers = [skip_init(nn.Conv2d, a, b, side, padding=side // 2) for a, b, side in sizes]
    for layer in layers:
        start_as_usual(layer, random)
    return nn.Sequential(layers[0], nn.LeakyReLU(0.2), layers[1], nn.LeakyReLU(0.2), layers[2])
