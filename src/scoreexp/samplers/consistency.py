"""Sampling from a consistency model, in one evaluation or a few."""

from typing import Any

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of


class ConsistencySampler(Sampler):
    r"""Map to the end of the path, add noise again, map again.

    .. math:: x_s = \alpha_s f(x_t, t) + \sigma_s z

    With one time it is one evaluation, with two times two, and so on. The paper's second noise level for two evaluations is
    0.821: ``grid.steps=2 grid.t_end=0.821`` with ``schedule=edm``. Its ``sqrt(sigma_s^2 - sigma_min^2) z`` adds less
    noise because ``f`` ends at ``sigma_min``; the difference is one of 1e-5.

    Reference: Y. Song, P. Dhariwal, M. Chen, I. Sutskever, "Consistency Models", 2023, https://arxiv.org/abs/2303.01469,
    algorithm 1.

    >>> import torch
    >>> import scoreexp as se
    >>> model = se.denoisers.OracleDenoiser(se.oracles.Gaussian(torch.zeros(2), torch.ones(2)), se.schedules.EDM())
    >>> sampler = ConsistencySampler(se.samplers.KarrasGrid(2, t_end=0.821))
    >>> se.samplers.draw(model, sampler, seeds=[0, 1]).nfe
    2

    Args:
        grid: the times visited.
        denoise_last: end with ``f(x_t, t)`` at the last time; False ends with noise of that time.
    """

    def step(
        self,
        model: DenoiserBase,
        x_t: Tensor,
        t: float,
        s: float,
        state: Any,
        streams: ImageStreams,
    ) -> tuple[Tensor, Any]:
        alpha_s, sigma_s = model.schedule.at(s)
        return alpha_s * model(x_t, batch_of(t, x_t)) + sigma_s * streams.normal(x_t), state
