r"""Noise2Score: the posterior mean from the score of the noisy images themselves.

A network that has seen noisy images only, by ``objectives.ARDAE``, knows ``l'(y) = grad log p(y)``. Tweedie's formula of
the noise does the rest, and one network serves all of them,

.. math:: y + \sigma^2 l'(y), \qquad (n + \tfrac12) \exp l'(n), \qquad \frac{L v}{(L - 1) - v\, l'(v)}

for Gaussian noise, photon counts ``n`` and Gamma noise of ``L`` looks; see ``observations.noise`` for what each of them
is exactly: the Poisson formula is an approximation, and the last is ``1 / E[1 / u | v]``, not the posterior mean.

Reference: K. Kim, J. C. Ye, "Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images", 2021,
https://arxiv.org/abs/2106.07009.
"""

import torch
from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Identity, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.samplers.base import batch_of

OBJECTIVE = "ARDAE"


class Noise2Score(Restorer):
    """``noise.posterior_mean(y, l'(y))`` with the score of a model of noisy images; one evaluation.

    The model is asked at the smallest noise level that it knows.

    >>> import scoreexp as se
    >>> noisy = se.oracles.Gaussian(torch.zeros(2), torch.full((2,), 1.25))  # variance 1 and that of the noise
    >>> model = se.denoisers.OracleDenoiser(noisy, se.schedules.ConstantNoise(0.02))
    >>> observation = Observation(torch.ones(1, 2), Identity(), se.observations.GaussianNoise(0.5))
    >>> Noise2Score()(observation, model, streams=ImageStreams([0])).x.round(decimals=2)  # y / 1.25
    tensor([[0.8000, 0.8000]])

    Raises:
        ValueError: on a call, the operator is not the identity, no formula is known for the noise, or the model was trained
            on clean images, whose score is another.
    """

    @torch.no_grad()
    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        if not isinstance(observation.operator, Identity):
            raise ValueError(
                f"Noise2Score denoises, and {type(observation.operator).__name__} is no identity"
            )
        config = model.record.get("config")
        target = str(((config or {}).get("objective") or {}).get("_target_", ""))
        if config and not target.endswith(f".{OBJECTIVE}"):
            what = (
                f"this model's objective is {target.rpartition('.')[2]}"
                if target
                else "this model knows clean ones"
            )
            raise ValueError(
                f"Noise2Score needs the score of noisy images, and {what}: "
                "give one of experiment=folder_noise2score (ckpt=RUN/checkpoints/best.ckpt)"
            )
        y, t = observation.y, model.schedule.t_min
        alpha = float(model.schedule.at(t)[0])
        score = alpha * model.score(alpha * y, batch_of(t, y), cond)  # in units of y
        x = observation.noise.posterior_mean(y, score)
        if callback is not None:
            callback(1, 1, x, x)
        return x, [y, x][-keep:] if keep else []
