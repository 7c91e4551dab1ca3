r"""Sinogram flicking: a small network fitted to one noisy sinogram over a full turn, whose rays are all measured twice.

The rays ``(\theta, s)`` and ``(\theta + \pi, -s)`` run along the same line. Exchanging the two of a pair leaves a sinogram
without noise as it is, and moves the noise. With a fresh choice of the pairs at each step, half of them on average,
``d_1`` is the sinogram with these exchanged and ``d_2`` with all others, so that every place has the noise of one ray in
``d_1`` and that of the other in ``d_2``, independent and at full resolution. With the network ``f`` and the exchange
``F_k`` that leads to ``d_k`` the loss is that of Zero-Shot Noise2Noise,

.. math:: \tfrac12 \left[ |d_1 - f(d_1) - d_2|^2 + |d_2 - f(d_2) - d_1|^2 \right]
          + \tfrac12 \sum_k |d_k - f(d_k) - F_k(y - f(y))|^2 ,

and the result the mean of ``y - f(y)`` over the two rays of each line.

Reference: "Zero-Shot Low-dose CT Denoising via Sinogram Flicking", 2025, https://arxiv.org/abs/2504.07927.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.per_image import Followed, PerImage
from scoreexp.restorers.zs_n2n import residual_network

FARTHEST = 2.0  # that the two rays of a line are apart, in units of what the noise makes


def conjugate(y: Tensor) -> Tensor:
    """The sinogram ``y[B, C, angles, N]`` over a full turn with all conjugate rays exchanged.

    The centre is detector ``N // 2``, as of ``observations.Radon``; for an even ``N`` the first detector has no conjugate
    and stays.

    >>> conjugate(torch.tensor([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]))
    tensor([[[[5., 4., 3.],
              [2., 1., 0.]]]])
    """
    turned = y.roll(y.shape[-2] // 2, -2).flip(-1)
    if y.shape[-1] % 2 == 0:
        turned = torch.cat([y[..., :1], turned[..., :-1]], -1)
    return turned


def flicked(y: Tensor, exchanged: Tensor) -> Tensor:
    """``y`` with the rays where ``exchanged`` (which is the same for both of a pair) replaced by their conjugates."""
    return torch.where(exchanged, conjugate(y), y)


class SinogramFlicking(PerImage):
    """See the module's formulas. ``y`` is the sinogram ``[B, C, angles, N]`` itself, angles evenly spaced in [0, 2 pi).

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> observation = Observation(torch.zeros(1, 1, 12, 9), Identity(), GaussianNoise(0.2))
    >>> SinogramFlicking(steps=2)(observation, streams=ImageStreams([0])).x.shape
    torch.Size([1, 1, 12, 9])

    Args:
        steps: of the optimiser at most.
        width: channels of the two hidden layers.
        lr: learning rate of Adam, halved after each 1500 steps.
        tolerance: the fit is over when the estimate moves by less than this share of the noise's standard deviation within
            25 steps; 0 takes all steps.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the number of angles is odd, or the two rays of a line
            are more than twice as far apart as the noise makes them, as in a picture that is no such sinogram.
        FloatingPointError: on a call, the loss is not finite.
    """

    method: ClassVar[str] = "SinogramFlicking"

    @checked
    def __init__(
        self,
        steps: PositiveInt = 1000,
        width: PositiveInt = 48,
        lr: PositiveFloat = 1e-3,
        tolerance: NonNegativeFloat = 0.01,
    ) -> None:
        self.steps, self.width, self.lr, self.tolerance = steps, width, lr, tolerance

    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        y, random = observation.y, generator(seed, "flicking")
        if y.shape[-2] % 2:
            raise ValueError(
                f"SinogramFlicking takes sinograms over a full turn, and {y.shape[-2]} angles do not come in pairs: give an "
                "even number in [0, 2 pi)"
            )
        apart = float((y - conjugate(y)).square().mean().sqrt())
        made_by_noise = float(2 * observation.noise.variance(y.clamp(min=-1)).mean()) ** 0.5
        if apart > FARTHEST * made_by_noise:
            raise ValueError(
                f"SinogramFlicking takes sinograms over a full turn, and the two rays of a line are {apart:.2g} apart, of "
                f"which the noise makes {made_by_noise:.2g}: give all angles of [0, 2 pi) in rows, the axis in the middle, "
                "whole (tile=null), and the level of the noise"
            )
        network = residual_network(y.shape[1], self.width, generator(seed, "flicking network")).to(y)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1500, gamma=0.5)
        for step in range(1, self.steps + 1):
            drawn = torch.rand(y[:, :1].shape, generator=random).to(y)
            drawn = drawn + conjugate(drawn)  # the same for both of a pair
            chosen = drawn < drawn.median()
            first, second = flicked(y, chosen), flicked(y, ~chosen)
            estimate = y - network(y)
            made, other = first - network(first), second - network(second)
            loss = (mse_loss(made, second) + mse_loss(other, first)) / 2
            loss = (
                loss
                + (mse_loss(made, flicked(estimate, chosen)) + mse_loss(other, flicked(estimate, ~chosen)))
                / 2
            )
            self.descend(optimizer, loss, step)
            schedule.step()
            if followed(step, estimate.detach()):
                break
        x = y - network(y)
        return (x + conjugate(x)) / 2
