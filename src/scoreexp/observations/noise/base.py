"""What every noise model is: the law of the observation ``y`` given the clean signal ``x = A(x_0)``."""

from abc import ABC, abstractmethod

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.observations.noise.lines import Lines


class NoiseModel(ABC):
    """``p(y | x)``, for drawing data, for training, for likelihoods and for every restorer.

    ``x`` and ``y`` have shape ``[B, *]`` and are in the units of the model, [-1, 1] for images; where a law needs
    intensities they are ``(x + 1) / 2 >= 0``. A new noise model writes the three abstract methods, ``posterior_mean``
    where Tweedie's formula is known for it, ``stabilise`` with its inverse where the variance depends on ``x``,
    ``of_mean`` where the mean of several values has a law of the same kind, and ``lines`` where lines share noise.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> class Speckle(se.observations.NoiseModel):
    ...     '''y = x + x z / 10'''
    ...     def sample(self, x, streams):
    ...         return x + x * streams.normal(x) / 10
    ...     def variance(self, x):
    ...         return (x / 10) ** 2
    ...     def log_likelihood(self, y, x):
    ...         return torch.distributions.Normal(x, x.abs() / 10).log_prob(y).flatten(1).sum(1)
    >>> x = torch.ones(2, 3, 8, 8)
    >>> se.Observation.simulate(x, se.observations.Identity(), Speckle(), ImageStreams([0, 1])).y.shape
    torch.Size([2, 3, 8, 8])
    """

    def __str__(self) -> str:
        """What a user is told of it, in units of [0, 1]; the class and its arguments unless a class says it better."""
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.parameters().items())
        return f"{type(self).__name__}({values})"

    def parameters(self) -> dict[str, float]:
        """The numbers that it was made with, by name, in the units of the model."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, float) and name[0] != "_"
        }

    @property
    def lines(self) -> Lines | None:
        """What the lines of an image share in this noise, and the noise without it; None where they share nothing."""
        return None

    @abstractmethod
    def sample(self, x: Tensor, streams: ImageStreams) -> Tensor:
        """A draw of ``y [B, *]`` given ``x [B, *]``, one random stream per sample."""

    @abstractmethod
    def variance(self, x: Tensor) -> Tensor:
        """``Var[y | x]``, elementwise ``[B, *]``."""

    @abstractmethod
    def log_likelihood(self, y: Tensor, x: Tensor) -> Tensor:
        """``log p(y | x)``, summed over all but the first axis: ``[B]``, in nats."""

    def of_mean(self, count: int) -> "NoiseModel":
        """The law of the mean of ``count`` values that have the same ``x`` and independent noise.

        Raises:
            ValueError: it is none of this kind.
        """
        raise ValueError(f"{type(self).__name__} has no known law of the mean of several values")

    def posterior_mean(self, y: Tensor, score: Tensor) -> Tensor:
        """``E[x | y]`` from ``score = grad log p(y) [B, *]``, the pixel-space score of the noisy data.

        Raises:
            ValueError: no such formula is known for this noise.
        """
        raise ValueError(
            f"{type(self).__name__} has no Tweedie formula: use a restorer that works from its likelihood"
        )

    def stabilise(self, y: Tensor) -> Tensor:
        """A function of each value under which the noise has about the standard deviation 1 whatever ``x`` is.

        Raises:
            ValueError: no such function is known for this noise.
        """
        raise ValueError(f"{type(self).__name__} has no variance-stabilising transform")

    def unstabilise(self, z: Tensor) -> Tensor:
        """The exact unbiased inverse: ``x`` for ``z = E[stabilise(y) | x]``, which is not the inverse of the function.

        Raises:
            ValueError: as ``stabilise``.
        """
        raise ValueError(f"{type(self).__name__} has no variance-stabilising transform")
