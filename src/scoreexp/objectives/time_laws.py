"""Laws of the training times.

The law of ``t`` and the weighting of the loss act together (their product is the effective weighting), but
the law also decides the variance of the gradient, so it is its own object.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.schedules import Schedule


class TimeLaw(ABC):
    """A distribution of times on a schedule's range.

    >>> import torch
    >>> import scoreexp as se
    >>> class TwoTimes(se.objectives.TimeLaw):
    ...     def sample(self, n, schedule, generator):
    ...         late = torch.rand(n, generator=generator, dtype=torch.float64) < 0.5
    ...         return torch.where(late, schedule.t_max, schedule.t_max / 2)
    >>> sorted(set(TwoTimes().sample(20, se.schedules.VP(), torch.Generator().manual_seed(0)).tolist()))
    [0.5, 1.0]

    A law that learns from the losses, such as ``LearnedNoise``, sets ``learns``.
    """

    learns: ClassVar[bool] = False  # True: training calls ``weights`` and ``observe``

    def weights(self, t: Tensor, schedule: Schedule) -> Tensor:
        """What the losses of times ``t[B]`` are multiplied by, ``[B]``."""
        return torch.ones(len(t), dtype=torch.float64)

    def observe(self, t: Tensor, losses: Tensor, schedule: Schedule) -> None:
        """Learn from the losses ``[B]``, unweighted, of the times ``t[B]`` of the global batch."""
        return

    @abstractmethod
    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        """``n`` independent times ``[n]``, float64, on the generator's device (best the CPU)."""


class UniformTime(TimeLaw):
    """``t`` uniform on ``[t_min, t_max]``.

    >>> import torch
    >>> import scoreexp as se
    >>> t = se.objectives.UniformTime().sample(1000, se.schedules.VP(), torch.Generator().manual_seed(0))
    >>> t.shape, round(t.mean().item(), 1)
    (torch.Size([1000]), 0.5)
    """

    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        return schedule.t_min + (schedule.t_max - schedule.t_min) * u


class LogNormalNoise(TimeLaw):
    """``log(sigma / alpha)`` normal, clipped into the schedule's range of noise levels.

    On the path of flow matching ``sigma / alpha = t / (1 - t)``, so there it is the logit-normal law of ``t``
    (``time_law=logit_normal``: mean 0, std 1).

    References: T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, table 1; P. Esser et al., "Scaling Rectified Flow Transformers for High-Resolution
    Image Synthesis", 2024, https://arxiv.org/abs/2403.03206, section 3.1 (logit-normal).

    >>> import torch
    >>> import scoreexp as se
    >>> schedule = se.schedules.EDM()
    >>> t = se.objectives.LogNormalNoise().sample(1000, schedule, torch.Generator().manual_seed(0))
    >>> round(schedule.noise_level(t).log().mean().item(), 1)
    -1.2

    Args:
        mean: mean of ``log(sigma / alpha)``, with sigma in units of the [-1, 1] range (-1.2 in the paper).
        std: its standard deviation, > 0 (1.2 in the paper).

    Raises:
        ValueError: if ``std`` is not positive.
    """

    @checked
    def __init__(self, mean: float = -1.2, std: Annotated[PositiveFloat, "1.2 in the paper"] = 1.2) -> None:
        self.mean = mean
        self.std = std

    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, generator=generator, dtype=torch.float64, device=generator.device)
        return schedule.t_of_sigma((self.mean + self.std * z).exp().clamp(*schedule.sigma_range))


class LogUniformNoise(TimeLaw):
    """``log(sigma / alpha)`` uniform over the schedule's range of noise levels.

    With the noise-prediction loss this is the likelihood weighting with importance-sampled times, for the noise
    weighting ``g^2 / sigma^2 dt`` is uniform in ``log(sigma / alpha)``.

    Reference: Y. Song, C. Durkan, I. Murray, S. Ermon, "Maximum Likelihood Training of Score-Based Diffusion
    Models", 2021, https://arxiv.org/abs/2101.09258, section 4.3.

    >>> import torch
    >>> import scoreexp as se
    >>> schedule = se.schedules.EDM(sigma_min=0.01, sigma_max=100.0)
    >>> t = se.objectives.LogUniformNoise().sample(1000, schedule, torch.Generator().manual_seed(0))
    >>> round((schedule.noise_level(t) < 1).double().mean().item(), 1)
    0.5

    Raises:
        ValueError: (on a call) if the range is infinite, because ``alpha`` reaches 0: it has no uniform law.
    """

    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        low, high = (math.log(ratio) for ratio in schedule.sigma_range)
        if math.isinf(high):
            raise ValueError(
                f"the noise levels of the {type(schedule).__name__} schedule have no end, so none is uniform in their "
                "logarithm: choose time_law=uniform or log_normal, or schedule.t_max < 1"
            )
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        return schedule.t_of_sigma((low + (high - low) * u).exp().clamp(*schedule.sigma_range))


class DiscreteTime(TimeLaw):
    """``t = t_max n / steps`` with ``n`` uniform on ``1, ..., steps``: the training times of DDPM.

    Reference: J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239, algorithm 1.

    >>> import torch
    >>> import scoreexp as se
    >>> t = se.objectives.DiscreteTime(steps=4).sample(50, se.schedules.VP(), torch.Generator().manual_seed(0))
    >>> t.unique()
    tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)

    Args:
        steps: number of times, >= 1.

    Raises:
        ValueError: if ``steps`` is not positive, or the first time would lie below the schedule's ``t_min``.
    """

    @checked
    def __init__(self, steps: PositiveInt = 1000) -> None:
        self.steps = steps

    def sample(self, n: int, schedule: Schedule, generator: torch.Generator) -> Tensor:
        if schedule.t_max / self.steps < schedule.t_min * (1 - 1e-9):
            most = int(schedule.t_max / schedule.t_min)
            raise ValueError(
                f"steps={self.steps} puts the first time below t_min={schedule.t_min} of the "
                f"{type(schedule).__name__} schedule: choose at most {most}"
            )
        step = torch.randint(1, self.steps + 1, (n,), generator=generator, device=generator.device)
        return schedule.t_max * step.to(torch.float64) / self.steps
