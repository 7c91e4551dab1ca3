r"""Denoising score matching weighted by the diffusion coefficient: the loss of the score-embedding papers.

.. math:: \frac{1}{2 g(t)^2} \operatorname{mean} |\sigma s_\theta(x_t, t) + z|^2,
          \qquad x_t = \alpha x_0 + \sigma z .

Because sigma s = -eps this is the noise-prediction loss divided by ``2 g^2``. The papers call it a sliced
Wasserstein distance; it is denoising score matching with the weighting ``sigma^2 / (2 g^2)``, and its minimiser
is that of every other positive weighting.

References:
    K. Lau, A. Na, J. Wan, "Efficient Score Pre-computation for Diffusion Models via Cross-Matrix Krylov
    Projection", 2025, https://arxiv.org/abs/2511.17634;
    A. Na, W. Gao, M. Briazkalo, J. Wan, "Efficient Denoising using Score Embedding in Score-based Diffusion
    Models", 2024, https://arxiv.org/abs/2404.06661;
    P. Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011,
    https://doi.org/10.1162/NECO_a_00142.
"""

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveFloat
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, perturb


class DiffusionWeightedScoreMatching(Objective):
    """``loss = mean |sigma s + noise|^2 / (2 g(t)^2)`` with ``x_t = alpha x_0 + sigma noise``.

    In units of [-1, 1] g is twice what it is for images in [0, 1], so the loss is a quarter of the papers' value. Where g is
    infinite (flow matching at t = 1) it is 0.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.zeros(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.FlowMatching())
    >>> objective = se.objectives.DiffusionWeightedScoreMatching(g=1.0)
    >>> objective(model, Batch(x=torch.ones(3, 2)), torch.full((3,), 0.5), torch.zeros(3, 2))  # sigma = alpha
    tensor([0.5000, 0.5000, 0.5000])

    Args:
        g: diffusion coefficient in units of the [-1, 1] range; None takes the schedule's ``diffusion(t)``.

    Raises:
        ValueError: if ``g`` is not positive, if the schedule's is 0 (constant noise) and none is given, or for a
            batch without clean data or noise of another shape.
    """

    @checked
    def __init__(self, g: PositiveFloat | None = None) -> None:
        self.g = g

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        _, x_t, t, _, _ = perturb(model.schedule, batch, t, noise)
        g = model.schedule.diffusion(t) if self.g is None else torch.full_like(t, self.g)
        if not (g > 0).all():
            raise ValueError(
                f"the diffusion coefficient of {type(model.schedule).__name__} is 0: set objective.g to the method's"
            )
        squared_error = mean_per_sample((model.eps(x_t, t, batch.cond) - noise) ** 2)
        return squared_error / expand_to(2 * g**2, squared_error)
