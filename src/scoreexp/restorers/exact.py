r"""The exact posterior mean where the prior is known: what no restorer exceeds in mean squared error, on average.

For ``y = A x + sigma z`` and a prior ``sum_k w_k N(mu_k, C_k)``, with ``S_k = A C_k A^T + sigma^2 I``,

.. math:: E[x | y] = \sum_k r_k \left( \mu_k + C_k A^T S_k^{-1} (y - A \mu_k) \right), \qquad
          r_k \propto w_k N(y; A \mu_k, S_k) ,

and for one of N images with equal probability the mean of these with the weights ``softmax(-|y - A x_i|^2 / (2 sigma^2))``.
"""

import torch
from torch import Tensor

from scoreexp.denoisers import Denoiser, DenoiserBase, OracleDenoiser
from scoreexp.networks import ExactPosteriorMean
from scoreexp.numerics.oracles import EmpiricalImages, Gaussian, GaussianMixture
from scoreexp.observations import LinearOperator, Observation
from scoreexp.restorers.requirements import gaussian_level, linear_operator

LARGEST = 4096  # entries of x whose covariance is inverted, in a few seconds


def exact_posterior_mean(model: DenoiserBase, observation: Observation) -> Tensor:
    """``E[x | y]``, ``[B, *]``, in the dtype of ``y``, computed in float64 on the CPU.

    >>> import torch
    >>> import scoreexp as se
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> exact_posterior_mean(model, observation)
    tensor([[0.5000, 0.5000]])

    Args:
        model: an ``OracleDenoiser`` of ``Gaussian``, ``GaussianMixture`` or ``EmpiricalImages``, or a ``Denoiser`` of the
            network ``ExactPosteriorMean``.
        observation: with a linear operator and white Gaussian noise of a level > 0.

    Raises:
        ValueError: the prior is another, or too large; the operator or the noise is another, or the level is 0.
    """
    name = "the exact posterior mean"
    operator, sigma = linear_operator(name, observation), gaussian_level(name, observation)
    if sigma == 0:
        raise ValueError(
            "the exact posterior mean divides by the noise level of y, which is 0: give a small one"
        )
    prior: object = model
    if isinstance(model, OracleDenoiser):
        prior = model.oracle
    elif isinstance(model, Denoiser) and isinstance(model.network, ExactPosteriorMean):
        prior = EmpiricalImages(model.network.images)
    if not isinstance(prior, EmpiricalImages | Gaussian | GaussianMixture):
        raise ValueError(
            f"{name} is known for an OracleDenoiser of Gaussian, GaussianMixture or EmpiricalImages, not for "
            f"{type(prior).__name__}: leave it out"
        )
    observation.require_shape(prior.event_shape)
    y = observation.y.flatten(1).double().cpu()
    if isinstance(prior, EmpiricalImages):
        mean = _of_images(operator, prior, y, sigma)
    else:
        mean = _of_mixture(operator, prior, y, sigma)
    return mean.reshape(len(y), *prior.event_shape).to(observation.y)


def _of_images(operator: LinearOperator, prior: EmpiricalImages, y: Tensor, sigma: float) -> Tensor:
    known = prior.images.double().cpu()
    distance = torch.cdist(y, operator(known).flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return (-(distance**2) / (2 * sigma**2)).softmax(1) @ known.flatten(1)


def _of_mixture(
    operator: LinearOperator, prior: Gaussian | GaussianMixture, y: Tensor, sigma: float
) -> Tensor:
    size = torch.Size(prior.event_shape).numel()
    if size > LARGEST:
        raise ValueError(f"a prior of {size} values: the exact posterior mean is computed up to {LARGEST}")
    weights, means, covariances = prior.components()
    a = operator(torch.eye(size, dtype=torch.float64).reshape(size, *prior.event_shape)).flatten(1).T
    totals = a @ covariances @ a.T + sigma**2 * torch.eye(len(a), dtype=torch.float64)
    residuals = y[:, None] - means @ a.T  # [B, K, m]
    solved = torch.linalg.solve(totals, residuals[..., None])[..., 0]
    evidence = -((residuals * solved).sum(-1) + torch.logdet(totals)) / 2
    shares = (weights.log() + evidence).softmax(1)
    moved = means + torch.einsum("kij,bkj->bki", covariances, solved @ a)
    return torch.einsum("bk,bki->bi", shares, moved)
