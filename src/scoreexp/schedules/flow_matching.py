"""The straight path from data to noise."""

from typing import Annotated

from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, OpenProbability
from scoreexp.schedules.base import Schedule


class FlowMatching(Schedule):
    r"""Flow matching, or rectified flow: ``x_t = (1 - t) x_0 + t s z`` on ``t_min <= t <= t_max``; ``s`` is 1 by default.

    .. math:: \alpha = 1 - t, \quad \sigma = s t, \quad a = -\frac{1}{1 - t}, \quad g^2 = \frac{2 s^2 t}{1 - t} .

    The network's target of the papers, ``E[s z - x_0 | x_t]``, is ``(x_t - x0_hat) / t``, the velocity of the
    probability flow in ``t``. At ``t = 1`` alpha is 0: the start is noise without any data in it, so samples begin at
    the exact marginal, and a and g are infinite. Take a parameterisation that gives ``x_0`` there (v, x0 or edm); the
    reverse SDE leaves ``t = 1`` by a draw of ``alpha x0_hat + sigma z``.

    References:
        Y. Lipman, R. Chen, H. Ben-Hamu, M. Nickel, M. Le, "Flow Matching for Generative Modeling", 2022,
        https://arxiv.org/abs/2210.02747 (its time runs from noise to data);
        X. Liu, C. Gong, Q. Liu, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        2022, https://arxiv.org/abs/2209.03003;
        M. S. Albergo, M. Goldstein, N. M. Boffi, R. Ranganath, E. Vanden-Eijnden, "Stochastic Interpolants with
        Data-Dependent Couplings", 2023, https://arxiv.org/abs/2310.03725 (the path from ``y + s z``).

    >>> FlowMatching().at(0.75)
    (0.25, 0.75)

    Args:
        t_min: the smallest time, in (0, ``t_max``).
        t_max: the largest time, <= 1; below 1 the noise levels are finite.
        std: of the noise at the end. Of residuals of an observation y, it is that of a path from the data to ``y + s z``.

    Raises:
        ValueError: if the times are not in that order, or ``std`` is not positive.
    """

    @checked
    def __init__(
        self,
        t_min: Annotated[OpenProbability, "sigma(0) = 0"] = 1e-3,
        t_max: Annotated[float, (">", 0), ("<=", 1), "alpha(1) = 0"] = 1.0,
        std: FinitePositiveFloat = 1.0,
    ) -> None:
        super().__init__(t_min=t_min, t_max=t_max)
        self.std = std

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t).clamp(min=0)  # times may pass 1 by a rounding

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t).log()

    def _sigma(self, t: Tensor) -> Tensor:
        return self.std * t

    def _drift(self, t: Tensor) -> Tensor:
        return -1 / self._alpha(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        return self.std * (2 * t / self._alpha(t)).sqrt()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + self.std / ratio)  # 1 at infinity
