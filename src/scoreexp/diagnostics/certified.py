r"""The radius within which no perturbation changes what a smoothed classifier says, with a denoiser as its purifier.

The smoothed classifier says the class that ``f(D(x + r z))`` has most often. If that class has at least the probability
``p > 1/2``, no perturbation of Euclidean norm below

.. math:: R = r\, \Phi^{-1}(p)

changes it. ``p`` is bounded from below by the Clopper-Pearson interval of ``n`` draws, so that the radius holds with the
given confidence; for a linear classifier of two classes the exact one is the distance from the boundary.

References:
    J. Cohen, E. Rosenfeld, J. Z. Kolter, "Certified Adversarial Robustness via Randomized Smoothing", 2019,
    https://arxiv.org/abs/1902.02918;
    N. Carlini et al., "(Certified!!) Adversarial Robustness for Free!", 2023, https://arxiv.org/abs/2206.10550, for the
    denoiser before the classifier.
"""

from collections.abc import Callable
from typing import NamedTuple

import scipy.special
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.types import FinitePositiveFloat, OpenProbability, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.fields import denoised


class Certificate(NamedTuple):
    """Of each sample, ``[B]``.

    Attributes:
        label: the class that the smoothed classifier says.
        radius: certified, in the units of the data; 0 where it abstains.
        probability: lower bound of the probability of that class.
    """

    label: Tensor
    radius: Tensor
    probability: Tensor


def clopper_pearson_lower(hits: Tensor, n: int, confidence: float) -> Tensor:
    """The largest ``p`` that so many hits refute with this confidence; 0 for none. ``[B]`` float64.

    >>> clopper_pearson_lower(torch.tensor([0, 10]), 10, 0.95)  # 0.05 ** (1 / 10)
    tensor([0.0000, 0.7411], dtype=torch.float64)
    """
    k = hits.double()
    found = scipy.special.betaincinv(k.clamp_min(1).numpy(), (n - k + 1).numpy(), 1 - confidence)
    return torch.where(k > 0, torch.as_tensor(found, dtype=torch.float64), torch.zeros_like(k))


@checked
@torch.no_grad()
def certified_radius(
    classify: Callable[[Tensor], Tensor],
    x: Tensor,
    level: FinitePositiveFloat,
    *,
    model: DenoiserBase | None = None,
    n: PositiveInt = 256,
    chosen_by: PositiveInt = 32,
    confidence: OpenProbability = 0.999,
    seed: int = 0,
    batch: PositiveInt = 256,
) -> Certificate:
    """The certified radius of each sample, of the classifier on noisy data or, with a model, on denoised ones.

    >>> left_or_right = lambda x: (x[:, 0] > 0).long()
    >>> found = certified_radius(left_or_right, torch.tensor([[1.0, 0.0], [0.0, 3.0]]), 0.5, n=1000)
    >>> found.label[0], bool(0.8 < found.radius[0] < 1.0), found.radius[1]  # the second lies on the boundary
    (tensor(1), True, tensor(0., dtype=torch.float64))

    Args:
        classify: ``[B, *]`` -> classes ``[B]`` (long).
        x: samples ``[B, *]``.
        level: ``r`` of the smoothing, in the units of the data.
        model: denoises before ``classify``, at the level ``r``; None for the classifier alone.
        n: draws that the bound is computed from; with all of one class the radius is ``r Phi^-1((1 - confidence)^(1/n))``,
            the largest there is.
        chosen_by: further draws, of which the class is chosen.
        confidence: with which each radius holds.
        seed: names the noise.
        batch: noisy samples at once.

    Raises:
        ValueError: an argument is out of its range, or the level outside the range of the model's schedule.
    """
    stream = generator(seed, "certified radius", f"{level:g}")

    def votes(one: Tensor, draws: int) -> Tensor:
        found = []
        for size in torch.ones(draws).split(batch):
            z = torch.randn(len(size), *one.shape, generator=stream, dtype=torch.float64).to(one)
            u = one + level * z
            found.append(classify(u if model is None else denoised(model, u, level)).cpu())
        return torch.cat(found)

    labels, hits = [], []
    for one in x:
        label = votes(one, chosen_by).bincount().argmax()
        labels.append(label)
        hits.append((votes(one, n) == label).sum())
    lower = clopper_pearson_lower(torch.stack(hits), n, confidence)
    radius = level * torch.special.ndtri(lower.clamp(0.5, 1.0))
    return Certificate(torch.stack(labels), radius, lower)
