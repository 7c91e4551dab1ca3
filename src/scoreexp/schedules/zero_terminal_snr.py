"""A variance-preserving schedule, rescaled so that nothing of the data is left at its end."""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.schedules.base import VariancePreserving


class ZeroTerminalSNR(VariancePreserving):
    r"""The ``alpha`` of another schedule, shifted to 0 at ``t_max`` and scaled back to its value at ``t_min``.

    .. math:: \alpha'(t) = c\, (\alpha(t) - \alpha(t_{max})), \qquad
              c = \frac{\alpha(t_{min})}{\alpha(t_{min}) - \alpha(t_{max})}, \qquad \sigma' = \sqrt{1 - \alpha'^2} .

    DDPM's schedule leaves ``alpha = 0.006`` of the data at its last step, the scaled-linear one of Stable Diffusion 0.068.
    Training sees that rest, for instance the mean brightness of an image, and samples start without it. Here the start is
    the exact marginal. The noise says nothing of ``x_0`` there, so a parameterisation must state it: v, x0 or edm;
    ``Denoiser`` refuses noise and score. The reverse SDE forgets the start, where drift and diffusion are infinite.

    For DDPM the values at the steps are those of the paper; between them ``alpha'`` follows DDPM's interpolation.

    Reference: S. Lin, B. Liu, J. Li, X. Yang, "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2024,
    https://arxiv.org/abs/2305.08891, algorithm 1.

    >>> from scoreexp.schedules import DDPM
    >>> schedule = ZeroTerminalSNR(DDPM())
    >>> schedule.at(schedule.t_max), [round(x, 4) for x in schedule.at(schedule.t_min)]
    ((0.0, 1.0), [0.9999, 0.01])

    Args:
        of: any variance-preserving schedule, such as ``DDPM``, ``VP`` or ``Cosine``; times stay those of it.
    """

    @checked
    def __init__(self, of: VariancePreserving) -> None:
        super().__init__(t_min=of.t_min, t_max=of.t_max)
        self.of = of
        first, self._rest = of._alpha(torch.tensor([of.t_min, of.t_max], dtype=torch.float64))
        self._gain = first / (first - self._rest)

    def _alpha(self, t: Tensor) -> Tensor:
        alpha = self._gain * (self.of._alpha(t) - self._rest)
        # exactly 0 at the end, also for a time that passes it by a rounding
        return torch.where(t < self.t_max, alpha.clamp(min=0), 0 * t)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t).log()

    def _drift(self, t: Tensor) -> Tensor:
        return self._gain * self.of._alpha(t) * self.of._drift(t) / self._alpha(t)

    def _t_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        return self.of._t_of_log_alpha((log_alpha.exp() / self._gain + self._rest).log())
