"""Restoring with a model that was trained on pairs: the residual of an observation is drawn given the observation."""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers import Sampler, start_from_prior
from scoreexp.samplers.base import spread


class Conditioned(Restorer):
    r"""Draws ``u_0`` given ``y`` by any sampler, from the schedule's prior on, and returns ``x = y + u_0``.

    The model is one of ``ResidualScoreMatching``: it states ``E[u_0 | u_t, y]`` of the residual ``u_0 = x_0 - y``. y is the
    observation, pulled back to the shape of ``x`` where the operator changes it. It knows the operator and the noise from
    its training; those of the observation do not enter otherwise. The start is ``x = beta(T) y + sigma_T z`` of the papers.
    Resfusion is ``samplers.Resfusion`` in about 5 steps; SGMSE+ is ``PredictorCorrector(UniformGrid(30), "euler", snr=0.5,
    step_size="sigma")``, which here ends with the posterior mean at ``t_min`` instead of an Euler step from there to 0 and
    leaves out the corrector at the first time.

    >>> from scoreexp.denoisers import Wrapper, OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import OUVE
    >>> class Halved(Wrapper):  # stands for E[u_0 | u_t, y] of a trained model
    ...     def __call__(self, x_t, t, cond=None):
    ...         return self.model(x_t, t) - cond / 2
    >>> model = Halved(OracleDenoiser(Gaussian(torch.zeros(2), torch.zeros(2)), OUVE()))
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.1))
    >>> Conditioned(DDIM(UniformGrid(5)))(observation, model, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Args:
        sampler: of the residual.

    Raises:
        ValueError: (on a call) the observation has no way back to the shape of ``x``, or the model does not know that shape.
    """

    @checked
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``cond``, class labels, is not used; the estimates on the way are ``y + E[u_0 | u_t, y]``."""
        if model.event_shape is None:
            raise ValueError(
                "Conditioned needs a model that knows the shape of its samples: choose one from a checkpoint"
            )
        y = observation.pulled_back(model.event_shape)
        start = start_from_prior(model, model.event_shape, streams, dtype=y.dtype, device=y.device)
        kept: list[Tensor] = []

        def told(i: int, n: int, u: Tensor, u0_hat: Tensor | None) -> None:
            estimate = u if u0_hat is None else u0_hat
            if i in spread(1, n, keep):
                kept.append(y + (u if i == n else estimate))
            if callback is not None:
                callback(i, n, y + u, y + estimate)

        with torch.no_grad():
            x = y + self.sampler(model, start, streams=streams, cond=y, callback=told).x
        return x, [*kept[:-1], x] if kept else []
