"""Predictor-corrector sampling."""

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to, sum_per_sample
from scoreexp.core.types import NonNegativeInt, OpenProbability
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of, step_from_noise
from scoreexp.samplers.euler_maruyama import euler_maruyama_step
from scoreexp.samplers.grids import TimeGrid


class PredictorCorrector(Sampler):
    r"""A step of a reverse-time SDE, then Langevin updates at the new time.

    1. Predictor. ``reverse_diffusion`` reverses the discrete forward step, whose scale is
       ``alpha_{t|s} = alpha_t / alpha_s`` and whose variance is ``beta = sigma_t^2 - alpha_{t|s}^2 sigma_s^2``,

       .. math:: x_s = (2 - \alpha_{t|s}) x_t + \beta\, s_\theta(x_t, t) + \sqrt{\beta}\, z ,

       ``euler`` is a step of ``EulerMaruyama``. From ``alpha = 0`` both draw ``alpha_s x0_hat + sigma_s z``.
    2. Corrector, ``corrections`` times, with the step of each sample from its own norms,

       .. math:: x_s \leftarrow x_s + \epsilon\, s_\theta(x_s, s) + \sqrt{2 \epsilon}\, z, \qquad
                 \epsilon = 2 \left(r\, \frac{|z|}{|s_\theta(x_s, s)|}\right)^2 .

       With ``step_size="sigma"`` it is ``epsilon = 2 (r sigma_s)^2`` for all, annealed Langevin dynamics as in SGMSE+
       (Richter et al., 2023, https://arxiv.org/abs/2208.05830: ``euler``, r = 0.5, 30 times, corrector before predictor).

    Differences from the paper: the factor ``1 - beta_i`` in the ``epsilon`` of algorithm 5 is left out (it is 1
    in the limit of small steps, and in algorithm 4 always). The published code averages the norms over a batch;
    here, as in the algorithms, a sample does not depend on the others.

    The corrector's noise is a share of its step, so it does not vanish with the size of the steps: for
    Gaussian data of marginal variance ``w`` in many dimensions the corrected variance is ``(1 + r^2) w``, and for
    ``r >= 1`` the updates oscillate. In few dimensions the ratio of the norms differs much from draw to draw, and
    the step with it, which biases the result: for points in the plane take another sampler, or a small ``r``.

    Reference: Y. Song, J. Sohl-Dickstein, D. Kingma, A. Kumar, S. Ermon, B. Poole, "Score-Based Generative
    Modeling through Stochastic Differential Equations", 2021, https://arxiv.org/abs/2011.13456, algorithms 1-5
    and equation (46).

    >>> import torch
    >>> import scoreexp as se
    >>> oracle = se.oracles.Gaussian(torch.zeros(3, 8, 8), torch.ones(3, 8, 8))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> sampler = se.samplers.PredictorCorrector(se.samplers.UniformGrid(20), corrections=1)
    >>> samples = se.samplers.draw(model, sampler, seeds=[0, 1])
    >>> samples.x.shape, samples.nfe
    (torch.Size([2, 3, 8, 8]), 39)

    Args:
        grid: the times visited.
        predictor: ``reverse_diffusion`` or ``euler``.
        corrections: Langevin updates per step; 0 leaves the predictor alone.
        snr: ``r``, in (0, 1), without unit; 0.16 for CIFAR-10 in the paper.
        denoise_last: end with ``E[x_0 | x_t]`` at the last time.
        step_size: of the corrector, from the ``norms`` of noise and score or from ``sigma``.

    Raises:
        ValueError: if a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        predictor: Literal["reverse_diffusion", "euler"] = "reverse_diffusion",
        corrections: Annotated[NonNegativeInt, "0 leaves the predictor alone"] = 1,
        snr: OpenProbability = 0.16,
        denoise_last: bool = True,
        step_size: Literal["norms", "sigma"] = "norms",
    ) -> None:
        super().__init__(grid, denoise_last)
        self.predictor = predictor
        self.corrections = corrections
        self.snr = snr
        self.step_size = step_size

    def init_state(self, model: DenoiserBase, x: Tensor, times: Tensor) -> None:
        """Nothing to check: where the noise level stays, the corrector works alone."""

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        # 1. predictor
        predict = reverse_diffusion_step if self.predictor == "reverse_diffusion" else euler_maruyama_step
        x = predict(model, x_t, t, s, streams)
        # 2. corrector
        for _ in range(self.corrections):
            score, z = model.score(x, batch_of(s, x)), streams.normal(x)
            epsilon = expand_to(2 * self.snr**2 * self._squared_scale(model, s, score, z), x)
            x = x + epsilon * score + (2 * epsilon).sqrt() * z
        return x, state

    def _squared_scale(self, model: DenoiserBase, s: float, score: Tensor, z: Tensor) -> Tensor:
        """``epsilon / (2 r^2)``: ``|z|^2 / |score|^2`` of each sample, or ``sigma_s^2``."""
        if self.step_size == "norms":
            return sum_per_sample(z**2) / sum_per_sample(score**2)
        return torch.full((len(z),), model.schedule.at(s)[1] ** 2, dtype=torch.float64)


def reverse_diffusion_step(
    model: DenoiserBase, x_t: Tensor, t: float, s: float, streams: ImageStreams
) -> Tensor:
    """The discrete forward step from ``s`` to ``t``, reversed: ``x_s [B, *]``, one evaluation."""
    alpha_t, sigma_t = model.schedule.at(t)
    if alpha_t == 0:
        return step_from_noise(model, x_t, t, s, streams)
    alpha_s, sigma_s = model.schedule.at(s)
    alpha_ts = alpha_t / alpha_s
    beta = sigma_t**2 - (alpha_ts * sigma_s) ** 2
    score = model.score(x_t, batch_of(t, x_t))
    return (2 - alpha_ts) * x_t + beta * score + math.sqrt(beta) * streams.normal(x_t)
