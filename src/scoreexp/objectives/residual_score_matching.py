r"""Denoising score matching of the residual of an observation.

With an observation ``y`` of clean data ``x_0``, pulled back to their shape where the operator changes it, the diffusion runs
on the residual ``u_0 = x_0 - y`` and the denoiser is conditioned on y:

.. math:: u_t = \alpha u_0 + \sigma z, \qquad E\, w(t)\, |\hat u_0(u_t, t, y) - u_0|^2 ,

minimised by ``E[u_0 | u_t, y]``, so that ``y + u0_hat`` estimates ``x_0``. A process whose mean goes from ``x_0`` to y is
this with ``x_t = u_t + beta(t) y``:

- OUVE, of SGMSE+: schedule ``OUVE``, ``beta = 1``, the weighting of the noise or the score;
- Resfusion: schedule ``Resfusion``, ``beta = sqrt(a)``. Its target, the noise with a part of the residual in it, is linear
  in ``u_0`` at given ``u_t``: the published loss is ``ResnoiseWeighting``.

References:
    J. Richter, S. Welker, J.-M. Lemercier, B. Lay, T. Gerkmann, "Speech Enhancement and Dereverberation with
    Diffusion-Based Generative Models", 2023, https://arxiv.org/abs/2208.05830;
    Z. Shi et al., "Resfusion: Denoising Diffusion Probabilistic Models for Image Restoration Based on Prior Residual
    Noise", 2024, https://arxiv.org/abs/2311.14900.
"""

from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import streams_of
from scoreexp.objectives.denoising_score_matching import DenoisingScoreMatching
from scoreexp.objectives.weightings import Weighting
from scoreexp.observations import NoiseModel, Observation, Operator


class ResidualScoreMatching(DenoisingScoreMatching):
    """``loss = w(alpha, sigma) mean |u0_hat(u_t, t, y) - u_0|^2`` with ``u_0 = x_0 - y``.

    The network must take an image as ``cond`` (``networks.ImageConditioned``). The observation is ``batch.y`` where the data
    are pairs, and else made anew at each step by operator and noise model; its draws are named by the noise of the call.
    Class labels of the data are not used.

    >>> import torch
    >>> from scoreexp import observations
    >>> from scoreexp.denoisers import Denoiser, EDMPrediction
    >>> from scoreexp.objectives import EpsWeighting
    >>> from scoreexp.schedules import OUVE
    >>> class Zero(torch.nn.Module):
    ...     def forward(self, x, c_noise, cond=None):
    ...         return 0 * x + 0 * cond
    >>> model = Denoiser(Zero(), EDMPrediction(), OUVE())
    >>> objective = ResidualScoreMatching(observations.Identity(), observations.GaussianNoise(0.2), EpsWeighting())
    >>> x = torch.zeros(4, 3, 8, 8)
    >>> objective(model, Batch(x=x), torch.full((4,), 0.5), torch.ones_like(x)).shape
    torch.Size([4])

    Args:
        operator: ``A`` of the observation.
        noise: the law of ``y`` given ``A(x)``.
        weighting: ``w``.

    Raises:
        ValueError: if called with a batch without clean data, with noise of another shape, or with an observation that
            has no way back to the shape of ``x``.
    """

    @checked
    def __init__(self, operator: Operator, noise: NoiseModel, weighting: Weighting) -> None:
        super().__init__(weighting)
        self.operator, self.noise = operator, noise

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        x = batch.x
        if x is None:
            return super().__call__(model, batch, t, noise)  # says what is missing
        if batch.y is None:
            observed = Observation.simulate(x, self.operator, self.noise, streams_of(noise, "observation"))
        else:
            observed = Observation(batch.y, self.operator, self.noise)
        y = observed.pulled_back(x.shape[1:])
        return super().__call__(model, batch._replace(x=x - y, cond=y), t, noise)
