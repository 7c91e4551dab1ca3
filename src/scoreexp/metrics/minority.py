r"""The minority score: how badly a model gives back a sample that it sees through noise.

.. math:: \ell(x_0) = E_z\, |x_0 - D(\alpha x_0 + \sigma z)|^2

at one noise level :math:`\sigma / \alpha`. For Gaussian data :math:`N(m, v I)` it is
:math:`(1 - \alpha k)^2 |x_0 - m|^2 + D k^2 \sigma^2` with :math:`k = \alpha v / (\alpha^2 v + \sigma^2)`, so it ranks
samples as their density does. With several modes it does not in general: it says what is unlike the average of what could
lie under the noise.

Reference: S. Um, S. Lee, J. C. Ye, "Don't Play Favorites: Minority Guidance for Diffusion Models", 2024,
https://arxiv.org/abs/2301.12334, with a perceptual distance in place of the squared one.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase


@checked
@torch.no_grad()
def minority_scores(
    model: DenoiserBase,
    x_0: Tensor,
    *,
    streams: ImageStreams,
    level: FinitePositiveFloat = 0.7,
    draws: PositiveInt = 5,
    cond: Tensor | None = None,
) -> Tensor:
    """The score of each sample, ``[B]``; large for samples that the model finds unlikely.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 0.1)), VP())
    >>> usual, rare = minority_scores(model, torch.tensor([[0.1, 0.0], [1.0, 1.0]]), streams=ImageStreams([0, 1]))
    >>> bool(usual < rare)
    True

    Args:
        model: the denoiser.
        x_0: clean data ``[B, *]`` in the range of the model.
        streams: one random stream per sample, of the noise.
        level: ``sigma / alpha``, in units of the data.
        draws: of the noise, one evaluation each; 5 in the paper.
        cond: class labels ``[B]``, or None.

    Raises:
        ValueError: an argument is outside its range, or the level outside the schedule's.
    """
    t = model.schedule.t_of_sigma(torch.full((len(x_0),), level, dtype=torch.float64))
    alpha, sigma = model.schedule.at(float(t[0]))
    total = x_0.new_zeros(len(x_0))
    for _ in range(draws):
        x0_hat = model(alpha * x_0 + sigma * streams.normal(x_0), t, cond)
        total = total + (x_0 - x0_hat).flatten(1).square().sum(1)
    return total / draws
