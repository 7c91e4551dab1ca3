"""An observation: data, and how they came about from what is sought."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.observations.noise import NoiseModel
from scoreexp.observations.operators import LinearOperator, Operator


@checked
@dataclass(frozen=True)
class Observation:
    """``y = noise(A(x))``: what is known of an unknown ``x``.

    >>> import torch
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> Observation(torch.zeros(1, 3, 8, 8), Identity(), GaussianNoise(0.2)).noise.sigma
    0.2

    Attributes:
        y: the data ``[B, *]``, in the units of the model ([-1, 1] for images under the identity).
        operator: ``A``; the identity for denoising.
        noise: the law of ``y`` given ``A(x)``.

    Raises:
        TypeError: if a field is of another kind.
    """

    y: Tensor
    operator: Operator
    noise: NoiseModel

    def __post_init__(self) -> None:
        if not (self.y.is_floating_point() and self.y.ndim >= 2):
            raise TypeError(f"y is {self.y.dtype} {tuple(self.y.shape)}: give a floating point tensor [B, *]")

    @classmethod
    def simulate(cls, x: Tensor, operator: Operator, noise: NoiseModel, streams: ImageStreams) -> Self:
        """The observation of known data ``x [B, *]``, one random stream per sample."""
        return cls(noise.sample(operator(x), streams), operator, noise)

    def pulled_back(self, event_shape: Sequence[int]) -> Tensor:
        """``y`` in the shape of ``x``: itself where it has that shape, else ``A^+ y``, or ``A^T y`` where that is not known.

        >>> import torch
        >>> from scoreexp.observations import GaussianNoise, Grayscale
        >>> Observation(torch.ones(1, 1, 2, 2), Grayscale(), GaussianNoise(0.1)).pulled_back((3, 2, 2)).shape
        torch.Size([1, 3, 2, 2])

        Args:
            event_shape: shape ``*`` of one ``x``.

        Raises:
            ValueError: the operator is not linear and changes the shape, or leads to another shape.
        """
        shape = tuple(event_shape)
        if tuple(self.y.shape[1:]) == shape:
            return self.y
        name = type(self.operator).__name__
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(
                f"{name} changes the shape of samples and is no LinearOperator: choose one with an adjoint"
            )
        try:
            back = self.operator.pinv(self.y)
        except ValueError:  # not known in closed form
            back = self.operator.adjoint(self.y)
        if tuple(back.shape[1:]) != shape:
            raise ValueError(
                f"{name} leads y back to samples of shape {tuple(back.shape[1:])}, not {shape}: give the operator "
                "that made y"
            )
        return back

    def require_finite(self) -> None:
        """Refuse data that are not finite.

        Raises:
            ValueError: they are not.
        """
        if not self.y.isfinite().all():
            raise ValueError("y holds values that are not finite: find their origin")

    def require_streams(self, streams: ImageStreams) -> None:
        """Refuse another number of random streams than there are samples.

        Raises:
            ValueError: the message has both numbers.
        """
        if len(streams) != len(self.y):
            raise ValueError(f"{len(self.y)} observations for {len(streams)} seeds: give one seed per sample")

    def require_shape(self, event_shape: Sequence[int]) -> None:
        """Refuse data that the operator cannot have made of samples of ``event_shape``.

        Raises:
            ValueError: the message has both shapes.
        """
        made, found = self.operator.output_shape(event_shape), tuple(self.y.shape[1:])
        if made != found:
            raise ValueError(
                f"y has samples of shape {found}, but {type(self.operator).__name__} makes {made} of samples of shape "
                f"{tuple(event_shape)}: give the operator that made y, or data of the model's size"
            )
