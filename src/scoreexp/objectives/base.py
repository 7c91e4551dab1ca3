"""What every training objective is: a loss per sample, with its randomness passed in."""

from abc import ABC, abstractmethod

from torch import Tensor

from scoreexp.batch import Batch
from scoreexp.denoiser import DenoiserBase


class Objective(ABC):
    """``loss[B] = objective(model, batch, t[B], noise[B, *])``, unreduced."""

    @abstractmethod
    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The loss of each sample.

        Args:
            model: the denoiser being trained.
            batch: the data.
            t: training times ``[B]``, best in float64 on the CPU.
            noise: standard normal draws ``[B, *]``.

        Returns:
            ``[B]``.

        Raises:
            ValueError: if the batch lacks data that the objective needs.
        """
