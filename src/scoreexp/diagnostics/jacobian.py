r"""The Jacobian of a denoiser: what it shrinks, along which directions, and whether it is the gradient of anything.

With :math:`u = x_0 + r z` and :math:`J = \partial D / \partial u`, the exact posterior mean has

.. math:: J = \frac{1}{r^2} \operatorname{Cov}[x_0 | u],

which is symmetric with eigenvalues >= 0: the share of each direction that is kept. For Gaussian data of covariance ``C``
they are those of Wiener's filter, :math:`c_k / (c_k + r^2)`, at every ``u``.

Reference: Z. Kadkhodaie, F. Guth, E. Simoncelli, S. Mallat, "Generalization in diffusion models arises from
geometry-adaptive harmonic representations", 2024, https://arxiv.org/abs/2310.02557.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import generator
from scoreexp.core.tensors import sum_per_sample
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.diagnostics.estimates import Estimate, ratio_of
from scoreexp.diagnostics.fields import denoised, probes, products

WHOLE = 256  # numbers of a sample up to which its whole Jacobian is formed
_MORE = 8  # directions iterated beside those wanted


class Spectrum(NamedTuple):
    """Eigenvalues ``[B, k]`` of the symmetric part of each Jacobian, largest first, and eigenvectors ``[B, k, *]``."""

    eigenvalues: Tensor
    eigenvectors: Tensor


@checked
def jacobian_spectrum(
    model: DenoiserBase,
    u: Tensor,
    level: FinitePositiveFloat,
    *,
    k: PositiveInt = 16,
    iterations: PositiveInt = 20,
    seed: int = 0,
) -> Spectrum:
    """The ``k`` largest eigenvalues of ``(J + J^T) / 2`` at each ``u``; all of them where there are fewer.

    Samples of up to 256 numbers get their whole Jacobian. For larger ones ``k + 8`` random directions are iterated
    (subspace iteration with a Rayleigh-Ritz step at the end), by products with ``J`` and ``J^T`` alone: the values
    then approach the exact ones from below, slowest where eigenvalues lie close together.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.tensor([1.0, 3.0])), VP())
    >>> jacobian_spectrum(model, torch.zeros(1, 2), 1.0).eigenvalues  # c / (c + 1)
    tensor([[0.7500, 0.5000]])

    Args:
        model: the denoiser, differentiable twice.
        u: noisy data ``[B, *]`` in the units of the data.
        level: ``r``, in the units of the data.
        k: how many.
        iterations: of the directions.
        seed: names the directions that are begun with.

    Raises:
        ValueError: an argument is outside its range, or the level outside the schedule's.
    """
    size = u[0].numel()
    k = min(k, size)
    found = [_spectrum(model, one[None], level, k, iterations, seed, size) for one in u]
    values, vectors = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Spectrum(values, vectors.reshape(len(u), k, *u.shape[1:]))


def _spectrum(
    model: DenoiserBase, u: Tensor, level: float, k: int, iterations: int, seed: int, size: int
) -> tuple[Tensor, Tensor]:
    """Of one sample: eigenvalues ``[k]`` and eigenvectors ``[k, D]``."""
    width = size if size <= WHOLE else min(size, k + _MORE)
    pair = products(lambda u: denoised(model, u, level), u.expand(width, *u.shape[1:]))

    def symmetric(directions: Tensor) -> Tensor:
        """Rows ``[width, D]`` times the symmetric part."""
        v = directions.reshape(width, *u.shape[1:])
        return ((pair.forward(v) + pair.transposed(v)) / 2).flatten(1)

    if width == size:
        basis = torch.eye(size, dtype=u.dtype, device=u.device)
    else:
        stream = generator(seed, "directions", size)
        basis = torch.randn(width, size, generator=stream, dtype=torch.float64).to(u)
        for _ in range(iterations):
            basis = torch.linalg.qr(symmetric(basis).T)[0].T
    projected = symmetric(basis) @ basis.T
    values, rotation = torch.linalg.eigh((projected + projected.T) / 2)
    return values.flip(0)[:k], (rotation.T @ basis).flip(0)[:k]


@checked
def jacobian_asymmetry(
    model: DenoiserBase,
    u: Tensor,
    level: FinitePositiveFloat,
    *,
    draws: PositiveInt = 2,
    seed: int = 0,
    batch: PositiveInt = 32,
) -> Estimate:
    r"""``E |J - J^T|^2 / (4 E |J|^2)``, in [0, 1], squared Frobenius norms: 0 for the gradient of a potential.

    By random probes, :math:`|A|_F^2 = E |A e|^2`. It is 0 for every exact score, and 1 where ``J`` is a rotation.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.tensor([1.0, 3.0])), VP())
    >>> jacobian_asymmetry(model, torch.zeros(4, 2), 1.0).value < 1e-12
    True

    Args:
        model: the denoiser, differentiable twice.
        u: noisy data ``[B, *]`` in the units of the data.
        level: ``r``, in the units of the data.
        draws: of probes, for each sample.
        seed: names them.
        batch: samples at once.

    Raises:
        ValueError: an argument is outside its range, or the level outside the schedule's.
    """
    signs = [probes(u, seed, f"asymmetry {level:g} {draw}") for draw in range(draws)]
    apart, whole = [], []
    for part, *parts in zip(u.split(batch), *(e.split(batch) for e in signs), strict=True):
        pair = products(lambda u: denoised(model, u, level), part)
        both = [(pair.forward(e), pair.transposed(e)) for e in parts]
        apart.append(torch.stack([sum_per_sample((a - b).square()) / 4 for a, b in both]).mean(0))
        whole.append(torch.stack([sum_per_sample(a.square() + b.square()) / 2 for a, b in both]).mean(0))
    return ratio_of(torch.cat(apart), torch.cat(whole))
