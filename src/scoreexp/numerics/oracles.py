r"""Data distributions whose noisy marginals are known exactly.

For ``x = alpha x_0 + sigma z`` each gives the log-density of ``x``, its gradient (the pixel-space score) and
the posterior mean ``E[x_0 | x]`` at any ``(alpha, sigma)``; at ``alpha = 0`` that is the mean of ``x_0``. They are
the ground truth for samplers, objectives and networks; the empirical one is also the limit of training on a finite set.

Everything is computed in float64 on the oracle's own device and returned in the dtype and on the device of
``x``.
"""

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt

_LOG_2PI = math.log(2 * math.pi)


class Oracle(ABC):
    """A distribution of clean data and its noisy marginals.

    A new oracle writes the four underscored functions for flat float64 data ``[B, D]`` and scales ``[B, 1]``.

    >>> import torch
    >>> class Origin(Oracle):
    ...     '''All mass at 0.'''
    ...     def _log_prob(self, x, alpha, sigma):
    ...         return torch.distributions.Normal(0, sigma).log_prob(x).sum(1)
    ...     def _score(self, x, alpha, sigma):
    ...         return -x / sigma**2
    ...     def _posterior_mean(self, x, alpha, sigma):
    ...         return torch.zeros_like(x)
    ...     def _sample(self, n, generator):
    ...         return torch.zeros(n, 2, dtype=torch.float64)
    >>> Origin((2,)).score(torch.ones(1, 2), torch.tensor([0.6]), torch.tensor([0.5]))
    tensor([[-4., -4.]])

    Attributes:
        event_shape: shape ``*`` of one sample.
    """

    def __init__(self, event_shape: tuple[int, ...]) -> None:
        self.event_shape = event_shape
        self.device = torch.device("cpu")

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-density of ``x = alpha x_0 + sigma z``.

        Args:
            x: points ``[B, *]``.
            alpha: scale of the data ``[B]``, >= 0.
            sigma: standard deviation of the noise ``[B]``, >= 0 (> 0 for the empirical distribution and where alpha is
                0).

        Returns:
            ``[B]``.

        Raises:
            ValueError: if ``x`` has another event shape (as in all functions of ``x``).
        """
        return self._log_prob(*self._flat(x, alpha, sigma)).to(device=x.device, dtype=x.dtype)

    def score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Gradient of the log-density in ``x``: arguments as ``log_prob``, returns ``[B, *]``."""
        return self._score(*self._flat(x, alpha, sigma)).reshape(x.shape).to(device=x.device, dtype=x.dtype)

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``E[x_0 | x]``: arguments as ``log_prob``, returns ``[B, *]``."""
        mean = self._posterior_mean(*self._flat(x, alpha, sigma))
        return mean.reshape(x.shape).to(device=x.device, dtype=x.dtype)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` draws of clean data ``[n, *]``, float64, on the generator's device."""
        draws = self._sample(n, generator)
        return draws.reshape(n, *self.event_shape)

    def to(self, device: torch.device | str) -> Self:
        """Move the parameters, hence the computation, to ``device``."""
        self.device = torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(self.device))
        return self

    def _flat(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if x.shape[1:] != self.event_shape:
            raise ValueError(
                f"samples of shape {tuple(x.shape[1:])} for an oracle of {self.event_shape}: they must agree"
            )
        x, alpha, sigma = (v.to(device=self.device, dtype=torch.float64) for v in (x, alpha, sigma))
        return x.flatten(1), alpha.reshape(-1, 1), sigma.reshape(-1, 1)

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...

    @abstractmethod
    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...

    @abstractmethod
    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor: ...

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor: ...


class Gaussian(Oracle):
    r"""``x_0 ~ N(mu, C)``, hence ``x ~ N(alpha mu, S)`` with ``S = alpha^2 C + sigma^2 I`` and

    .. math:: E[x_0 | x] = \mu + \alpha C S^{-1} (x - \alpha \mu).

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.tensor([1.0, 3.0]))
    >>> oracle.posterior_mean(torch.ones(1, 2), torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([[0.5000, 0.7500]])

    Args:
        mean: ``mu``, of the event shape ``*``.
        covariance: variances of the event shape (a diagonal ``C``), or the full ``C [D, D]`` with ``D`` the
            number of entries of ``mean``; positive semi-definite, in squared units of the data.

    Raises:
        ValueError: if the covariance has another shape, is not symmetric or has a negative eigenvalue.
    """

    @checked
    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(tuple(mean.shape))
        size = mean.numel()
        covariance = covariance.to(torch.float64)
        self._basis: Tensor | None = (
            None  # columns are the principal directions; None for the coordinate axes
        )
        if covariance.shape == mean.shape:
            self._variances = covariance.flatten()
        elif covariance.shape == (size, size):
            if not torch.allclose(covariance, covariance.T):
                raise ValueError("the covariance is not symmetric: pass (C + C^T) / 2")
            self._variances, self._basis = torch.linalg.eigh(covariance)
        else:
            raise ValueError(
                f"covariance of shape {tuple(covariance.shape)} for a mean of shape {self.event_shape}: "
                f"choose {self.event_shape} (variances) or {(size, size)} (full)"
            )
        smallest, largest = self._variances.min().item(), self._variances.max().item()
        if not smallest >= -1e-12 * abs(largest):
            raise ValueError(f"the covariance has the eigenvalue {smallest:.6g}: all must be >= 0")
        self._variances = self._variances.clamp(min=0)
        self._mean = mean.to(torch.float64).flatten()

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight ``[1]``, mean ``[1, D]`` and covariance ``[1, D, D]``, float64: a mixture of one."""
        basis = torch.eye(len(self._mean), dtype=torch.float64) if self._basis is None else self._basis
        return torch.ones(1, dtype=torch.float64), self._mean[None], (basis * self._variances @ basis.T)[None]

    def _to_basis(self, x: Tensor) -> Tensor:
        return x if self._basis is None else x @ self._basis

    def _from_basis(self, y: Tensor) -> Tensor:
        return y if self._basis is None else y @ self._basis.T

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variances = alpha**2 * self._variances + sigma**2
        y = self._to_basis(x - alpha * self._mean)
        return -0.5 * (y**2 / variances + variances.log() + _LOG_2PI).sum(1)

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variances = alpha**2 * self._variances + sigma**2
        return -self._from_basis(self._to_basis(x - alpha * self._mean) / variances)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        gain = alpha * self._variances / (alpha**2 * self._variances + sigma**2)
        return self._mean + self._from_basis(gain * self._to_basis(x - alpha * self._mean))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(
            n, self._mean.numel(), generator=generator, dtype=torch.float64, device=generator.device
        )
        std, mean = self._variances.sqrt().to(z.device), self._mean.to(z.device)
        basis = self._basis if self._basis is None else self._basis.to(z.device)
        return mean + (std * z if basis is None else (std * z) @ basis.T)


class GaussianMixture(Oracle):
    r"""``x_0 ~ sum_k w_k N(mu_k, diag c_k)``: per component as ``Gaussian``, weighted by the responsibilities

    .. math:: r_k(x) \propto w_k N(x; \alpha \mu_k, \alpha^2 c_k + \sigma^2).

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.GaussianMixture(torch.ones(2), torch.tensor([[-1.0], [1.0]]), torch.zeros(2))
    >>> oracle.posterior_mean(torch.tensor([[0.0], [5.0]]), torch.ones(2), torch.full((2,), 0.5))
    tensor([[0.],
            [1.]])

    Args:
        weights: ``w [K]``, >= 0, with a positive sum; normalised here.
        means: ``mu [K, *]``.
        variances: ``c``, > 0 or 0, either ``[K]`` (isotropic components) or ``[K, *]`` (diagonal ones).

    Raises:
        ValueError: if the shapes disagree, or a weight or variance is outside its domain.
    """

    @checked
    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        super().__init__(tuple(means.shape[1:]))
        components = means.shape[0]
        if weights.shape != (components,):
            raise ValueError(
                f"weights of shape {tuple(weights.shape)} for {components} means: choose ({components},)"
            )
        if variances.shape not in ((components,), means.shape):
            raise ValueError(
                f"variances of shape {tuple(variances.shape)}: choose ({components},) or {tuple(means.shape)}"
            )
        weights = weights.to(torch.float64)
        if not ((weights >= 0).all() and weights.sum() > 0):
            raise ValueError(f"weights {weights.tolist()}: choose weights >= 0 with a positive sum")
        if not (variances >= 0).all():
            raise ValueError(f"a variance is {variances.min().item():.6g}: choose variances >= 0")
        self._weights = weights / weights.sum()
        self._means = means.to(torch.float64).reshape(components, -1)
        self._variances = variances.to(torch.float64).reshape(components, -1)  # [K, 1] or [K, D]

    def components(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``[K]``, means ``[K, D]`` and covariances ``[K, D, D]``, float64."""
        return self._weights, self._means, torch.diag_embed(self._variances.expand_as(self._means))

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals ``[B, K, D]``, marginal variances ``[B, K, 1 or D]`` and log joint ``[B, K]``."""
        residuals = x[:, None] - alpha[:, None] * self._means
        variances = alpha[:, None] ** 2 * self._variances + sigma[:, None] ** 2
        log_normal = -0.5 * (residuals**2 / variances + variances.log() + _LOG_2PI).sum(2)
        return residuals, variances, self._weights.log() + log_normal

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._components(x, alpha, sigma)[2].logsumexp(1)

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        residuals, variances, log_joint = self._components(x, alpha, sigma)
        return -(log_joint.softmax(1)[:, :, None] * residuals / variances).sum(1)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        residuals, variances, log_joint = self._components(x, alpha, sigma)
        means = self._means + alpha[:, None] * self._variances * residuals / variances
        return (log_joint.softmax(1)[:, :, None] * means).sum(1)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        k = torch.multinomial(self._weights.to(device), n, replacement=True, generator=generator)
        means, variances = self._means.to(device)[k], self._variances.to(device)[k]
        z = torch.randn(means.shape, generator=generator, dtype=torch.float64, device=device)
        return means + variances.sqrt() * z


class EmpiricalImages(Oracle):
    r"""``x_0`` is one of ``N`` images with equal probability: the limit of training on a finite set.

    .. math:: E[x_0 | x] = \sum_i w_i x_i, \qquad
              w = \mathrm{softmax}_i\left( -\frac{|x - \alpha x_i|^2}{2 \sigma^2} \right) .

    The sums run over the images in chunks, with a running maximum, so memory is ``O(chunk_size (B + D))``
    beyond the images themselves.

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.EmpiricalImages(torch.stack([-torch.ones(3, 8, 8), torch.ones(3, 8, 8)]))
    >>> x = torch.full((1, 3, 8, 8), 0.6)
    >>> oracle.posterior_mean(x, torch.ones(1), torch.full((1,), 0.1)).unique()
    tensor([1.])

    Args:
        images: ``[N, *]``, any event shape, N >= 1.
        chunk_size: images per chunk.

    Raises:
        ValueError: if there is no image, or a value is not finite.
    """

    @checked
    def __init__(self, images: Tensor, chunk_size: PositiveInt = 1024) -> None:
        if images.ndim < 2 or images.shape[0] < 1:
            raise ValueError(f"images of shape {tuple(images.shape)}: pass [N, *] with at least one image")
        if not images.is_floating_point() or not images.isfinite().all():
            raise ValueError(
                f"images of dtype {images.dtype} must be floating point and finite: convert to [-1, 1]"
            )
        super().__init__(tuple(images.shape[1:]))
        self.chunk_size = chunk_size
        self._images = images.flatten(1)
        self.device = images.device

    @property
    def images(self) -> Tensor:
        """``[N, *]``."""
        return self._images.unflatten(1, self.event_shape)

    def _sums(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """``log sum_i exp(l_i) [B]`` and the softmax average of the images ``[B, D]``.

        With ``l_i = (alpha x.x_i - alpha^2 |x_i|^2 / 2) / sigma^2``, the part of the exponent that depends on
        ``i``.
        """
        peak = x.new_full((len(x), 1), -math.inf)
        total, average = torch.zeros_like(peak), torch.zeros_like(x)
        for chunk in self._images.split(self.chunk_size):
            images = chunk.to(torch.float64)
            logits = alpha * (x @ images.T - 0.5 * alpha * (images**2).sum(1)) / sigma**2
            new_peak = torch.maximum(peak, logits.amax(1, keepdim=True))
            rescale, weights = (peak - new_peak).exp(), (logits - new_peak).exp()
            total = rescale * total + weights.sum(1, keepdim=True)
            average = rescale * average + weights @ images
            peak = new_peak
        return (peak + total.log()).squeeze(1), average / total

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log_sum = self._sums(x, alpha, sigma)[0]
        rest = -0.5 * (x / sigma).square().sum(1) - x.shape[1] * (sigma.log().squeeze(1) + 0.5 * _LOG_2PI)
        return log_sum - math.log(len(self._images)) + rest

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * self._posterior_mean(x, alpha, sigma) - x) / sigma**2

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._sums(x, alpha, sigma)[1]

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self._images), (n,), generator=generator, device=generator.device)
        return self._images[index.to(self._images.device)].to(device=generator.device, dtype=torch.float64)
