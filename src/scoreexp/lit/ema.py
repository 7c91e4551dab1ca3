"""Moving averages of the weights: exponential ones, and power-function ones of any width afterwards."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import ProbabilityBelowOne


class EMA:
    r"""Decay law and update of averaged weights.

    .. math:: \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n)\,\theta_n, \qquad
        d_n = \min\{d, (1 + n) / (10 + n)\} \text{ with warm-up, } d \text{ without.}

    The half-life is :math:`\ln 2 / (1 - d)` optimiser steps, times the batch size in images. The averaged network is
    a module of its own beside the raw one, never swapped with it: validation, testing and the checkpoint's reader all
    see the same weights, also after an exception. Buffers are copied, not averaged.

    References: Ho, Jain, Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, https://arxiv.org/abs/2006.11239
    (d = 0.9999, no warm-up); the warm-up is that of TensorFlow's ``ExponentialMovingAverage``.

    >>> averaged, raw = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    >>> _ = nn.init.zeros_(averaged.weight)  # that of raw is 1
    >>> EMA(decay=0.75, warmup=False).update(averaged, raw, step=1)
    >>> averaged.weight.item()
    0.25

    Args:
        decay: d in [0, 1).
        warmup: let the average follow early weights closely, so that it is useful from the first look.
    """

    @checked
    def __init__(
        self,
        *,
        decay: Annotated[ProbabilityBelowOne, "0.999 to 0.9999 are usual"] = 0.9999,
        warmup: bool = True,
    ) -> None:
        self.decay, self.warmup = float(decay), bool(warmup)

    def decay_at(self, step: int) -> float:
        """d_n for the n-th update, n = 1, 2, ..."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, averaged: nn.Module, raw: nn.Module, step: int) -> None:
        """Move ``averaged`` towards ``raw`` in place; ``step`` counts updates from 1."""
        targets, copies = _tensors(averaged)
        sources, originals = _tensors(raw)
        torch._foreach_lerp_(targets, sources, 1 - self.decay_at(step))
        for copy, original in zip(copies, originals, strict=True):
            copy.copy_(original)


def _tensors(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers, each once; the methods of the module that list them take longer than the average does."""
    modules = list(module.modules())
    parameters = dict.fromkeys(p for m in modules for p in m._parameters.values() if p is not None)
    buffers = dict.fromkeys(b for m in modules for b in m._buffers.values() if b is not None)
    return list(parameters), list(buffers)


def power_of_width(width: float) -> float:
    r"""The exponent :math:`\gamma` at which a power-function average has the relative width ``width``.

    Reached in training of length t, the average weighs the weights of time :math:`\tau` by :math:`\tau^\gamma`. The standard
    deviation of that profile, divided by t, is

    .. math:: \sigma_{rel} = \sqrt{\frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}} .

    >>> round(power_of_width(0.1), 2), round(power_of_width(0.05), 2)
    (6.94, 16.97)

    Args:
        width: the relative width, in (0, 0.28); 0.288 is the uniform average of all weights.
    """
    inverse = width**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots.real.max())


class PowerEMA(EMA):
    r"""Average whose width is a share of the training so far, instead of a number of steps.

    .. math:: \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n)\,\theta_n, \qquad d_n = (1 - 1 / n)^{\gamma + 1},

    which weighs :math:`\theta_k` by :math:`(k^{\gamma + 1} - (k - 1)^{\gamma + 1}) / n^{\gamma + 1}`: nothing is left of the
    initial weights, so there is no warm-up. Averages of two widths that are stored from time to time give any other width
    afterwards, see ``reconstruction``.

    Reference: T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine, "Analyzing and Improving the Training
    Dynamics of Diffusion Models", 2024, https://arxiv.org/abs/2312.02696, section 3 and appendix C.

    >>> averaged, raw = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    >>> _ = nn.init.zeros_(averaged.weight)
    >>> PowerEMA(width=0.1).update(averaged, raw, step=1)  # the first update forgets where the average began
    >>> averaged.weight.item()
    1.0

    Args:
        width: standard deviation of the weighing profile divided by the steps so far, in (0, 0.28).
    """

    @checked
    def __init__(
        self, *, width: Annotated[float, (">", 0), ("<", 0.28), "0.05 to 0.1 are usual"] = 0.1
    ) -> None:
        self.width = float(width)
        self.power = power_of_width(self.width)

    def decay_at(self, step: int) -> float:
        return (1 - 1 / step) ** (self.power + 1)


def profile(width: float, step: int, steps: int) -> np.ndarray:
    """The share of each of the weights 1 .. ``steps`` in the average of ``width`` at ``step``: float64 ``[steps]``.

    >>> profile(0.1, step=2, steps=3).round(3)
    array([0.004, 0.996, 0.   ])
    """
    ends = np.minimum(np.arange(steps + 1) / step, 1.0) ** (power_of_width(width) + 1)
    return np.diff(ends)


def reconstruction(stored: Sequence[tuple[float, int]], width: float, step: int) -> np.ndarray:
    """The coefficients ``[S]`` with which stored averages add up to the average of ``width`` at ``step``.

    They are the least-squares fit of its profile by those of the stored ones; their sum is 1 up to the error of the fit.

    >>> reconstruction([(0.05, 50), (0.1, 50)], width=0.1, step=50).round(6) + 0.0
    array([0., 1.])

    Args:
        stored: width and step of each average.
        width: wanted, in (0, 0.28).
        step: wanted, at most the last one stored: later weights are in none of them.

    Raises:
        ValueError: nothing is stored, or only averages of before ``step``.
    """
    last = max((at for _, at in stored), default=0)
    if not 1 <= step <= last:
        raise ValueError(
            f"step={step} is not in 1..{last}, the steps of the {len(stored)} stored averages: choose one that is"
        )
    profiles = np.stack([profile(one, at, last) for one, at in stored], axis=1)
    return np.linalg.lstsq(profiles, profile(width, step, last), rcond=None)[0]


def reconstructed(
    stored: Sequence[tuple[float, int, Mapping[str, Tensor]]], width: float, step: int
) -> dict[str, Tensor]:
    """The averaged weights of ``width`` at ``step`` from stored averages: (width, step, state dict) of each.

    What is not floating point, such as a count, is that of the last stored average up to ``step``.

    >>> reconstructed([(0.05, 50, {"w": torch.zeros(1)}), (0.1, 50, {"w": torch.ones(1)})], width=0.1, step=50)
    {'w': tensor([1.])}

    Raises:
        ValueError: as for ``reconstruction``.
    """
    shares = reconstruction([(one, at) for one, at, _ in stored], width, step)
    newest = max(
        (entry for entry in stored if entry[1] <= step), key=lambda entry: entry[1], default=stored[0]
    )[2]
    found = {}
    for name, like in newest.items():
        if like.is_floating_point():
            parts = [
                share * state[name].double() for share, (_, _, state) in zip(shares, stored, strict=True)
            ]
            found[name] = torch.stack(parts).sum(0).to(like.dtype)
        else:
            found[name] = like.clone()
    return found
