r"""The probability-flow equation in the angle of the noise.

The probability-flow equation ``dx/dt = a x - (g^2 / 2) grad log p_t(x)`` has the marginals of the SDE. Along it
``x / alpha`` obeys an equation in ``sigma / alpha`` alone, the same for every schedule. On the circle

.. math:: \phi = \arctan(\sigma / \alpha), \qquad y = x / m, \quad m = \sqrt{\alpha^2 + \sigma^2},
          \qquad\text{so that}\qquad y = \cos\phi\, x_0 + \sin\phi\, z, \qquad
          \frac{dy}{d\phi} = E[\cos\phi\, z - \sin\phi\, x_0 \mid y] = \frac{\hat v}{m} .

This is the same curve with another clock. It is the better one to integrate by: the state keeps the scale of the data
at every angle (one absolute tolerance fits all noise levels), the interval is within [0, pi / 2], and the derivative
is as smooth as the denoiser. In ``t`` it is not for DDPM's betas, which are constant on each of the 1000 steps: an
adaptive solver loses its order there. Nothing is special at ``alpha = 0``, where the angle is pi / 2.

References:
    Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
    https://arxiv.org/abs/2011.13456, section 4.3;
    T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512, appendix D.
"""

import math

import torch
from torch import Tensor

from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.denoiser import DenoiserBase


class AngularFlow:
    """``dy/dphi`` of a model, counting the evaluations.

    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> flow = AngularFlow(OracleDenoiser(Gaussian(torch.zeros(2), torch.full((2,), 4.0)), VP()))
    >>> y = torch.ones(1, 2, dtype=torch.float64)
    >>> flow.velocity(torch.tensor([math.pi / 4]), y).round(decimals=3), flow.evaluations
    (tensor([[-0.6000, -0.6000]], dtype=torch.float64), 1)

    Args:
        model: the denoiser.
        cond: class labels ``[B]``, or None.

    Attributes:
        evaluations: how often the model was evaluated.
    """

    def __init__(self, model: DenoiserBase, cond: Tensor | None = None) -> None:
        self.model = model
        self.cond = cond
        self.evaluations = 0

    def at(self, t: float) -> tuple[float, float]:
        """``(phi, m)`` of a time: the angle, in (0, pi / 2], and the scale of the state, ``x = m y``."""
        alpha, sigma = self.model.schedule.at(t)
        return math.atan2(sigma, alpha), math.hypot(alpha, sigma)

    def velocity(self, angle: Tensor, y: Tensor) -> Tensor:
        """``dy/dphi [B, *]`` at angles ``[B]`` (float64 on the CPU) and states ``y [B, *]``.

        Raises:
            ValueError: if an angle is outside the range of the schedule.
            FloatingPointError: if the model's output is not finite; names the time.
        """
        schedule = self.model.schedule
        # a solver's last stage may pass the end by a rounding, and the tangent changes its sign at pi / 2
        t = schedule.t_of_sigma(angle.clamp(max=math.pi / 2).tan())
        alpha, sigma = schedule(t)
        scale = expand_to(torch.hypot(alpha, sigma), y)
        self.evaluations += 1
        velocity = self.model.v(scale * y, t, self.cond) / scale
        finite = velocity.flatten(1).isfinite().all(1).cpu()
        if not finite.all():
            raise FloatingPointError(
                f"the model's output is not finite at t = {t[~finite][0].item():.6g}, in evaluation "
                f"{self.evaluations} of the flow: check the weights of the network, or sample in float32"
            )
        return velocity
