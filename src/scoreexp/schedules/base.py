r"""What every noise schedule is.

The forward process ``dx = a(t) x dt + g(t) dW`` started at clean data ``x_0`` has Gaussian marginals

.. math:: x_t = \alpha(t) x_0 + \sigma(t) z, \quad z \sim N(0, I), \qquad
          a = \frac{d \log \alpha}{dt}, \quad g^2 = \frac{d \sigma^2}{dt} - 2 a \sigma^2 .

Either pair, ``(alpha, sigma)`` or ``(a, g)``, determines the other. Only the ratio ``sigma / alpha`` says how
noisy ``x_t / alpha`` is; it increases with ``t`` and names a noise level in every schedule.

``alpha`` may reach 0 at ``t_max``, and nowhere else (flow matching). There ``x_t`` is noise that holds no trace of
``x_0``: the noise level is infinite, drift and diffusion may be, and ``E[x_0 | x_t]`` is the mean of the data. What
divides by ``alpha`` takes its limit there or refuses with the remedy.

References:
    Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole, "Score-Based Generative Modeling
    through Stochastic Differential Equations", 2021, https://arxiv.org/abs/2011.13456.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from scoreexp.core.checked import checked

# A time or ratio that was rounded to float32 at an end of the range is still that end.
_ROUNDING = 4 * torch.finfo(torch.float32).eps


class Schedule(ABC):
    """A noise schedule on ``t_min <= t <= t_max``.

    Times may have any shape, dtype and device; results have the same. Everything is evaluated in float64 on
    the CPU, so times kept on the CPU cost no device synchronisation. All functions are differentiable in
    ``t``.

    A new schedule writes the five abstract functions, in float64 and without checks; one whose ``alpha`` reaches 0
    writes ``_alpha`` too, for the derivative of ``exp(log alpha)`` does not exist there.

    >>> import torch
    >>> class OrnsteinUhlenbeck(Schedule):
    ...     '''dx = -x dt + dW'''
    ...     def _log_alpha(self, t): return -t
    ...     def _sigma(self, t): return (-torch.expm1(-2 * t) / 2).sqrt()
    ...     def _drift(self, t): return -torch.ones_like(t)
    ...     def _diffusion(self, t): return torch.ones_like(t)
    ...     def _t_of_sigma(self, ratio): return torch.log1p(2 * ratio**2) / 2
    >>> schedule = OrnsteinUhlenbeck(t_min=1e-3, t_max=3.0)
    >>> schedule.t_of_sigma(schedule.noise_level(torch.tensor([0.5, 2.0])))
    tensor([0.5000, 2.0000])

    Args:
        t_min: the smallest time, >= 0; ``sigma(t_min) > 0``.
        t_max: the largest time, > ``t_min``.

    Raises:
        ValueError: if the times are not in that order.
    """

    @checked
    def __init__(self, *, t_min: float, t_max: float) -> None:
        if not 0 <= t_min < t_max:
            raise ValueError(f"t_min={t_min}, t_max={t_max}: choose 0 <= t_min < t_max")
        self.t_min = t_min
        self.t_max = t_max

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _drift(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _diffusion(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _t_of_sigma(self, ratio: Tensor) -> Tensor: ...

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha(t), sigma(t))``."""
        return self.alpha(t), self.sigma(t)

    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data in ``x_t``, in (0, 1], or 0 at ``t_max``.

        Raises:
            ValueError: if a time lies outside the schedule's range (as in all functions of ``t``).
        """
        return self._evaluate(self._alpha, t)

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise in ``x_t``, in the units of the data ([-1, 1])."""
        return self._evaluate(self._sigma, t)

    def noise_level(self, t: Tensor) -> Tensor:
        """``sigma(t) / alpha(t)``, in the units of the data ([-1, 1]); infinite where ``alpha`` is 0."""
        return self._evaluate(lambda t: self._sigma(t) / self._alpha(t), t)

    def drift(self, t: Tensor) -> Tensor:
        """``a(t) = d log alpha / dt``, so that the drift of the SDE is ``f(x, t) = a(t) x``; -inf where alpha is 0."""
        return self._evaluate(self._drift, t)

    def diffusion(self, t: Tensor) -> Tensor:
        """``g(t)``, the diffusion coefficient of the SDE; infinite where the drift is."""
        return self._evaluate(self._diffusion, t)

    def at(self, t: float) -> tuple[float, float]:
        """``(alpha(t), sigma(t))`` of one time as floats, for the coefficients of a sampler."""
        alpha, sigma = self(torch.tensor(t, dtype=torch.float64))
        return alpha.item(), sigma.item()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest noise level ``sigma / alpha``, in the units of the data; the largest may be infinite."""
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64)
        low, high = self.noise_level(ends).tolist()
        return low, high

    @property
    def prior_std(self) -> float:
        """``sigma(t_max)``: the standard deviation of the Gaussian that sampling starts from."""
        return self.at(self.t_max)[1]

    def t_of_sigma(self, ratio: Tensor) -> Tensor:
        """The time at which ``sigma(t) / alpha(t) = ratio``.

        Args:
            ratio: noise levels of ``x_t / alpha``, any shape, in the units of the data ([-1, 1]); infinity names the
                time at which ``alpha`` is 0.

        Raises:
            ValueError: if a noise level lies outside ``sigma_range``.
        """
        low, high = self.sigma_range
        checked = self._checked(ratio, low, high, "noise level sigma/alpha")
        t = self._t_of_sigma(checked).clamp(self.t_min, self.t_max)
        return t.to(device=ratio.device, dtype=ratio.dtype)

    def _evaluate(self, function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        value = function(self._checked(t, self.t_min, self.t_max, "time t"))
        return value.to(device=t.device, dtype=t.dtype)

    def _checked(self, value: Tensor, low: float, high: float, name: str) -> Tensor:
        value = value.to(device="cpu", dtype=torch.float64)
        inside = (value >= low * (1 - _ROUNDING)) & (value <= high * (1 + _ROUNDING))
        if not inside.all():
            worst = value[~inside].flatten()[0].item()
            raise ValueError(
                f"{name} = {worst:.6g} is outside [{low:.6g}, {high:.6g}] of the {type(self).__name__} "
                "schedule: choose a value inside it or a schedule with a wider range"
            )
        return value


class VariancePreserving(Schedule):
    """``alpha^2 + sigma^2 = 1``, hence ``g^2 = -2 a``.

    A schedule adds ``log alpha``, its derivative and its inverse.

    >>> import torch
    >>> class OrnsteinUhlenbeck(VariancePreserving):
    ...     '''dx = -x dt + sqrt(2) dW'''
    ...     def _log_alpha(self, t): return -t
    ...     def _drift(self, t): return -torch.ones_like(t)
    ...     def _t_of_log_alpha(self, log_alpha): return -log_alpha
    >>> alpha, sigma = OrnsteinUhlenbeck(t_min=1e-3, t_max=3.0)(torch.tensor([1.0]))
    >>> alpha, alpha**2 + sigma**2
    (tensor([0.3679]), tensor([1.]))
    """

    @abstractmethod
    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor: ...

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _diffusion(self, t: Tensor) -> Tensor:
        return (-2 * self._drift(t)).sqrt()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return self._t_of_log_alpha(-0.5 * torch.log1p(ratio**2))


class VarianceExploding(Schedule):
    """``alpha = 1``, hence no drift. A schedule adds ``sigma``, ``g`` and the inverse of ``sigma``.

    >>> import torch
    >>> class Brownian(VarianceExploding):
    ...     '''dx = dW'''
    ...     def _sigma(self, t): return t.sqrt()
    ...     def _diffusion(self, t): return torch.ones_like(t)
    ...     def _t_of_sigma(self, ratio): return ratio**2
    >>> Brownian(t_min=1e-4, t_max=100.0).at(4.0)
    (1.0, 2.0)
    """

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0 * t

    def _drift(self, t: Tensor) -> Tensor:
        return 0 * t
