"""Sampling by average velocities, in one evaluation or a few."""

from typing import Any

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers.denoiser import DenoiserBase
from scoreexp.samplers.base import Sampler, batch_of


class MeanFlowSampler(Sampler):
    r"""From each time of the grid to the next at the average velocity between them, exact for the exact one.

    .. math:: x_s = x_t - (t - s)\, u(x_t, s, t)

    With one time it is one evaluation, with two times two, and so on; the last goes on to time 0 at the average velocity
    to ``t_min``. For models of two times on ``schedule=flow_matching`` (``objective=mean_flow``).

    Reference: Z. Geng, M. Deng, X. Bai, J. Z. Kolter, K. He, "Mean Flows for One-step Generative Modeling", 2025,
    https://arxiv.org/abs/2505.13447, algorithm 2.

    >>> import scoreexp as se
    >>> from functools import partial
    >>> network = se.networks.TwoTimes(network=partial(se.networks.MLP, width=8), event_shape=(2,))
    >>> model = se.denoisers.Denoiser(network, se.denoisers.VPrediction(), se.schedules.FlowMatching())
    >>> model.event_shape = (2,)
    >>> se.samplers.draw(model, MeanFlowSampler(se.samplers.UniformGrid(2, t_end=0.5)), seeds=[0, 1]).nfe
    2

    Args:
        grid: the times visited.
        denoise_last: go on from the last time to time 0; False ends there.

    Raises:
        UserError: (on a call) the model takes one time, or is guided.
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
        toward = model.toward(x_t, batch_of(t, x_t), batch_of(s, x_t))  # x_t - t u
        return torch.lerp(toward, x_t, s / t), state

    def last(self, model: DenoiserBase, x_t: Tensor, t: float) -> Tensor:
        return model.toward(x_t, batch_of(t, x_t), batch_of(model.schedule.t_min, x_t))
