r"""Plug-and-play ADMM: a denoiser in the place of the prior's proximal step, for complex unknowns on their magnitude.

From ``z = A^T y`` and ``u = 0``, in each iteration:

1. ``x = argmin |y - A x|^2 + rho |x - (z - u)|^2``;
2. ``z = prox(x + u)``, where ``prox(v) = D(v)`` at the noise level ``sigma``, or ``D(|v|) v / |v|`` of a complex ``v``;
3. ``u = u + x - z``.

The result is ``x``. With a linear shrinkage ``D(v) = v / (1 + k)`` it is that of ridge regression,
``(A^T A + rho k I) x = A^T y``.

References:
    S. V. Venkatakrishnan, C. A. Bouman, B. Wohlberg, "Plug-and-Play Priors for Model Based Reconstruction", 2013,
    https://doi.org/10.1109/GlobalSIP.2013.6737048;
    O. Oral, F. S. Oktem, "Plug-and-Play Reconstruction with 3D Deep Prior for Complex-Valued Near-Field MIMO Imaging", 2023,
    https://arxiv.org/abs/2312.16024, for the magnitude.
"""

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FinitePositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.proximal import data_proximal, known_svd
from scoreexp.restorers.requirements import linear_operator
from scoreexp.samplers.base import batch_of, spread


class PnPADMM(Restorer):
    """See the module's formulas. One evaluation of the network per iteration, without gradient.

    >>> import torch
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.1))
    >>> PnPADMM(sigma=1.0, rho=1.0)(observation, model, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Args:
        sigma: noise level at which the denoiser is used, > 0, in units of the model ([-1, 1]).
        rho: weight of the prior's copy against the data, > 0.
        steps: iterations.
        magnitude: the unknown is complex, given as two channels, real and imaginary part, and the denoiser is one of its
            magnitude, of one channel.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the operator is not linear, the noise level is none of
            the model's, or shapes disagree.
        FloatingPointError: an iterate is not finite.
    """

    @checked
    def __init__(
        self,
        sigma: FinitePositiveFloat = 0.1,
        rho: FinitePositiveFloat = 1.0,
        steps: PositiveInt = 50,
        magnitude: bool = False,
    ) -> None:
        self.sigma, self.rho, self.steps, self.magnitude = sigma, rho, steps, magnitude

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
        y, operator = observation.y, linear_operator("PnPADMM", observation)
        if model.event_shape is not None:
            channels, *sides = model.event_shape
            if self.magnitude and channels != 1:
                raise ValueError(f"magnitude=true needs a model of one channel, not of {channels}")
            observation.require_shape((2, *sides) if self.magnitude else model.event_shape)
        level = torch.tensor(self.sigma, dtype=torch.float64)
        t = float(model.schedule.t_of_sigma(level))
        alpha = model.schedule.at(t)[0]

        def prior(v: Tensor) -> Tensor:
            if not self.magnitude:
                return model(alpha * v, batch_of(t, v), cond)
            length = torch.linalg.vector_norm(v, dim=1, keepdim=True)
            shrunk = model(alpha * length, batch_of(t, v), cond)
            return torch.where(length > 0, shrunk * v / torch.where(length > 0, length, 1), 0)

        svd, kept, trajectory = known_svd(operator, y), spread(1, self.steps, keep), []
        z = operator.adjoint(y)
        u = torch.zeros_like(z)
        for i in range(1, self.steps + 1):
            x = data_proximal(operator, y, z - u, self.rho, svd)  # 1.
            z = prior(x + u)  # 2.
            u = u + x - z  # 3.
            if not x.isfinite().all():
                raise FloatingPointError(
                    f"PnPADMM: the estimate is not finite at step {i} of {self.steps}: choose a larger rho than {self.rho:g}"
                )
            if i in kept:
                trajectory.append(x)
            if callback is not None:
                callback(i, self.steps, x, z)
        return x, trajectory
