"""Exponential moving average of the weights."""

from typing import Annotated

import torch
from torch import nn

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
        targets = [p.detach() for p in averaged.parameters()]
        torch._foreach_lerp_(targets, [p.detach() for p in raw.parameters()], 1 - self.decay_at(step))
        for target, source in zip(averaged.buffers(), raw.buffers(), strict=True):
            target.copy_(source)
