"""Independent unknowns as one: the prior of a signal and of a structured disturbance, each by a model of its own.

``p(x, h) = p_1(x) p_2(h)`` with both diffused alike has ``E[(x, h) | x_t, h_t] = (D_1(x_t), D_2(h_t))``. With the operator
``ChannelMix([I, I])``, ``y = x + h`` plus noise, every restorer becomes a joint posterior sampler of the two.

Reference: T. S. W. Stevens, F. C. Meral, J. Yu, I. Z. Apostolakis, J.-L. Robert, R. J. G. van Sloun, "Dehazing Ultrasound
using Diffusion Models", 2023, https://arxiv.org/abs/2307.11204.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.schedules import Schedule


class Product(DenoiserBase, wraps=True):
    """The models side by side, their channels one after the other.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> one = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())
    >>> Product([one, one]).event_shape
    (2, 4, 4)

    Args:
        models: of samples ``(C_k, ...)`` that differ in C_k alone, with the same schedule.

    Raises:
        ValueError: their shapes or schedules disagree.
    """

    def __init__(self, models: Sequence[DenoiserBase]) -> None:
        self.models = tuple(models)
        shapes = [model.event_shape for model in self.models]
        known = [shape for shape in shapes if shape is not None]
        if not known or len(known) < len(shapes) or len({shape[1:] for shape in known}) > 1:
            raise ValueError(
                f"the models have samples of shapes {shapes}: they may differ in the channels alone"
            )
        first = self.models[0].schedule
        if not all(same_schedule(first, model.schedule) for model in self.models):
            names = ", ".join(type(model.schedule).__name__ for model in self.models)
            raise ValueError(
                f"the models have the schedules {names}: they must share one, parameters included"
            )
        self.schedule = first
        self.channels = [shape[0] for shape in known]
        self.event_shape = (sum(self.channels), *known[0][1:])

    @property
    def device(self) -> torch.device:
        return self.models[0].device

    @property
    def downsampling_factor(self) -> int:
        return math.lcm(*(model.downsampling_factor for model in self.models))

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        parts = zip(self.models, x_t.split(self.channels, 1), strict=True)
        return torch.cat([model(part, t, cond) for model, part in parts], 1)


def same_schedule(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules have the same times and scales."""
    if (one.t_min, one.t_max) != (other.t_min, other.t_max):
        return False
    times = torch.linspace(one.t_min, one.t_max, 33, dtype=torch.float64)
    return all(torch.equal(a, b) for a, b in zip(one(times), other(times), strict=True))
