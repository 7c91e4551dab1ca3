r"""The exact denoiser of labelled data: one known distribution for each class, their mixture for the null label.

.. math:: E[x_0 | x_t, \varnothing] = \sum_k p(k | x_t)\, E[x_0 | x_t, k], \qquad p(k | x_t) \propto w_k\, p_t(x_t | k) .

The truth for guidance, which works with both.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.numerics.oracles import Oracle
from scoreexp.schedules import Schedule


class ConditionalOracle(DenoiserBase):
    """``E[x_0 | x_t, class]``; label K or none at all stands for the mixture of the K classes.

    >>> import torch
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = ConditionalOracle([Gaussian(torch.full((2,), m), torch.ones(2)) for m in (-1.0, 1.0)], [0.5, 0.5], VP())
    >>> model(torch.zeros(3, 2), torch.full((3,), 0.5), torch.tensor([0, 1, 2])).sign()
    tensor([[-1., -1.],
            [ 1.,  1.],
            [ 0.,  0.]])

    Args:
        classes: their distributions, of one event shape.
        weights: their probabilities ``w [K]``, up to a common factor.
        schedule: the noise schedule.

    Raises:
        ValueError: the shapes differ, or there is not one weight > 0 for each class.
    """

    def __init__(self, classes: Sequence[Oracle], weights: Sequence[float], schedule: Schedule) -> None:
        self.classes = tuple(classes)
        if len({oracle.event_shape for oracle in self.classes}) != 1:
            shapes = [oracle.event_shape for oracle in self.classes]
            raise ValueError(f"classes of shapes {shapes}: give at least one, all of one shape")
        if len(weights) != len(self.classes) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"weights={list(weights)} for {len(self.classes)} classes: give one > 0 for each"
            )
        self.log_weights = torch.tensor([*weights], dtype=torch.float64).log()
        self.schedule = schedule
        self.event_shape = self.classes[0].event_shape
        self.record = {"num_classes": len(self.classes), "config": {"model": {"label_dropout": 1.0}}}

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        scales = self.schedule(t.to(device="cpu", dtype=torch.float64))
        means = torch.stack([oracle.posterior_mean(x_t, *scales) for oracle in self.classes], 1)
        share = self.log_posterior(x_t, t).exp()
        if cond is not None:
            known = one_hot(cond, len(self.classes) + 1)[:, :-1].to(share)
            share = torch.where((cond == len(self.classes))[:, None], share, known)
        return (share.reshape(*share.shape, *[1] * (x_t.ndim - 1)) * means).sum(1)

    def log_posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """``log p(k | x_t)``, ``[B, K]``."""
        scales = self.schedule(t.to(device="cpu", dtype=torch.float64))
        joint = torch.stack([oracle.log_prob(x_t, *scales) for oracle in self.classes], 1)
        return (joint + self.log_weights.to(joint)).log_softmax(1)
