r"""A shallow network with random frozen hidden weights: its output weights are the solution of a linear system.

.. math:: F(x, c) = B \phi(x, c), \qquad \phi_j = \sqrt{2 / m}\, \cos(w_j \cdot x + v_j c + b_j),

with ``w_j`` uniform in a ball of radius ``bandwidth``, ``v_j`` uniform within ``bandwidth`` and ``b_j`` in [0, 2 pi). Ridge
regression on pairs (input, target) minimises :math:`\frac1n \sum_i |B \phi_i - y_i|^2 + \lambda |B|^2`:

.. math:: B = \left( \frac1n \sum_i y_i \phi_i^T \right) \left( \frac1n \sum_i \phi_i \phi_i^T + \lambda I \right)^{-1} .

Frequencies of the target beyond the bandwidth are out of reach, whatever the width: the error has a floor.

References:
    A. Rahimi, B. Recht, "Random Features for Large-Scale Kernel Machines", 2007;
    M. Li, S. Sonoda, F. Cao, Y. G. Wang, J. Liang, "How Powerful are Shallow Neural Networks with Bandlimited Random
    Weights?", 2020, https://arxiv.org/abs/2008.08427.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import FinitePositiveFloat, PositiveInt


class RandomFeatures(nn.Module):
    """Random cosine features of the input and the noise level, and a linear layer on them.

    ``model=ridge`` solves for that layer; any other model trains it by gradients. Class labels are not used.

    >>> import torch
    >>> network = RandomFeatures(event_shape=(1,), width=64, bandwidth=2.0)
    >>> x = torch.linspace(-2, 2, 200)[:, None]
    >>> network.solve([(x, torch.zeros(200), x.sin())], ridge=1e-8)
    >>> bool((network(x, torch.zeros(200)) - x.sin()).abs().max() < 1e-3)
    True

    Args:
        event_shape: shape ``*`` of one sample, any.
        num_classes: not used.
        width: number of features ``m``.
        bandwidth: largest frequency, in radians for each unit of the preconditioned input.
        seed: names the frequencies and phases.

    Raises:
        ValueError: an argument is out of its range.
    """

    downsampling_factor = 1
    frequencies: Tensor
    of_level: Tensor
    phases: Tensor

    @checked
    def __init__(
        self,
        *,
        event_shape: tuple[int, ...],
        num_classes: int | None = None,
        width: PositiveInt = 1024,
        bandwidth: FinitePositiveFloat = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        size, stream = math.prod(self.event_shape), generator(seed, "random features")
        direction = torch.randn(width, size, generator=stream)
        radius = bandwidth * torch.rand(width, 1, generator=stream) ** (1 / size)
        self.register_buffer("frequencies", radius * direction / direction.norm(dim=1, keepdim=True))
        self.register_buffer("of_level", bandwidth * (2 * torch.rand(width, generator=stream) - 1))
        self.register_buffer("phases", 2 * math.pi * torch.rand(width, generator=stream))
        self.head = nn.Linear(width, size, bias=False)
        nn.init.zeros_(self.head.weight)

    def features(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """``phi`` ``[B, width]`` of ``x[B, *]`` and ``c_noise[B]``."""
        angle = x.flatten(1) @ self.frequencies.T + c_noise[:, None] * self.of_level + self.phases
        return math.sqrt(2 / len(self.phases)) * angle.cos()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, *]``, ``c_noise[B]`` -> ``[B, *]``; ``cond`` is not used.

        Raises:
            ValueError: ``x`` has another event shape.
        """
        if x.shape[1:] != self.event_shape:
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} for a network of {self.event_shape}: they must agree"
            )
        return self.head(self.features(x, c_noise)).reshape(x.shape)

    @checked
    @torch.no_grad()
    def solve(
        self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: FinitePositiveFloat = 1e-6
    ) -> None:
        """Set the linear layer to the solution of the ridge regression, in float64.

        Args:
            pairs: inputs ``x[B, *]``, ``c_noise[B]`` and targets ``y[B, *]``, in batches that are seen once.
            ridge: ``lambda``; features have squares of mean ``1 / width``.

        Raises:
            ValueError: there are no pairs, or ``ridge`` is not positive.
        """
        weight, n = self.head.weight, 0
        gram = weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64)
        moment = weight.new_zeros(weight.shape, dtype=torch.float64)
        for x, c_noise, y in pairs:
            phi = self.features(x.to(weight), c_noise.to(weight)).double()
            gram += phi.T @ phi
            moment += y.to(phi).flatten(1).T @ phi
            n += len(x)
        if not n:
            raise ValueError("no pairs to solve for: give at least one batch")
        gram = gram / n + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        weight.copy_(torch.linalg.solve(gram, (moment / n).T).T)
