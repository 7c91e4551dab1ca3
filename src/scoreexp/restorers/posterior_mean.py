r"""The posterior mean under white Gaussian noise, which is what a denoiser knows: one evaluation, or the mean of several.

.. math:: \hat x = \frac{1}{n} \sum_{i=1}^{n} g_i^{-1}\, D(\alpha\, g_i\, y,\; t), \qquad \sigma(t) / \alpha(t) = \sigma,

with the quarter turns and reflections ``g_i`` of the square. The law of photographs hardly changes under them, a network
does, and its own error is smaller in the mean. Averaging draws (``Averaged``) does not make that error smaller.

Reference: B. Lim, S. Son, H. Kim, S. Nah, K. M. Lee, "Enhanced Deep Residual Networks for Single Image Super-Resolution",
2017, https://arxiv.org/abs/1707.02921, section 3.4 (the mean over turns and reflections).
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.by_sampling import noise_level_of
from scoreexp.restorers.tiling import mirror_to_multiple
from scoreexp.samplers.base import batch_of
from scoreexp.samplers.starts import start_from_observation

QUARTERS = (0, 2, 1, 3)  # a turn and its reflection follow each other, so that 2, 4 and 8 are balanced


class PosteriorMean(Restorer):
    """See the module's formula.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.eye(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(1.0))
    >>> PosteriorMean()(observation, model, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Args:
        evaluations: ``n``, 1 to 8; the first is without a turn.

    Raises:
        ValueError: ``evaluations`` is outside its domain; on a call, the noise is not white and Gaussian or of a level that
            the model does not know, the operator is not the identity, or what is to be turned is no image.
    """

    @checked
    def __init__(
        self, evaluations: Annotated[int, (">=", 1), ("<=", 8), "turns and reflections of a square"] = 1
    ) -> None:
        self.evaluations = evaluations

    @torch.no_grad()
    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y, sigma = observation.y, noise_level_of(observation)
        observation.require_finite()
        if self.evaluations > 1 and not isinstance(kind_of(y.shape[1:]), Images):
            raise ValueError(
                f"evaluations={self.evaluations} turn images, and the data are {tuple(y.shape)}: take 1"
            )
        if sigma == 0:
            return y.clone(), [y.clone()][-keep:] if keep else []
        x_t, t = start_from_observation(model.schedule, y, sigma)
        mean, means = torch.zeros_like(y), [y]
        for i in range(self.evaluations):
            moved, inside = _moved(x_t, i, model.downsampling_factor)
            x = _turned_back(model(_turned(moved, i).contiguous(), batch_of(t, x_t), cond), i)[inside]
            mean = mean + (x - mean) / (i + 1)
            means = [*means, mean][-max(keep, 1) :]
            if callback is not None:
                callback(i + 1, self.evaluations, mean, x)
        return mean, means[-keep:] if keep else []


def _moved(x: Tensor, i: int, factor: int) -> tuple[Tensor, Any]:
    """``x`` moved for the ``i``-th evaluation, its sides still divisible by ``factor``; and the index of ``x`` in it."""
    if i == 0 or factor == 1 or min(x.shape[-2:]) <= factor:
        return x, ...
    (height, width), top, left = x.shape[-2:], i % factor, 3 * i % factor
    moved = mirror_to_multiple(F.pad(x, (left, 0, top, 0), mode="reflect"), factor)
    return moved, (..., slice(top, top + height), slice(left, left + width))


def _turned(x: Tensor, i: int) -> Tensor:
    """The ``i``-th of eight: reflected if ``i`` is odd, then turned."""
    return (x.flip(-1) if i % 2 else x).rot90(QUARTERS[i // 2], (-2, -1)) if i else x


def _turned_back(x: Tensor, i: int) -> Tensor:
    back = x.rot90(-QUARTERS[i // 2], (-2, -1)) if i else x
    return back.flip(-1) if i % 2 else back
