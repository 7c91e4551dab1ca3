"""The exact score of the training images: what every method that trains on them tends to."""

from typing import ClassVar

from scoreexp.core.errors import UserError
from scoreexp.data import DataModule
from scoreexp.denoisers.preconditioning import X0Prediction
from scoreexp.lit.module import ScoreModule
from scoreexp.networks import ExactPosteriorMean


class ExactScore(ScoreModule):
    """A model with nothing to train: it is evaluated once it has the images, and its checkpoint holds them.

    Objective, time law and optimiser are not used.

    >>> import torch
    >>> from scoreexp.data import SwissRoll
    >>> from scoreexp.denoisers import Denoiser
    >>> from scoreexp.objectives import DenoisingScoreMatching, UniformTime, X0Weighting
    >>> from scoreexp.schedules import VP
    >>> module = ExactScore(
    ...     denoiser=Denoiser(ExactPosteriorMean(event_shape=(2,)), X0Prediction(), VP()),
    ...     objective=DenoisingScoreMatching(X0Weighting()),
    ...     time_law=UniformTime(),
    ...     optimizer=torch.optim.Adam,
    ... )
    >>> module.prepare(SwissRoll(points=3))
    >>> module.denoiser.network.images.shape
    torch.Size([3, 2])
    """

    needs_training: ClassVar[bool] = False

    def prepare(self, data: DataModule) -> None:
        """Take the training images.

        Raises:
            UserError: the network is not ``ExactPosteriorMean``, or its preconditioning not ``X0Prediction``.
        """
        network = self.denoiser.network
        if not (
            isinstance(network, ExactPosteriorMean)
            and isinstance(self.denoiser.preconditioning, X0Prediction)
        ):
            raise UserError("model=exact_score trains nothing: set network=exact and precond=x0 with it")
        network.store(data.split("train").samples(data.train_positions))
