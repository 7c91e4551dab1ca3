r"""Score matching without the noise as a target: implicit (Hyvarinen) and sliced.

Integration by parts removes the unknown score of ``x_t`` from the squared error of a model ``s``,

.. math:: E |s - \nabla \log p_t|^2 = E\left[ |s|^2 + 2 \operatorname{div} s \right] + E |\nabla \log p_t|^2 .

In terms of the denoiser, and with a constant added, this is an unbiased estimate of the squared error of the noise
that never looks at the noise (Stein's unbiased risk estimate, divided by sigma^2),

.. math:: \frac1D E |\hat\epsilon - z|^2 = E\left[ \frac1D |\hat\epsilon|^2 - 1
          + \frac{2 \alpha}{D} \operatorname{div} \hat x_0 \right],
          \qquad \operatorname{div} \hat x_0 = E\, v^T \frac{\partial \hat x_0}{\partial x_t} v,
          \quad E\, v v^T = I .

So for every model and time both losses here have the expectation of ``DenoisingScoreMatching`` with the same
weighting, and curves of the three can be compared; only the variance differs (a single loss may be negative). The
divergence takes one backward pass per direction, D of them for the exact one and one or a few for random directions,
and training differentiates them once more. Where ``alpha`` is 0 the estimate in terms of the noise remains and that of
the error of ``x_0`` is infinite: only weightings that vanish like ``alpha^2`` are admitted there.

References:
    A. Hyvarinen, "Estimation of Non-Normalized Statistical Models by Score Matching", 2005,
    https://jmlr.org/papers/v6/hyvarinen05a.html;
    Y. Song, S. Garg, J. Shi, S. Ermon, "Sliced Score Matching: A Scalable Approach to Density and Score Estimation",
    2019, https://arxiv.org/abs/1905.07088;
    C. Stein, "Estimation of the Mean of a Multivariate Normal Distribution", 1981,
    https://doi.org/10.1214/aos/1176345632.
"""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import expand_to, mean_per_sample
from scoreexp.core.types import PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase, eps_from_x0
from scoreexp.objectives.base import NoisyData, Objective, noise_name, perturb
from scoreexp.objectives.weightings import Weighting

_NO_SIGNAL = 1e-60  # stands for alpha = 0 in weights: far below any other alpha, and its square is a float64


class ImplicitScoreMatching(Objective):
    """Implicit score matching with the exact divergence, for data of few dimensions.

    ``loss = w(alpha, sigma) (sigma/alpha)^2 [mean eps_hat^2 - 1 + 2 alpha mean_i d x0_hat_i / d x_i]``. A step takes
    a backward pass through the model for each of the D entries of a sample.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.VP())
    >>> x, noise = torch.randn(2, 2000, 2, generator=torch.Generator().manual_seed(0))
    >>> arguments = model, Batch(x=x), torch.full((2000,), 0.3), noise
    >>> weighting = se.objectives.X0Weighting()
    >>> implicit = se.objectives.ImplicitScoreMatching(weighting)(*arguments).mean()
    >>> denoising = se.objectives.DenoisingScoreMatching(weighting)(*arguments).mean()
    >>> bool((implicit - denoising).abs() < 0.05)
    True

    Args:
        weighting: ``w``, of the squared error of ``x_0``.
        max_dimensions: the largest D that is accepted.

    Raises:
        ValueError: if ``max_dimensions`` is not positive; when called, if a sample has more entries, or for a batch
            without clean data or noise of another shape.
    """

    @checked
    def __init__(self, weighting: Weighting, max_dimensions: PositiveInt = 1024) -> None:
        self.weighting = weighting
        self.max_dimensions = max_dimensions

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        noisy = perturb(model.schedule, batch, t, noise)
        dimensions = noise[0].numel()
        if dimensions > self.max_dimensions:
            raise ValueError(
                f"the exact divergence of samples with {dimensions} entries takes as many derivatives, more than "
                f"max_dimensions={self.max_dimensions}: use objective=sliced, or raise objective.max_dimensions"
            )
        axes = torch.eye(dimensions, device=noise.device, dtype=noise.dtype)
        directions = axes.reshape(dimensions, 1, *noise.shape[1:]).expand(-1, len(noise), *noise.shape[1:])
        return _loss(model, noisy, batch.cond, directions, self.weighting)


class SlicedScoreMatching(Objective):
    """Sliced score matching, in its variance-reduced form: the divergence along random directions.

    ``loss = w(alpha, sigma) (sigma/alpha)^2 [mean eps_hat^2 - 1 + (2 alpha / D) v^T (d x0_hat / d x_t) v]``, averaged
    over directions v with independent entries +1 or -1. These are drawn from a stream that the noise names, so they are
    a function of the arguments. A step takes a backward pass through the model for each direction, and
    training its derivative, which a compiled network (``model.compile``) does not have.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.zeros(2)), se.schedules.VP())
    >>> objective = se.objectives.SlicedScoreMatching(se.objectives.EpsWeighting(), projections=2)
    >>> objective(model, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.full((3, 2), 2.0)).detach()
    tensor([3., 3., 3.])

    Args:
        weighting: ``w``, of the squared error of ``x_0``.
        projections: number of directions per sample.

    Raises:
        ValueError: if ``projections`` is not positive; when called, for a batch without clean data or noise of
            another shape.
    """

    @checked
    def __init__(self, weighting: Weighting, projections: PositiveInt = 1) -> None:
        self.weighting = weighting
        self.projections = projections

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        noisy = perturb(model.schedule, batch, t, noise)
        stream = generator(noise_name(noise), "projections of sliced score matching", device=noise.device)
        signs = torch.empty(self.projections, *noise.shape, device=noise.device, dtype=noise.dtype)
        directions = (2 * signs.bernoulli_(0.5, generator=stream) - 1) / self.projections**0.5
        return _loss(model, noisy, batch.cond, directions, self.weighting)


def _loss(
    model: DenoiserBase, noisy: NoisyData, cond: Tensor | None, directions: Tensor, weighting: Weighting
) -> Tensor:
    """The loss for ``directions[K, B, *]`` whose ``sum_k v_k v_k^T`` is the identity, in expectation."""
    alpha, sigma = noisy.alpha, noisy.sigma
    scale = alpha.clamp(min=_NO_SIGNAL)
    weight = weighting(scale, sigma) * (sigma / scale) ** 2  # of the error of the noise: w / SNR
    if (weight[alpha == 0] > 1 / _NO_SIGNAL).any():
        raise ValueError(
            f"{type(weighting).__name__} has an infinite weight on the error of the noise where alpha is 0, as at t = 1 of "
            "flow matching: choose EpsWeighting, ScoreWeighting or MinSNR, or schedule.t_max < 1"
        )
    x_t = noisy.x_t.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        x0_hat = model(x_t, noisy.t, cond)
        divergence = torch.zeros_like(mean_per_sample(x0_hat))
        for v in directions:
            (gradient,) = torch.autograd.grad(x0_hat, x_t, v, create_graph=True)
            divergence = divergence + mean_per_sample(v * gradient)
        eps = eps_from_x0(x0_hat, x_t, expand_to(alpha, x_t), expand_to(sigma, x_t))
        error = mean_per_sample(eps**2) - 1 + 2 * expand_to(alpha, divergence) * divergence
    return expand_to(weight, error) * error
