r"""The variational bound on the likelihood, in bits per dimension.

A diffusion model is a latent variable model with the prior ``N(0, sigma_1^2)``, a chain of denoising steps and a decoder
``p(x | x_0)`` from the least noisy state, so

.. math:: -\log p(x) \le \underbrace{\tfrac{\alpha_1^2}{2 \sigma_1^2} |x|^2}_{\text{prior}}
          + \underbrace{E[-\log p(x \mid x_{t_{min}})]}_{\text{reconstruction}}
          + \underbrace{\tfrac{T}{2} E\, (R(s) - R(t))\, |x - \hat x(x_t, t)|^2}_{\text{diffusion}},
          \qquad R = \alpha^2 / \sigma^2,

for ``T`` steps with ``t`` uniform among their ends and ``s`` one step before. As ``T`` grows the last term falls to the
integral of ``-R'(t) |x - x_hat|^2 / 2``, which depends on the schedule through its ends alone.

Reference: D. P. Kingma, T. Salimans, B. Poole, J. Ho, "Variational Diffusion Models", 2021,
https://arxiv.org/abs/2107.00630 (with ``N(0, 1)`` as prior; samplers here start from ``sigma_1``).
"""

import math

import torch
from torch import Tensor

from scoreexp.core.batch import Batch
from scoreexp.core.checked import checked
from scoreexp.core.tensors import expand_to, sum_per_sample
from scoreexp.core.types import AtLeastTwo, PositiveInt
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.objectives.base import Objective, perturb, streams_of
from scoreexp.objectives.consistency import finite_levels
from scoreexp.schedules import LearnedVP, Schedule


class VariationalBound(Objective):
    """The bound above of each sample, for uniform times (``time_law=uniform``).

    On ``schedule=learned`` the ends of the schedule are trained by the bound. The curve between them does not change the
    bound of infinitely many steps; there it is trained to the least second moment of the diffusion term over times. That
    gradient is added with the value 0.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.batch import Batch
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.LearnedVP())
    >>> VariationalBound(levels=None)(model, Batch(x=torch.zeros(3, 2)), torch.full((3,), 0.5), torch.zeros(3, 2)).shape
    torch.Size([3])

    Args:
        steps: ``T``; None for infinitely many.
        levels: number of evenly spaced levels over [-1, 1] of which the data consist, and the decoder a law of: proportional
            to the density of the state given each. The bound is in bits per dimension of such data. None: of a density,
            and the decoder is the normal law around ``x_t / alpha`` of its noise.

    Raises:
        ValueError: if a parameter is outside its domain; on a call, for a schedule of one noise level or with
            ``alpha = 0``, a batch without clean data, or noise of another shape.
    """

    @checked
    def __init__(self, steps: PositiveInt | None = None, levels: AtLeastTwo | None = 256) -> None:
        self.steps, self.levels = steps, levels

    def __call__(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        diffusion = self.diffusion(model, batch, t, noise)
        assert batch.x is not None  # or it was refused
        ends = torch.tensor([model.schedule.t_min, model.schedule.t_max], dtype=torch.float64)
        least, largest = model.schedule.noise_level(ends)
        prior = 0.5 * sum_per_sample(batch.x**2) / expand_to(largest**2, diffusion)
        reconstruction = self.reconstruction(batch.x, least, noise)
        bits = 1 / (noise[0].numel() * math.log(2))
        bound = bits * (prior + reconstruction + diffusion)
        if self.steps is None and isinstance(model.schedule, LearnedVP):
            density = model.schedule.log_density(t.to(device="cpu", dtype=torch.float64))
            second_moment = -((bits * diffusion.detach()) ** 2) * density.to(bound)
            bound = bound + second_moment - second_moment.detach()
        return bound

    def diffusion(self, model: DenoiserBase, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The diffusion term at the times ``t[B]``, in nats ``[B]``.

        Raises:
            ValueError: as for the class.
        """
        schedule = model.schedule
        finite_levels(schedule)
        t = t.to(device="cpu", dtype=torch.float64)
        span = schedule.t_max - schedule.t_min
        if self.steps is not None:
            n = ((t - schedule.t_min) / span * self.steps).ceil().clamp(min=1)
            t = schedule.t_min + span * n / self.steps
        x_0, x_t, t, alpha, sigma = perturb(schedule, batch, t, noise)
        ratio = (alpha / sigma) ** 2
        if self.steps is None:
            fall = ratio * span * (schedule.diffusion(t) / sigma) ** 2  # -R' = R g^2 / sigma^2
        else:
            fall = self.steps * (_ratio(schedule, (t - span / self.steps).clamp(min=schedule.t_min)) - ratio)
        error = sum_per_sample((model(x_t, t, batch.cond) - x_0) ** 2)
        return 0.5 * expand_to(fall, error) * error

    def reconstruction(self, x_0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """``-log p(x_0 | state)`` in nats ``[B]``, of states of the noise ``level`` (a number), drawn anew.

        Of a density it is the mean over these states.
        """
        dimensions = x_0[0].numel()
        if self.levels is None:
            entropy = 0.5 * dimensions * (1 + math.log(2 * math.pi) + 2 * level.log())
            return expand_to(entropy, x_0).reshape(1).expand(len(x_0))
        values = torch.linspace(-1, 1, self.levels, dtype=x_0.dtype, device=x_0.device)
        own = ((x_0 + 1) / 2 * (self.levels - 1)).round().long().clamp(0, self.levels - 1)
        std = level.to(x_0)
        state = x_0 + std * streams_of(noise, "reconstruction").normal(x_0)
        log_p = (-0.5 * ((state[..., None] - values) / std) ** 2).log_softmax(-1)
        return -sum_per_sample(log_p.gather(-1, own[..., None])[..., 0])


def _ratio(schedule: Schedule, t: Tensor) -> Tensor:
    return 1 / schedule.noise_level(t) ** 2
