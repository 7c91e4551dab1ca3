r"""NoiSER: a small network that has learnt to return noise brightens dark images.

.. math:: \min_f E\, |f(n) - n|, \qquad n \sim N(0, \sigma^2), \qquad
          f(x) = \gamma\, \frac{g(x) - \overline{g(x)}}{\mathrm{std}(g(x))} ,

with three convolutions ``g`` and the mean and standard deviation over the pixels of each channel (instance
normalisation). To return noise, ``f`` must keep the contrast of neighbours; since it normalises, the channels of its output
have the same mean, mid grey, and the same standard deviation, whatever the light of the input (the grey-world hypothesis).

Reference: Z. Zhang, S. Zhao, X. Jin, M. Xu, Y. Yang, S. Yan, "NoiSER: Noise is All You Need for Low-Light Image
Enhancement", 2022, https://arxiv.org/abs/2211.04700. The network here is of the same size, about 1000 weights, but not the
same.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, leaky_relu

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.networks.layers import start_as_usual
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage

SIDE = 64  # pixels a side of the noise that is learnt


class SelfRegression(nn.Module):
    """``f`` of the module's formula: ``[B, C, H, W]`` -> ``[B, C, H, W]``."""

    def __init__(self, channels: int, width: int, sigma: float, random: torch.Generator) -> None:
        super().__init__()
        sizes = ((channels, width, 3), (width, width, 3), (width, channels, 1))
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, side, padding=side // 2, padding_mode="reflect") for a, b, side in sizes
        )
        self.gamma = nn.Parameter(torch.tensor(sigma))
        for layer in self.layers:
            start_as_usual(layer, random)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        # the light is taken away first, or all of a dark image lies on one side of the rectifiers
        x = _normalised(x)
        for layer in self.layers[:-1]:
            x = leaky_relu(layer(x), 0.2)
        return self.gamma * _normalised(self.layers[-1](x))


def _normalised(x: Tensor) -> Tensor:
    mean, variance = x.mean((-1, -2), keepdim=True), x.var((-1, -2), keepdim=True, correction=0)
    return (x - mean) * (variance + 1e-12).rsqrt()


class NoiSER(PerImage):
    """Brightens images ``[B, C, H, W]``; it removes no noise, and the noise of the observation is not used.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> dark = torch.linspace(-1.0, -0.9, 64).reshape(1, 1, 8, 8)
    >>> bright = NoiSER(steps=30)(Observation(dark, Identity(), GaussianNoise(0.0)), streams=ImageStreams([0])).x
    >>> bool(bright.mean().abs() < 1e-6)  # mid grey
    True

    Args:
        steps: of the optimiser at most.
        sigma: standard deviation of the noise that is learnt, and so about that of the output, in units of [-1, 1].
        width: channels of the hidden layers.
        lr: learning rate of Adam.
        tolerance: the fit is over when the loss is at most this share of ``sigma``; 0 takes all steps.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image under the identity.
        FloatingPointError: on a call, the loss is not finite.
    """

    method: ClassVar[str] = "NoiSER"

    @checked
    def __init__(
        self,
        steps: PositiveInt = 600,
        sigma: PositiveFloat = 0.5,
        width: PositiveInt = 9,
        lr: PositiveFloat = 1e-2,
        tolerance: NonNegativeFloat = 0.05,
    ) -> None:
        self.steps, self.sigma, self.width, self.lr, self.tolerance = steps, sigma, width, lr, tolerance

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        y, random = observation.y, generator(seed, "noiser")
        observation.require_finite()
        network = SelfRegression(y.shape[1], self.width, self.sigma, random).to(y)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        for step in range(1, self.steps + 1):
            noise = self.sigma * torch.randn(1, y.shape[1], SIDE, SIDE, generator=random).to(y)
            loss = l1_loss(network(noise), noise)
            self.descend(optimizer, loss, step)
            settled = float(loss.detach()) <= self.tolerance * self.sigma
            followed(self.steps if settled else step, y)
            if settled:
                break
        return network(y)
