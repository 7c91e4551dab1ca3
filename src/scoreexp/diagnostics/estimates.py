"""Means and ratios of means over samples, with their standard errors."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

RELATIVE = 0.1  # the standard error, relative to the value, from which on a value is a claim


class Estimate(NamedTuple):
    """A value and its standard error over ``n`` samples; the error of a single sample is not a number.

    >>> Estimate(value=2.0, error=0.4, n=100).needed()
    400
    """

    value: float
    error: float
    n: int

    def needed(self, error: float | None = None) -> int | None:
        """How many samples bring the standard error down to ``error``, by default a tenth of the value.

        None where it is already below, or where the samples do not say.
        """
        aim = RELATIVE * abs(self.value) if error is None else error
        if not (math.isfinite(self.error) and aim > 0) or self.error <= aim:
            return None
        return math.ceil(self.n * (self.error / aim) ** 2 - 1e-9)


ByLevel = dict[float, Estimate]


def mean_of(values: Tensor) -> Estimate:
    """The mean of one value per sample ``[N]``.

    >>> mean_of(torch.tensor([1.0, 3.0]))
    Estimate(value=2.0, error=1.0, n=2)
    """
    return ratio_of(values, torch.ones_like(values))


def ratio_of(above: Tensor, below: Tensor) -> Estimate:
    r"""``sum a / sum b`` of two values per sample, ``[N]`` each, with the error to first order in the fluctuations,

    .. math:: \frac{1}{\bar b} \sqrt{\frac{1}{N (N - 1)} \sum_i (a_i - R b_i)^2}, \qquad R = \bar a / \bar b .

    Not a number where the sum below is not positive.

    >>> ratio_of(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 6.0]))  # the same for every sample
    Estimate(value=0.5, error=0.0, n=2)
    """
    a, b = above.detach().double().cpu(), below.detach().double().cpu()
    n, mean = len(a), float(b.mean())
    if not mean > 0:
        return Estimate(math.nan, math.nan, n)
    value = float(a.mean()) / mean
    rest = (a - value * b).square().sum()
    return Estimate(value, math.sqrt(float(rest) / (n * (n - 1))) / mean if n > 1 else math.nan, n)


def require_samples(x: Tensor, least: int, what: str) -> None:
    """Refuse fewer samples than a diagnostic can say anything from.

    Raises:
        ValueError: there are fewer than ``least``.
    """
    if len(x) < least:
        raise ValueError(f"{len(x)} sample(s) for {what}: it needs at least {least}, give n={least} or more")


def usable_levels(levels: Sequence[float], low: float, high: float, margin: float = 1.0) -> list[float]:
    """Those of ``levels`` inside a schedule's range, ``margin`` times away from its ends; or its middle, if none is.

    >>> usable_levels([0.1, 1.0, 10.0], low=0.5, high=5.0), usable_levels([0.1], low=4.0, high=9.0)
    ([1.0], [6.0])
    """
    inside = [level for level in levels if low * margin <= level <= high / margin]
    if inside or low * margin > high / margin:
        return inside
    return [math.sqrt(low * high) if math.isfinite(high) else low * max(margin, 2.0)]
