r"""Consistency training: one network evaluation from any noise level to the end of the probability flow.

A consistency function ``f(x_t, t)`` maps every state of a path of the probability-flow ODE to the path's end at the smallest
noise level ``r_1``, where ``f(x, t_min) = x``. With noise levels ``r_1 < ... < r_N`` and one ``z`` for both,

.. math:: E\left[ \frac{1}{r_{i+1} - r_i}\, d\bigl(f(x_0 + r_{i+1} z, r_{i+1}),\; f^-(x_0 + r_i z, r_i)\bigr) \right],
          \qquad d(a, b) = \sqrt{|a - b|^2 + c^2} - c ,

where ``f^-`` is ``f`` itself without a gradient: the teacher is no average. As ``N`` grows the minimiser tends to the
consistency function; at a finite ``N`` it maps nearer to the mean of the data. ``N`` is doubled during training,

.. math:: N(k) = \min(s_0 2^{\lfloor k / K' \rfloor}, s_1) + 1, \qquad
          K' = \lfloor K / (\log_2 \lfloor s_1 / s_0 \rfloor + 1) \rfloor .

References: Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023, https://arxiv.org/abs/2303.01469;
Y. Song, P. Dhariwal, "Improved Techniques for Training Consistency Models", 2023, https://arxiv.org/abs/2310.14189, table 1.
"""

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import AtLeastTwo, FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective
from scoreexp.schedules import Schedule


class ConsistencyTraining(nn.Module, Objective):
    """The loss above, divided by the square root of the entries of a sample, so that it is of the size of one entry's error.

    The time of a sample is moved to the grid: one between ``r_i`` and ``r_{i+1}`` trains that pair, so
    ``time_law=log_normal`` gives the published discrete law (mean -1.1, std 2.0), but that the outermost pairs also get what
    lies beyond them, less than 1 %. Take ``precond=consistency``, which keeps
    ``f(x, t_min) = x``, and ``sampler=consistency``. A trained model's ``x0_hat`` is the end of a path, not the posterior
    mean: other samplers and restorers do not apply. The curriculum counts the calls, one for each batch.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.EDM())
    >>> objective = ConsistencyTraining(training_steps=100)
    >>> objective(model, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.randn(3, 2))  # both map to 0
    tensor([0., 0., 0.])

    Args:
        training_steps: ``K``, calls until which the curriculum runs.
        first: ``s_0``, intervals at the start, >= 2.
        last: ``s_1``, intervals at the end, >= ``first``.
        rho: of the grid of noise levels, even in ``r^(1 / rho)``.
        huber: ``c`` divided by the square root of the entries of a sample.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, for a batch without clean data, noise of another shape,
            or a schedule with one noise level or without a largest.
    """

    calls: Tensor

    @checked
    def __init__(
        self,
        training_steps: PositiveInt,
        first: AtLeastTwo = 10,
        last: AtLeastTwo = 1280,
        rho: Annotated[FinitePositiveFloat, "7 in the paper"] = 7.0,
        huber: Annotated[FinitePositiveFloat, "0.00054 in the paper"] = 0.00054,
    ) -> None:
        super().__init__()
        if last < first:
            raise ValueError(
                f"first={first}, last={last}: choose last >= first, the intervals only get finer"
            )
        self.training_steps, self.first, self.last = training_steps, first, last
        self.rho, self.huber = rho, huber
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def intervals(self, call: int) -> int:
        """``N - 1``, the number of intervals at the call ``k = 0, 1, ...``.

        >>> [ConsistencyTraining(training_steps=80).intervals(k) for k in (0, 9, 10, 69, 70, 1000)]
        [10, 10, 20, 640, 1280, 1280]
        """
        stages = int(math.log2(self.last // self.first)) + 1
        doublings = call // max(1, self.training_steps // stages)
        return int(min(self.first * 2.0 ** min(doublings, 64), self.last))

    def levels(self, schedule: Schedule, intervals: int) -> Tensor:
        """The noise levels ``r_1 < ... < r_N``, float64 ``[intervals + 1]``.

        Raises:
            ValueError: if the schedule has a single noise level, or no largest one.
        """
        low, high = finite_levels(schedule)
        roots = torch.linspace(
            low ** (1 / self.rho), high ** (1 / self.rho), intervals + 1, dtype=torch.float64
        )
        return (roots**self.rho).clamp(low, high)

    def forward(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        levels = self.levels(model.schedule, self.intervals(int(self.calls)))
        level = model.schedule.noise_level(t.to(device="cpu", dtype=torch.float64))
        i = (torch.searchsorted(levels, level, right=True) - 1).clamp(0, len(levels) - 2)
        loss = pair_loss(model, batch, noise, levels[i], levels[i + 1], self.huber)
        self.calls += 1
        return loss


def finite_levels(schedule: Schedule) -> tuple[float, float]:
    """The smallest and the largest noise level of a schedule.

    Raises:
        ValueError: if the schedule has a single noise level, or no largest one.
    """
    low, high = schedule.sigma_range
    if not low < high < math.inf:
        raise ValueError(
            f"the {type(schedule).__name__} schedule has the noise levels {low:.6g} to {high:.6g}: choose one with a "
            "smallest and a largest (schedule=edm), or schedule.t_max < 1"
        )
    return low, high


def pair_loss(
    model: DenoiserBase, batch: Batch, noise: Tensor, low: Tensor, high: Tensor, huber: float
) -> Tensor:
    """``d(f(x_0 + high z), f^-(x_0 + low z)) / (high - low)`` of noise levels ``low < high`` of each sample: ``[B]``.

    Raises:
        ValueError: if the batch has no clean data, or the noise another shape.
    """
    x_0, schedule = batch.x, model.schedule
    if x_0 is None:
        raise ValueError("the batch has no clean data x: this objective needs a data set that gives them")
    if noise.shape != x_0.shape:
        raise ValueError(
            f"noise of shape {tuple(noise.shape)} for data of shape {tuple(x_0.shape)}: draw as many"
        )

    def f(level: Tensor) -> Tensor:
        at = schedule.t_of_sigma(level)
        alpha, sigma = schedule(at)
        return model(expand_to(alpha, x_0) * x_0 + expand_to(sigma, x_0) * noise, at, batch.cond)

    devices = [x_0.device] if x_0.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():  # the same dropout for both
        target = f(low)
    squared = mean_per_sample((f(high) - target) ** 2)
    distance = squared / ((squared + huber**2).sqrt() + huber)  # sqrt(squared + huber^2) - huber
    return distance / expand_to(high - low, distance)
