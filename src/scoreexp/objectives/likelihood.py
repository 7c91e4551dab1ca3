r"""Denoising score matching weighted for the likelihood.

.. math:: \tfrac12 g(t)^2 \operatorname{mean} |s_\theta(x_t, t) + z / \sigma|^2, \qquad x_t = \alpha x_0 + \sigma z .

If p_t is the law of ``x_t`` and q_t that of the reverse process with the score of the model, started at q_T,

.. math:: KL(p_0 | q_0) \le KL(p_T | q_T) + \int \tfrac12 g^2\, E |s_\theta(x_t, t) - \nabla \log p_t(x_t)|^2 dt ,

with equality where s is the score of one process of this SDE. The loss under uniform times is that integral per
unit of time and per entry of a sample, plus a constant of the data. Because
``g^2 / sigma^2 = d log(sigma^2 / alpha^2) / dt``, it is proportional to the noise-prediction loss under noise levels
uniform in their logarithm, which has the smaller variance: with uniform times the weight grows without bound as ``t -> 0``.
Where ``alpha`` is 0 the noise is known whatever the model says, and the loss, that single time of the integral, is 0.

References:
    Y. Song, C. Durkan, I. Murray, S. Ermon, "Maximum Likelihood Training of Score-Based Diffusion Models", 2021,
    https://arxiv.org/abs/2101.09258, theorem 1;
    D. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021, https://arxiv.org/abs/2107.00630.
"""

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, perturb


class LikelihoodScoreMatching(Objective):
    """``loss = g(t)^2 / (2 sigma^2) mean |eps_hat - noise|^2``, to be used with uniform times.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.zeros(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.FlowMatching())
    >>> objective = se.objectives.LikelihoodScoreMatching()
    >>> objective(model, Batch(x=torch.ones(3, 2)), torch.full((3,), 0.5), torch.zeros(3, 2))
    tensor([4., 4., 4.])

    Raises:
        ValueError: if the schedule's diffusion coefficient is 0 (constant noise), or for a batch without clean data
            or noise of another shape.
    """

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        _, x_t, t, alpha, sigma = perturb(model.schedule, batch, t, noise)
        g = model.schedule.diffusion(t)
        if not (g > 0).all():
            raise ValueError(
                f"the diffusion coefficient of {type(model.schedule).__name__} is 0, so no likelihood belongs to it: "
                "choose a schedule whose noise grows"
            )
        squared_error = mean_per_sample((model.eps(x_t, t, batch.cond) - noise) ** 2)
        weight = torch.where(alpha > 0, g**2 / (2 * sigma**2), 0.0)
        return expand_to(weight, squared_error) * squared_error
