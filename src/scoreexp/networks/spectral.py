"""A network around another that knows the power spectrum of images and leaves it what is not Gaussian."""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.types import PositiveFloat, PositiveInt


class SpectralResidual(nn.Module):
    r"""The exact denoiser of a Gaussian with a power spectrum, and a network for what images are beyond it.

    In the orthonormal cosine transform (DCT-II) of rows, columns and channels, the coefficients of images are nearly
    independent, of variance :math:`\sigma_d^2 P`. For EDM's output F and noise level :math:`s = \sigma / (\alpha \sigma_d)`
    the posterior mean of a Gaussian with these variances is a gain for each coefficient, and input and output of the
    inner network are scaled to unit variance, each coefficient by its own factor:

    .. math:: F(x, s) = s \frac{P - 1}{P + s^2}\, x + g \sqrt{\frac{P (1 + s^2)}{P + s^2}}\,
        \mathrm{network}\Big(\sqrt{\frac{1 + s^2}{P + s^2}}\, x, s\Big).

    These are EDM's three coefficients for data that are not white: with P = 1 the network alone is left, times g, which is
    small because the filter leaves little to explain. A new network whose output is 0 is the Wiener filter. The spectrum
    starts as a power law of natural images, and may be learned,

    .. math:: P_k(f) = A_k \big(1 + |f|^2 / f_k^2\big)^{-\beta_k},

    f in units of the Nyquist frequency, k the coefficient along the channels: 0 is their mean, the others are
    differences of colour. The reflecting ends of the cosines leave no seam at the border, and every image size has its own
    transform.

    References: N. Wiener, "Extrapolation, Interpolation, and Smoothing of Stationary Time Series", 1949; D. Field,
    "Relations between the statistics of natural images and the response properties of cortical cells", 1987,
    https://doi.org/10.1364/JOSAA.4.002379; T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
    Models", 2022, https://arxiv.org/abs/2206.00364, table 1.

    >>> from functools import partial
    >>> from scoreexp.networks import ModulatedUNet
    >>> inner = partial(ModulatedUNet, widths=(16, 32), blocks=(1, 1), bands=2)
    >>> network = SpectralResidual(network=inner, event_shape=(3, 8, 8))
    >>> network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape
    torch.Size([2, 3, 8, 8])

    Args:
        network: makes the inner network from the keywords ``event_shape`` and ``num_classes`` (a Hydra ``_partial_``).
        event_shape: shape (C, H, W) of one image.
        num_classes: passed on.
        sigma_data: that of the EDM preconditioning, the only one whose output F this is.
        scale: g, of the inner network's output.
        learned: False keeps the power law that the spectrum starts as. What it learns fits the photographs it sees, and
            shrinks the fine detail of others that have more: natural images are better served by the law alone.

    Raises:
        ValueError: ``event_shape`` is not that of an image.
    """

    @checked
    def __init__(
        self,
        *,
        network: Callable[..., nn.Module],
        event_shape: tuple[int, ...],
        num_classes: PositiveInt | None = None,
        sigma_data: Annotated[PositiveFloat, "that of precond=edm"] = 0.5,
        scale: PositiveFloat = 0.3,
        learned: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(kind_of(tuple(event_shape)), Images):
            raise ValueError(f"event_shape={tuple(event_shape)}: SpectralResidual is for images (C, H, W)")
        self.network = network(event_shape=event_shape, num_classes=num_classes)
        self.downsampling_factor: Any = getattr(self.network, "downsampling_factor", 1)
        self.sigma_data, self.scale = sigma_data, scale
        channels = event_shape[0]
        self.log_power = nn.Parameter(torch.tensor([6.0, *[2.5] * (channels - 1)]))  # log A_k
        self.exponent = nn.Parameter(torch.full((channels,), 1.3))
        self.log_corner = nn.Parameter(torch.full((channels,), math.log(0.03)))
        for spectrum in (self.log_power, self.exponent, self.log_corner):
            spectrum.requires_grad_(learned)

    def power(self, height: int, width: int) -> Tensor:
        """P, the variance of the coefficients ``[C, height, width]`` in units of ``sigma_data^2``."""
        rows, columns = (torch.arange(n, device=self.log_power.device) / n for n in (height, width))
        square = rows[:, None] ** 2 + columns**2
        amplitude, exponent, corner = (
            p[:, None, None] for p in (self.log_power, self.exponent, self.log_corner)
        )
        return (amplitude - exponent * torch.log1p(square * (-2 * corner).exp())).exp()

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """``x[B, C, H, W]``, ``c_noise[B]`` -> ``[B, C, H, W]``; ``cond`` is the inner network's."""
        bases = [cosines(n, x) for n in x.shape[1:]]
        with torch.autocast(x.device.type, enabled=False):  # gains of up to 1 / s need all digits
            power = self.power(*x.shape[2:]).to(x.dtype)
            square = ((8 * c_noise).exp() / self.sigma_data**2)[:, None, None, None].to(x.dtype)
            whitening = ((1 + square) / (power + square)).sqrt()
            coefficients = torch.einsum("bchw,kc,ih,jw->bkij", x, *bases)
            white = torch.einsum("bkij,kc,ih,jw->bchw", whitening * coefficients, *bases)
        output = self.network(white, c_noise, cond)
        with torch.autocast(x.device.type, enabled=False):
            residual = torch.einsum("bchw,kc,ih,jw->bkij", output.to(x.dtype), *bases)
            gain = square.sqrt() * (power - 1) / (power + square)
            found = gain * coefficients + self.scale * power.sqrt() * whitening * residual
            return torch.einsum("bkij,kc,ih,jw->bchw", found, *bases)


def cosines(n: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II, ``[n, n]``: row i is the basis function of frequency i, of ``like``'s dtype and device.

    >>> basis = cosines(4, torch.zeros(1, dtype=torch.float64))
    >>> torch.allclose(basis @ basis.T, torch.eye(4, dtype=torch.float64))
    True
    """
    index = torch.arange(n, dtype=torch.float64, device="cpu")
    basis = torch.cos(math.pi / n * (index + 0.5) * index[:, None]) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(like)
