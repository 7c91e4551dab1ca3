r"""The losses of a generative adversarial network, per sample, from logits of the discriminator.

.. math:: L_D = -\log \sigma(D(x)) - \log(1 - \sigma(D(x'))), \qquad L_G = -\log \sigma(D(x'))

with :math:`\sigma` the logistic function, data x and drawn x'. For a fixed generator the best discriminator is the log of
the ratio of the two densities. :math:`L_G` is the non-saturating loss: its gradient does not vanish where D is sure.

References: I. Goodfellow et al., "Generative Adversarial Networks", 2014, https://arxiv.org/abs/1406.2661; L. Mescheder,
A. Geiger, S. Nowozin, "Which Training Methods for GANs do actually Converge?", 2018, https://arxiv.org/abs/1801.04406 (R1);
Z. Xiao, K. Kreis, A. Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs", 2022,
https://arxiv.org/abs/2112.07804.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.transitions import posterior
from scoreexp.schedules import Schedule


def discriminator_losses(of_data: Tensor, of_drawn: Tensor) -> Tensor:
    """``L_D`` of logits ``[B]`` each, ``[B]``.

    >>> discriminator_losses(torch.zeros(1), torch.zeros(1))  # 2 log 2: it cannot tell them apart
    tensor([1.3863])
    """
    return F.softplus(-of_data) + F.softplus(of_drawn)


def generator_losses(of_drawn: Tensor) -> Tensor:
    """``L_G`` of logits ``[B]``, ``[B]``.

    >>> generator_losses(torch.tensor([-10.0]))
    tensor([10.0000])
    """
    return F.softplus(-of_drawn)


def gradient_penalties(logits: Tensor, x: Tensor) -> Tensor:
    r"""R1: :math:`|\nabla_x D(x)|^2` of each sample, ``[B]``, itself differentiable.

    >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> gradient_penalties(x.square().sum(1) / 2, x)
    tensor([25.], grad_fn=<SumBackward1>)

    Args:
        logits: ``[B]``, each a function of its own ``x`` alone.
        x: ``[B, *]``, which requires a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


class Step(NamedTuple):
    """The scales of a step from ``t`` to the ``s`` before it, each ``[B]``.

    Attributes:
        t: the later time, float64.
        alpha_t: of it.
        sigma_t: of it.
        alpha_s: of the earlier time; 1 where that is clean data.
        sigma_s: of it; 0 where that is clean data.
    """

    t: Tensor
    alpha_t: Tensor
    sigma_t: Tensor
    alpha_s: Tensor
    sigma_s: Tensor

    def forwards(self, x_0: Tensor, noise: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        """``x_s`` and ``x_t [B, *]`` of clean data, by two draws of noise."""
        alpha_s, sigma_s = expand_to(self.alpha_s, x_0), expand_to(self.sigma_s, x_0)
        x_s = alpha_s * x_0 + sigma_s * noise
        *_, beta = posterior(*self[1:])
        return x_s, expand_to(self.alpha_t / self.alpha_s, x_0) * x_s + expand_to(beta.sqrt(), x_0) * more

    def backwards(self, x_t: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
        """A draw of ``q(x_s | x_t, x_0)``, ``[B, *]``."""
        of_x_t, of_x0, beta = posterior(*self[1:])
        deviation = beta.sqrt() * self.sigma_s / self.sigma_t
        return sum(expand_to(a, x_t) * b for a, b in ((of_x_t, x_t), (of_x0, x_0), (deviation, noise)))  # type: ignore[return-value]


def step_of(schedule: Schedule, t: Tensor, steps: int) -> Step:
    """The steps that end at ``t [B]``, of T even ones between 0 and ``t_max``; 0 is clean data.

    >>> from scoreexp.schedules import VP
    >>> step_of(VP(), torch.tensor([0.25, 1.0], dtype=torch.float64), steps=4).sigma_s.round(decimals=4)
    tensor([0.0000, 0.9983], dtype=torch.float64)

    Args:
        schedule: whose scales they are.
        t: times ``t_max n / T``, float64.
        steps: T.
    """
    width = schedule.t_max / steps
    first = t < 1.5 * width
    alpha_s, sigma_s = schedule(torch.where(first, t, t - width))
    return Step(t, *schedule(t), alpha_s.masked_fill(first, 1.0), sigma_s.masked_fill(first, 0.0))
