"""A variance-preserving schedule whose curve is trained with the network."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt
from scoreexp.schedules.base import VariancePreserving

_SLOPE = 10.0  # of the sigmoids at the start, per unit of time
_TIMES = torch.linspace(
    0, 1, 257, dtype=torch.float64, device="cpu"
)  # of the table by which the curve is inverted
_STEPS = 5


class LearnedVP(VariancePreserving, nn.Module):
    r"""``alpha^2 = 1 / (1 + e^gamma)``, ``sigma^2 = 1 / (1 + e^-gamma)`` with a trained increasing ``gamma(t)`` on [0, 1].

    .. math:: \gamma(t) = \gamma_0 + (\gamma_1 - \gamma_0) \frac{m(t) - m(0)}{m(1) - m(0)}, \qquad
              m(t) = w_0 t + \sum_k w_k \operatorname{sigmoid}(a_k (t - c_k)), \quad w, a > 0,

    so that ``-gamma`` is the logarithm of the signal-to-noise ratio and ``sigma / alpha = e^(gamma / 2)``. The ends and
    ``m`` are parameters: as part of a ``Denoiser`` they are trained, averaged and saved with its network, under
    ``schedule.*``. Train it by ``objective=variational``: any other loss is least where the schedule makes its task easy.
    The curve starts nearly straight.

    Reference: D. P. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021,
    https://arxiv.org/abs/2107.00630, section 3 and appendix H (there m has three layers of positive weights, which is the
    sum above).

    >>> schedule = LearnedVP(gamma_min=-13.3, gamma_max=5.0)
    >>> [round(2 * math.log(level), 4) for level in schedule.sigma_range]
    [-13.3, 5.0]

    Args:
        gamma_min: ``gamma_0`` at the start of training.
        gamma_max: ``gamma_1`` at the start of training, > ``gamma_min``.
        units: number of sigmoids.

    Raises:
        ValueError: if the ends are not in that order, or ``units`` is not positive.
    """

    @checked
    def __init__(self, gamma_min: float = -13.3, gamma_max: float = 5.0, units: PositiveInt = 64) -> None:
        if not -math.inf < gamma_min < gamma_max < math.inf:
            raise ValueError(f"gamma_min={gamma_min}, gamma_max={gamma_max}: choose gamma_min < gamma_max")
        nn.Module.__init__(self)
        VariancePreserving.__init__(self, t_min=0.0, t_max=1.0)

        def parameter(
            values: list[float],
        ) -> nn.Parameter:  # has its values where a model has shapes alone, too
            return nn.Parameter(torch.tensor(values, dtype=torch.float32, device="cpu"))

        self.first = parameter([gamma_min])
        self.log_span = parameter([math.log(gamma_max - gamma_min)])
        self.weights = parameter([_raw(1.0)] + [_raw(1 / units)] * units)
        self.slopes = parameter([_raw(_SLOPE)] * units)
        self.centres = parameter([(k + 0.5) / units for k in range(units)])

    def gamma(self, t: Tensor) -> Tensor:
        """``gamma(t)``, float64 on the CPU, of times on the CPU."""
        first, span = self._ends()
        return first + span * self._share(t)[0]

    def log_density(self, t: Tensor) -> Tensor:
        """``log(dt / dgamma)`` at the fixed ``gamma(t)``, but for a constant of the ends, as a function of ``m`` alone.

        Under uniform times that is the density of training at ``gamma``; its gradient is taken with ``gamma`` and not ``t``
        held fixed.
        """
        share, rate = self._share(t)
        again = t - (share - share.detach()) / rate.detach()  # the time of the same gamma
        return -self._share(again)[1].log()

    def _ends(self) -> tuple[Tensor, Tensor]:
        """``gamma_0`` and ``gamma_1 - gamma_0``."""
        return _float64(self.first), _float64(self.log_span).exp()

    def _share(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(m(t) - m(0)) / (m(1) - m(0))`` and its derivative."""
        weights, slopes = F.softplus(_float64(self.weights)), F.softplus(_float64(self.slopes))
        at = F.pad(F.pad(t.reshape(-1), (0, 1), value=0.0), (0, 1), value=1.0)
        sigmoids = torch.sigmoid(slopes * (at[:, None] - _float64(self.centres)))
        m = weights[0] * at + sigmoids @ weights[1:]
        rate = weights[0] + (sigmoids * (1 - sigmoids)) @ (slopes * weights[1:])
        total = m[-1] - m[-2]
        return ((m[:-2] - m[-2]) / total).reshape(t.shape), (rate[:-2] / total).reshape(t.shape)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * F.logsigmoid(-self.gamma(t))

    def _drift(self, t: Tensor) -> Tensor:
        return -0.5 * torch.sigmoid(self.gamma(t)) * self._ends()[1] * self._share(t)[1]

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        first, span = self._ends()
        share = (torch.expm1(-2 * log_alpha).log() - first) / span
        with (
            torch.no_grad()
        ):  # Newton's steps between two neighbours of a table, halving where one leaves them
            wanted = share.contiguous()
            table = self._share(_TIMES)[0]
            after = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
            low, high = _TIMES[after - 1], _TIMES[after]
            t = torch.lerp(
                low, high, ((wanted - table[after - 1]) / (table[after] - table[after - 1])).clamp(0, 1)
            )
            for _ in range(_STEPS):
                found, rate = self._share(t)
                low, high = torch.where(found < wanted, t, low), torch.where(found < wanted, high, t)
                again = t - (found - wanted) / rate
                t = torch.where((again >= low) & (again <= high), again, (low + high) / 2)
        found, rate = self._share(t)
        return t - (found - share) / rate  # one more, for the derivative


def _raw(value: float) -> float:
    """Of which ``value`` is the softplus."""
    return math.log(math.expm1(value))


def _float64(parameter: Tensor) -> Tensor:
    return parameter.to(device="cpu", dtype=torch.float64)
