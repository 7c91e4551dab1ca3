r"""Weighted denoising score matching.

The score of ``x_t`` is unknown, but the score of ``x_t`` given ``x_0`` is not, and regressing on the latter
has the same minimiser (Vincent). In terms of the denoiser this is plain regression on clean data:

.. math:: E\, w(t)\, |\hat x_0(x_t, t) - x_0|^2 ,

minimised by the posterior mean ``E[x_0 | x_t]`` for every positive weighting. The noise-, velocity- and
score-prediction losses of the literature differ in ``w`` only; see ``weightings``.

References:
    P. Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011,
    https://doi.org/10.1162/NECO_a_00142;
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020,
    https://arxiv.org/abs/2006.11239.
"""

from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, perturb
from scoreexp.objectives.weightings import Weighting


class DenoisingScoreMatching(Objective):
    """``loss = w(alpha, sigma) mean |x0_hat - x_0|^2`` with ``x_t = alpha x_0 + sigma noise``.

    The mean is over the entries of a sample.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.VP())
    >>> objective = se.objectives.DenoisingScoreMatching(se.objectives.X0Weighting())
    >>> objective(model, Batch(x=torch.full((3, 2), 0.5)), torch.full((3,), 0.2), torch.randn(3, 2))
    tensor([0.2500, 0.2500, 0.2500])

    Args:
        weighting: ``w``.

    Raises:
        ValueError: if called with a batch without clean data, or with noise of another shape.
    """

    @checked
    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        x_0, x_t, t, alpha, sigma = perturb(model.schedule, batch, t, noise)
        squared_error = mean_per_sample((model(x_t, t, batch.cond) - x_0) ** 2)
        return expand_to(self.weighting(alpha, sigma), squared_error) * squared_error
