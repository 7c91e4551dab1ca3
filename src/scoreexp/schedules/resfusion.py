"""DDPM's noise for the residual of an observation, up to the time at which nothing of the clean data is left."""

import math

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import AtLeastTwo, OpenProbability
from scoreexp.schedules.base import Schedule
from scoreexp.schedules.ddpm import DDPM


class Resfusion(Schedule):
    r"""Resfusion: DDPM's forward process with a part of the residual ``R = y - x_0`` of an observation ``y`` in each step.

    With ``sqrt(a)`` the scale of ``x_0`` in DDPM at the same betas

    .. math:: x_t = \sqrt{a} x_0 + (1 - \sqrt{a}) R + \sqrt{1 - a} z = u_t + \sqrt{a} y, \qquad
              u_t = (2 \sqrt{a} - 1) u_0 + \sqrt{1 - a} z, \quad u_0 = x_0 - y = -R .

    The schedule is that of the residual ``u``, ``alpha = 2 sqrt(a) - 1`` and ``sigma = sqrt(1 - a)``, and ``y`` does not
    enter. It ends where ``sqrt(a) = 1/2``: there alpha is 0 and sampling starts from ``x = y / 2 + sqrt(3/4) z``, which
    is the exact marginal. The published program takes the step next to that time, where ``alpha`` is 4.6e-4 for 1000
    linear betas. Where ``y = x_0`` the states ``x_t`` are those of DDPM, bit for bit. See ``ResidualScoreMatching`` for
    training, ``samplers.Resfusion`` for the published steps and ``Conditioned`` for drawing.

    Drift and diffusion are those of the linear SDE of ``u`` with these marginals; that SDE forgets ``u_t`` at the last
    time, where they are infinite. As there, take a parameterisation that states ``u_0`` (v, x0 or edm).

    Reference: Z. Shi, H. Zheng, C. Xu, C. Dong, B. Pan, X. Xie, A. He, T. Li, H. Fu, "Resfusion: Denoising Diffusion
    Probabilistic Models for Image Restoration Based on Prior Residual Noise", 2024, https://arxiv.org/abs/2311.14900.

    >>> schedule = Resfusion()
    >>> round(schedule.t_max, 4), [round(x, 4) for x in schedule.at(schedule.t_max)]
    (0.3681, [0.0, 0.866])

    Args:
        beta_start: variance of DDPM's first step, in (0, 1).
        beta_end: variance of DDPM's last step, in (0, 1).
        steps: number of DDPM's steps, >= 2; few steps need larger betas, such as 1000 / steps times those of 1000.

    Raises:
        ValueError: if a parameter is outside its domain, or ``sqrt(a)`` does not fall to 1/2 after the first step.
    """

    @checked
    def __init__(
        self, beta_start: OpenProbability = 1e-4, beta_end: OpenProbability = 0.02, steps: AtLeastTwo = 1000
    ) -> None:
        with torch.device("cpu"):  # the end of the times is a value, also in a model of shapes alone
            self._ddpm = DDPM(beta_start, beta_end, steps)
            half = math.sqrt(3)  # sigma / sqrt(a) at sqrt(a) = 1/2
            low, high = self._ddpm.sigma_range
            if not low < half <= high:
                raise ValueError(
                    f"beta_start={beta_start}, beta_end={beta_end}, steps={steps}: sqrt(a) goes from "
                    f"{self._ddpm.at(self._ddpm.t_min)[0]:.4g} to {self._ddpm.at(1.0)[0]:.4g} and must pass 1/2 after "
                    "the first step: choose more steps or larger betas"
                )
            end = self._ddpm.t_of_sigma(torch.tensor(half, dtype=torch.float64)).item()
        super().__init__(t_min=self._ddpm.t_min, t_max=end)

    def _root(self, t: Tensor) -> Tensor:
        """``sqrt(a)``, in [1/2, 1]."""
        return self._ddpm._alpha(t)

    def _alpha(self, t: Tensor) -> Tensor:
        alpha = 2 * self._root(t) - 1
        return torch.where(
            t < self.t_max, alpha.clamp(min=0), 0 * t
        )  # exactly 0 at the end, whatever the rounding

    def _log_alpha(self, t: Tensor) -> Tensor:
        return self._alpha(t).log()

    def _sigma(self, t: Tensor) -> Tensor:
        return self._ddpm._sigma(t)

    def _drift(self, t: Tensor) -> Tensor:
        return 2 * self._root(t) * self._ddpm._drift(t) / self._alpha(t)

    def _diffusion(self, t: Tensor) -> Tensor:
        # d sigma^2 / dt = -2 a_ddpm (sqrt a)^2
        growth = -2 * self._ddpm._drift(t) * self._root(t) ** 2
        return (growth - 2 * self._drift(t) * self._sigma(t) ** 2).sqrt()

    def _t_of_sigma(self, ratio: Tensor) -> Tensor:
        # sigma = ratio (2 root - 1) and sigma^2 = 1 - root^2: (1 + 4 q) root^2 - 4 q root + q - 1 = 0 with q = ratio^2
        q = ratio**2
        root = torch.where(ratio.isinf(), 0.5, (2 * q + (1 + 3 * q).sqrt()) / (1 + 4 * q))
        return self._ddpm._t_of_log_alpha(root.log())
