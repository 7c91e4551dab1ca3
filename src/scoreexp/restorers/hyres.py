r"""Hyperspectral restoration by low rank and sparsity: few eigen-images, each of them thresholded as wavelets.

A cube is a matrix ``Y`` of ``D`` bands by ``n`` pixels. With the eigenvectors ``V`` of ``Y Y^T`` the eigen-images
``V^T Y`` are uncorrelated and, ``V`` being orthonormal, have the noise of the bands. Their coefficients ``w`` in an
orthonormal wavelet basis are shrunk, each sub-band of each eigen-image by its own threshold:

.. math:: \hat X = V\, W^{-1}\, \eta_\lambda (W\, V^T Y), \qquad \eta_\lambda(w) = \mathrm{sign}(w) \max(|w| - \lambda, 0),

where ``lambda`` minimises Stein's unbiased estimate of the risk,

.. math:: \mathrm{SURE}(\lambda) = -N \sigma^2 + \sum_i \min(w_i^2, \lambda^2) + 2 \sigma^2 \#\{i : |w_i| > \lambda\} .

An eigen-image whose best threshold is its largest coefficient vanishes, so that the rank is chosen too. The wavelet is
Haar's, averaged over shifts of the image ("cycle spinning").

**Noise of the bands.** With ``whiten`` the bands are divided by their own noise levels first, those of the errors of
predicting each band from all others, ``1 / (C^{-1})_{bb}`` with the covariance ``C`` of the bands, scaled to the mean
square that the observation states. Noise of bands that agree is thereby told from signal, which the others predict. It
needs more pixels than bands, and bands that the others do not predict exactly; otherwise all bands have one level.

References:
    B. Rasti, M. O. Ulfarsson, P. Ghamisi, "Automatic Hyperspectral Image Restoration Using Sparse and Low-Rank
    Modeling", 2017, https://doi.org/10.1109/LGRS.2017.2764059;
    D. L. Donoho, I. M. Johnstone, "Adapting to Unknown Smoothness via Wavelet Shrinkage", 1995,
    https://doi.org/10.1080/01621459.1995.10476626 (thresholds by SURE);
    R. R. Coifman, D. L. Donoho, "Translation-Invariant De-Noising", 1995, https://doi.org/10.1007/978-1-4612-2544-7_9;
    J. M. Bioucas-Dias, J. M. P. Nascimento, "Hyperspectral Subspace Identification", 2008,
    https://doi.org/10.1109/TGRS.2008.918089 (the noise of the bands).
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.tiling import mirror_to_multiple

_DEEPEST = 5  # levels of the wavelet
_PER_BAND = 4  # pixels for each band, from which a covariance of the bands is estimated


class HyRes(ImageFilter):
    """See the module's formulas.

    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> spectrum, abundance = torch.linspace(0.2, 1, 10), torch.linspace(-1, 1, 32)
    >>> clean = (spectrum[:, None, None] * abundance[:, None]).expand(-1, -1, 32)[None]
    >>> observation = Observation.simulate(clean, Identity(), GaussianNoise(0.3), ImageStreams([0]))
    >>> error = HyRes()(observation, streams=ImageStreams([0])).x - clean
    >>> bool(error.square().mean() < 0.3**2 / 20)
    True

    Args:
        levels: of the wavelet; null for as many as halve the shorter side down to 4 pixels, at most 5.
        shifts: along rows and along columns, over which the result is averaged.
        whiten: estimate the noise of each band.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the observation is no image with white Gaussian noise.
    """

    @checked
    def __init__(
        self, levels: PositiveInt | None = None, shifts: PositiveInt = 2, whiten: bool = True
    ) -> None:
        self.levels, self.shifts, self.whiten = levels, shifts, whiten

    @torch.no_grad()
    def apply(self, y: Tensor, sigma: float) -> Tensor:
        return torch.stack([self._restored(cube, sigma) for cube in y])

    def _restored(self, cube: Tensor, sigma: float) -> Tensor:
        bands, height, width = cube.shape
        matrix = cube.double().flatten(1)
        scale = torch.ones(bands, 1, dtype=matrix.dtype, device=cube.device)
        if self.whiten and (found := noise_of_bands(matrix)) is not None:
            scale = (found / found.square().mean().sqrt())[:, None]
        white = matrix / scale
        _, v = torch.linalg.eigh(white @ white.T)
        images = (v.T @ white).reshape(bands, height, width)
        levels = self.levels or max(1, min(_DEEPEST, int(min(height, width)).bit_length() - 3))
        padded = mirror_to_multiple(images[None], 2**levels)[0]
        total = torch.zeros_like(images)
        for down in range(self.shifts):
            for right in range(self.shifts):
                moved = padded.roll((down, right), (1, 2))
                shrunk = _shrunk(moved, sigma, levels).roll((-down, -right), (1, 2))
                total += shrunk[:, :height, :width]
        restored = scale * (v @ (total / self.shifts**2).flatten(1))
        return restored.reshape(cube.shape).to(cube.dtype)


def noise_of_bands(matrix: Tensor) -> Tensor | None:
    """Standard deviation of the noise of each band of ``[D, n]``: of its regression on all other bands and a constant.

    >>> signal = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> noise = torch.randn(20, 2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    >>> noise_of_bands(signal + 0.1 * noise).mean().round(decimals=2)
    tensor(0.1000, dtype=torch.float64)

    Returns:
        ``[D]``, or None where bands are too many for their pixels or predict one another exactly.
    """
    bands, pixels = matrix.shape
    if bands < 3 or pixels < _PER_BAND * bands:
        return None
    centred = matrix - matrix.mean(1, keepdim=True)
    free = pixels - bands  # those of the residual: a constant and all other bands are fitted
    covariance = centred @ centred.T
    factor, failed = torch.linalg.cholesky_ex(covariance)
    diagonal = factor.diagonal()
    if int(failed) or not float(diagonal.min()) > 1e-7 * float(diagonal.max()):
        return None
    return (1 / torch.cholesky_inverse(factor).diagonal() / free).sqrt()


def sure_threshold(w: Tensor, sigma: float) -> Tensor:
    """The soft threshold ``[K, 1]`` of least ``SURE`` for each row of coefficients ``w [K, N]``, one of ``0`` and ``|w_i|``.

    >>> sure_threshold(torch.tensor([[0.1, -0.2, 9.0, 0.1]]), 1.0)
    tensor([[0.2000]])
    """
    magnitudes = w.abs().sort(1).values
    candidates = torch.cat([torch.zeros_like(w[:, :1]), magnitudes], 1)  # k coefficients are at most the k-th
    below = torch.cat([torch.zeros_like(w[:, :1]), magnitudes.square().cumsum(1)], 1)
    above = w.shape[1] - torch.arange(w.shape[1] + 1, dtype=w.dtype, device=w.device)
    risk = below + above * (candidates.square() + 2 * sigma**2)
    return candidates.gather(1, risk.argmin(1, keepdim=True))


def _shrunk(images: Tensor, sigma: float, levels: int) -> Tensor:
    """Images ``[K, H, W]`` with thresholded details of Haar's wavelet, and thresholded remainder."""
    means, details = images, []
    for _ in range(levels):
        a, b, c, d = (means[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
        means = (a + b + c + d) / 2
        details.append([(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2])
    means = _soft(means, sigma)
    for parts in reversed(details):
        x, y, z = (_soft(part, sigma) for part in parts)
        finer = means.new_empty(len(means), 2 * means.shape[1], 2 * means.shape[2])
        finer[:, 0::2, 0::2], finer[:, 0::2, 1::2] = (means + x + y + z) / 2, (means - x + y - z) / 2
        finer[:, 1::2, 0::2], finer[:, 1::2, 1::2] = (means + x - y - z) / 2, (means - x - y + z) / 2
        means = finer
    return means


def _soft(w: Tensor, sigma: float) -> Tensor:
    flat = w.flatten(1)
    return (flat.sign() * (flat.abs() - sure_threshold(flat, sigma)).clamp(min=0)).reshape(w.shape)
