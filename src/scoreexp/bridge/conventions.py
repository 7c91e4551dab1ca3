r"""What other libraries' networks are given and what they return.

A convention is three facts: what the output stands for, by which number the network is told the noise level, and how the
input is scaled. The first and the last are the coefficients of a ``Preconditioning``; the second is a ``NoiseLabel``.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from scoreexp.bridge.betas import Betas, DiscreteVP
from scoreexp.core.checked import checked
from scoreexp.core.types import FinitePositiveFloat, PositiveFloat
from scoreexp.denoisers.preconditioning import Coefficients, EDMPrediction, Preconditioning
from scoreexp.schedules import VP, SubVP


class NoiseLabel(ABC):
    """The number that tells a network the noise level: ``label(alpha[B], sigma[B]) -> [B]``."""

    @abstractmethod
    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor: ...


class Step(NoiseLabel):
    """The index ``n - 1 = 0 .. T - 1`` of a step of ``DiscreteVP``, between two steps a fraction.

    >>> label = Step(Betas("linear"))
    >>> label(*DiscreteVP(Betas("linear"))(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)))
    tensor([  0., 499., 999.], dtype=torch.float64)

    Args:
        betas: the table.
        rounded: to the nearest step, for networks that look their embedding up in a table.
        scale: the network is told that many times the index.
    """

    @checked
    def __init__(self, betas: Betas, rounded: bool = False, scale: FinitePositiveFloat = 1.0) -> None:
        self._schedule = DiscreteVP(betas)
        self.rounded, self.scale = rounded, scale

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        steps = self._schedule.steps
        ratio = (sigma / alpha).double()
        low, high = self._schedule.sigma_range
        index = steps * self._schedule.t_of_sigma(ratio.clamp(low, high)) - 1
        whole = index.round()
        # what is a step up to the rounding of its noise level is that step
        near = (index - whole).abs() < 1e-4
        return (self.scale * torch.where(near | torch.tensor(self.rounded), whole, index)).to(sigma)


class SigmaLabel(NoiseLabel):
    """``sigma / alpha`` times a number.

    >>> SigmaLabel(0.5)(torch.tensor([1.0]), torch.tensor([4.0]))
    tensor([2.])

    Args:
        scale: 1 in units of [-1, 1], 0.5 where the network thinks in units of [0, 1].
    """

    @checked
    def __init__(self, scale: FinitePositiveFloat = 1.0) -> None:
        self.scale = scale

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.scale * sigma / alpha


class LogLevel(NoiseLabel):
    """``scale log(unit sigma / alpha)``.

    >>> LogLevel(scale=0.25)(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.])

    Args:
        scale: 1/4 in EDM.
        unit: 0.5 where the network thinks in units of [0, 1].
    """

    @checked
    def __init__(self, scale: FinitePositiveFloat = 0.25, unit: FinitePositiveFloat = 1.0) -> None:
        self.scale, self.unit = scale, unit

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.scale * (self.unit * sigma / alpha).log()


class FlowTime(NoiseLabel):
    """``scale sigma / (alpha + sigma)``, the time of flow matching.

    >>> FlowTime(1000.0)(torch.tensor([0.25]), torch.tensor([0.75]))
    tensor([750.])

    Args:
        scale: 1000 in diffusers.
        from_noise: the network's time runs from noise, 0, to data, 1.
    """

    @checked
    def __init__(self, scale: FinitePositiveFloat = 1000.0, from_noise: bool = False) -> None:
        self.scale, self.from_noise = scale, from_noise

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        share = (alpha if self.from_noise else sigma) / (alpha + sigma)
        return self.scale * share


class VPTime(NoiseLabel):
    """``scale t``, with t the time of the continuous variance-preserving (or sub-VP) SDE at that noise level.

    >>> label = VPTime()
    >>> label(*VP()(torch.tensor([0.5], dtype=torch.float64)))
    tensor([499.5000], dtype=torch.float64)

    Args:
        beta_min: as of ``schedules.VP``.
        beta_max: the same.
        scale: 999 in score_sde_pytorch.
        sub_vp: the SDE is the sub-VP one, ``schedules.SubVP``.
    """

    @checked
    def __init__(
        self,
        beta_min: PositiveFloat = 0.1,
        beta_max: PositiveFloat = 20.0,
        scale: FinitePositiveFloat = 999.0,
        sub_vp: bool = False,
    ) -> None:
        self._schedule, self.scale = (SubVP if sub_vp else VP)(beta_min, beta_max), scale

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        t = self._schedule._t_of_sigma((sigma / alpha).double())
        return (self.scale * t).to(sigma)


class Convention(Preconditioning):
    r"""A network that is given ``x_t`` as it is, or divided by ``sqrt(alpha^2 + sigma^2)``, and a label of its library.

    - epsilon: ``E[z | x_t]``, so ``x0_hat = (x_t - sigma F) / alpha``
    - v: ``E[alpha z - sigma x_0 | x_t]``, ``x0_hat = (alpha x_t - sigma F) / (alpha^2 + sigma^2)``
    - sample: ``E[x_0 | x_t]``, ``x0_hat = F``
    - flow: ``E[z - x_0 | x_t]``, ``x0_hat = (x_t - sigma F) / (alpha + sigma)``
    - score: the gradient of ``log p(x_t)``, ``x0_hat = (x_t + sigma^2 F) / alpha``
    - scaled_score: sigma times that, ``x0_hat = (x_t + sigma F) / alpha``

    >>> c = Convention("flow", FlowTime())(torch.tensor([0.25]), torch.tensor([0.75]))
    >>> c.c_skip, c.c_out, c.c_noise
    (tensor([1.]), tensor([-0.7500]), tensor([750.]))

    Args:
        prediction: what the output stands for.
        label: what the network is told of the noise level.
        scaled: divide the input by ``sqrt(alpha^2 + sigma^2)``.

    Raises:
        ValueError: the output does not determine ``x_0`` where alpha is 0, and alpha reaches 0.
    """

    @checked
    def __init__(
        self,
        prediction: Literal["epsilon", "v", "sample", "flow", "score", "scaled_score"],
        label: NoiseLabel,
        scaled: bool = False,
    ) -> None:
        self.prediction, self.label, self.scaled = prediction, label, scaled

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(alpha)
        if self.prediction in ("epsilon", "score", "scaled_score") and (alpha == 0).any():
            raise ValueError(
                f"{self.prediction} prediction does not determine x_0 where alpha is 0 (zero terminal SNR): it was trained "
                "with another schedule, or its configuration states the wrong prediction"
            )
        c_skip, c_out = {
            "epsilon": lambda: (1 / alpha, -sigma / alpha),
            "v": lambda: (alpha / (alpha**2 + sigma**2), -sigma / (alpha**2 + sigma**2)),
            "sample": lambda: (0 * alpha, one),
            "flow": lambda: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
            "score": lambda: (1 / alpha, sigma**2 / alpha),
            "scaled_score": lambda: (1 / alpha, sigma / alpha),
        }[self.prediction]()
        c_in = 1 / torch.hypot(alpha, sigma) if self.scaled else one
        return Coefficients(c_skip, c_out, c_in, self.label(alpha, sigma))


class NegatedEDM(EDMPrediction):
    """EDM's coefficients with the sign of the output turned, which diffusers calls v prediction.

    >>> NegatedEDM(0.5)(torch.tensor([1.0]), torch.tensor([0.5])).c_out.round(decimals=4)
    tensor([-0.3536])

    Args:
        sigma_data: standard deviation of the data, > 0, in units of the [-1, 1] range.
    """

    def __call__(self, alpha: Tensor, sigma: Tensor) -> Coefficients:
        c = super().__call__(alpha, sigma)
        return c._replace(c_out=-c.c_out)
