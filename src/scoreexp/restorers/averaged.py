r"""The mean of several draws of a restorer, which nears the posterior mean as draws of the posterior are added.

With ``n`` independent draws the squared error is that of the posterior mean and ``1 / n`` of the posterior's variance.
"""

from typing import Any

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams, stream_seed
from scoreexp.core.types import PositiveInt
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer, RestorerAround


class Averaged(RestorerAround):
    """``x = (x_1 + ... + x_n) / n``; the estimates on the way are the means of the first draws.

    >>> import torch
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.restorers import ZSN2N
    >>> observation = Observation(torch.zeros(1, 1, 8, 8), Identity(), GaussianNoise(0.2))
    >>> Averaged(ZSN2N(steps=2), draws=3)(observation, streams=ImageStreams([0]), keep=3).x.shape
    torch.Size([1, 1, 8, 8])

    Args:
        restorer: one that draws noise; of another all results are equal.
        draws: how many, >= 1.

    Raises:
        ValueError: ``draws`` is below 1.
    """

    @checked
    def __init__(self, restorer: Restorer, draws: PositiveInt = 8) -> None:
        self.restorer, self.draws = restorer, draws

    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        means: list[Tensor] = []
        for i in range(self.draws):
            own = ImageStreams([stream_seed(seed, "average", i) for seed in streams.seeds])
            x, _ = self.restorer.restore(observation, model, own, cond, 0, None)
            means = [*means, x if not means else means[-1] + (x - means[-1]) / (i + 1)][-max(keep, 1) :]
            if callback is not None:
                callback(i + 1, self.draws, means[-1], None)
        return means[-1], means[-keep:] if keep else []
