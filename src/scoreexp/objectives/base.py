"""What every training objective is: a loss per sample, with its randomness passed in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.schedules import Schedule


class Objective(ABC):
    """``loss[B] = objective(model, batch, t[B], noise[B, *])``, unreduced.

    An objective with parameters of its own, or with a teacher, is an ``nn.Module`` besides: ``class Mine(nn.Module,
    Objective)`` with a ``forward``. What it learns joins the optimiser, and its state the checkpoints.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> from scoreexp.objectives.base import perturb
    >>> class AbsoluteError(se.objectives.Objective):
    ...     def __call__(self, model, batch, t, noise):
    ...         x_0, x_t, t, _, _ = perturb(model.schedule, batch, t, noise)
    ...         return (model(x_t, t, batch.cond) - x_0).abs().flatten(1).mean(1)
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.VP())
    >>> AbsoluteError()(model, Batch(x=torch.full((3, 2), 0.5)), torch.full((3,), 0.2), torch.randn(3, 2))
    tensor([0.5000, 0.5000, 0.5000])
    """

    def prepare(self, size: int, fetch: Callable[[Tensor], Batch]) -> None:
        """Take what the objective needs of the training set, once before the first step; by default nothing.

        Args:
            size: number of training samples ``N``.
            fetch: the clean samples, unaugmented, of given elements ``[n]`` (long, on the CPU) of ``0 .. N - 1``, as
                a batch on the CPU.
        """
        return

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


class NoisyData(NamedTuple):
    """``x_t = alpha x_0 + sigma noise``; ``t``, ``alpha`` and ``sigma`` are ``[B]``, float64 on the CPU."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def perturb(schedule: Schedule, batch: Batch, t: Tensor, noise: Tensor) -> NoisyData:
    """The clean data of a batch with noise added, each sample at its own time.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> perturb(se.schedules.FlowMatching(), Batch(x=torch.ones(1, 2)), torch.tensor([0.5]), torch.full((1, 2), 3.0)).x_t
    tensor([[2., 2.]])

    Raises:
        ValueError: if the batch has no clean data, or the noise another shape.
    """
    x_0 = batch.x
    if x_0 is None:
        raise ValueError("the batch has no clean data x: this objective needs a data set that gives them")
    if noise.shape != x_0.shape:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} for data of shape {tuple(x_0.shape)}: draw as many"
        )
    t = t.to(device="cpu", dtype=torch.float64)
    alpha, sigma = schedule(t)
    x_t = expand_to(alpha, x_0) * x_0 + expand_to(sigma, x_0) * noise
    return NoisyData(x_0, x_t, t, alpha, sigma)


def streams_of(noise: Tensor, purpose: str) -> ImageStreams:
    """One further random stream per sample of a call, named by the first entry of that sample's noise ``[B, *]``.

    A sample's draws depend on no other sample, hence not on how a batch is divided among devices.
    """
    return ImageStreams([noise_name(one) for one in noise.flatten(1)[:, :1].cpu()], purpose)


def noise_name(noise: Tensor) -> int:
    """An integer that names further random streams of a call: the bits of the first entry of its noise.

    Draws of a stream so named are a function of the noise that was passed in and of no state; a hash separates them
    from the noise itself.
    """
    return int(noise.flatten()[:1].to(device="cpu", dtype=torch.float64).view(torch.int64).item())
