r"""Restorers that take a DDIM step and then a gradient step on a loss of the estimate, through the network.

At each time t with the next time s:

1. ``x0_hat = D(x_t, t)``;
2. ``x_s' = alpha_s x0_hat + sigma_s-step of DDIM with share eta of fresh noise``;
3. ``x_s = x_s' - grad_{x_t} L(x_t, x0_hat)``.

The losses:

=========== ============================================================================================
``DPS``     ``zeta |y - A x0_hat|``
``STSL``    ``zeta |y - A x0_hat|^2 / |A|^2 + c tr H``, the trace of the Hessian of ``log p_t`` by probes
``HIRDiff`` ``eta_1 |y - A x0_hat|^2 / |A|^2 + eta_2 TV(x0_hat)``
=========== ============================================================================================

The square of the norm ``|A|`` is not in the papers, whose operators have norms near 1: without it the step would grow with
the square of the unit of ``y``, and diverge for a Radon transform, whose norm is that of the size of the image.

References:
    H. Chung, J. Kim, M. T. Mccann, M. L. Klasky, J. C. Ye, "Diffusion Posterior Sampling for General Noisy Inverse
    Problems", 2023, https://arxiv.org/abs/2209.14687, algorithm 1 (whose step is ``zeta / |r|`` times the gradient of
    ``|r|^2``, twice this one);
    L. Rout, Y. Chen, A. Kumar, C. Caramanis, S. Shakkottai, W.-S. Chu, "Beyond First-Order Tweedie: Solving Inverse Problems
    using Latent Diffusion", 2024, https://arxiv.org/abs/2312.00852, here in pixels;
    L. Pang, X. Rui, L. Cui, H. Wang, D. Meng, X. Cao, "HIR-Diff: Unsupervised Hyperspectral Image Restoration Via Improved
    Diffusion Models", 2024, https://arxiv.org/abs/2402.15865.
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from scoreexp.denoisers.denoiser import eps_from_x0
from scoreexp.numerics.input_gradients import InputGradients
from scoreexp.restorers.chain import Chain, Problem
from scoreexp.samplers.grids import TimeGrid


class GradientChain(Chain):
    """Base: a new one writes ``loss``. Two passes through the network (one of them backward) for each time of the grid.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.restorers.gradient import GradientChain, squared_residual
    >>> class Pull(GradientChain):
    ...     '''A gradient of half the weight that the noise of y calls for.'''
    ...     def loss(self, problem, x_t, x0_hat, t):
    ...         return squared_residual(problem, x0_hat) / 4
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> restored = Pull(se.samplers.UniformGrid(20))(observation, model, streams=ImageStreams([0]))
    >>> restored.x.shape, restored.nfe
    (torch.Size([1, 2]), 20)

    Args:
        grid: the times visited.
        eta: share of fresh noise as in DDIM, in [0, 1]; 1 is ancestral sampling.
    """

    uses_sigma: ClassVar[bool] = False

    @checked
    def __init__(self, grid: TimeGrid, eta: Probability = 1.0) -> None:
        super().__init__(grid)
        self.eta = eta

    @abstractmethod
    def loss(self, problem: Problem, x_t: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        """``L [B]``, differentiable in ``x_t``."""

    def step(
        self, problem: Problem, x_t: Tensor, t: float, s: float | None, prepared: Any
    ) -> tuple[Tensor, Tensor]:
        if s is None:
            x_0 = problem.denoise(x_t, t)
            return x_0, x_0
        with torch.enable_grad(), InputGradients():
            x_t = x_t.detach().requires_grad_()
            x0_hat = problem.denoise(x_t, t)
            (gradient,) = torch.autograd.grad(self.loss(problem, x_t, x0_hat, t).sum(), x_t)
        x_t, x0_hat = x_t.detach(), x0_hat.detach()
        (alpha_t, sigma_t), (alpha_s, sigma_s) = problem.schedule.at(t), problem.schedule.at(s)
        fresh = (self.eta * sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)
        x_s = alpha_s * x0_hat + math.sqrt(sigma_s**2 - fresh) * eps_from_x0(x0_hat, x_t, alpha_t, sigma_t)
        if self.eta > 0:
            x_s = x_s + math.sqrt(fresh) * problem.streams.normal(x_t)
        return x0_hat, x_s - gradient


def squared_residual(problem: Problem, x0_hat: Tensor) -> Tensor:
    """``|y - A x0_hat|^2 [B]``."""
    return (problem.y - problem.operator(x0_hat)).flatten(1).square().sum(1)


class DPS(GradientChain):
    """Diffusion posterior sampling, see the module's formulas.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.0))
    >>> restored = DPS(UniformGrid(100))(observation, model, streams=ImageStreams([0]))
    >>> restored.x.shape, restored.nfe
    (torch.Size([1, 2]), 100)

    Args:
        grid: the times visited (1000 in the paper).
        zeta: size of the gradient step, > 0 (0.3 to 1 in the paper, by task).
        eta: share of fresh noise.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(self, grid: TimeGrid, zeta: PositiveFloat = 1.0, eta: Probability = 1.0) -> None:
        super().__init__(grid, eta)
        self.zeta = zeta

    def loss(self, problem: Problem, x_t: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        square = squared_residual(problem, x0_hat)
        return (
            self.zeta * torch.where(square > 0, square, 1).sqrt() * (square > 0)
        )  # the root has no slope at 0

    def remedy(self) -> str:
        return f"choose a smaller zeta than {self.zeta:g}, or more steps"


class STSL(GradientChain):
    r"""The second-order surrogate loss, see the module's formulas.

    .. math:: \mathrm{tr} H \approx \frac{1}{K} \sum_k \frac{u_k^T (s(x_t + d\, u_k) - s(x_t))}{d},
              \quad u_k \sim N(0, I), \quad d = \mathtt{probe}\; \sigma_t ,

    where s is the pixel-space score. Probes are scaled by the noise: long ones measure the curve elsewhere.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())
    >>> observation = Observation(torch.ones(1, 1, 4, 4), Identity(), GaussianNoise(0.1))
    >>> STSL(UniformGrid(10))(observation, model, streams=ImageStreams([0])).nfe
    19

    Args:
        grid: the times visited.
        zeta: weight of the data, > 0.
        c: weight of the trace, >= 0.
        probes: K; each costs one more evaluation of the network per step.
        probe: length of the probes in units of ``sigma_t``.
        eta: share of fresh noise.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        zeta: PositiveFloat = 1.0,
        c: NonNegativeFloat = 0.02,
        probes: PositiveInt = 1,
        probe: PositiveFloat = 0.1,
        eta: Probability = 1.0,
    ) -> None:
        super().__init__(grid, eta)
        self.zeta, self.c, self.probes, self.probe = zeta, c, probes, probe

    def loss(self, problem: Problem, x_t: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        data = self.zeta / problem.squared_norm * squared_residual(problem, x0_hat)
        return data + self.c * self.trace(problem, x_t, x0_hat, t)

    def trace(self, problem: Problem, x_t: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        """The estimate of ``tr H [B]``, without unit of the data: times ``sigma_t^2`` it is ``alpha tr dD/dx_t - n``."""
        alpha, sigma = problem.schedule.at(t)
        total = x_t.new_zeros(len(x_t))
        for _ in range(self.probes):
            u = problem.streams.normal(x_t)
            moved = problem.denoise(x_t + self.probe * sigma * u, t)
            slope = (alpha * (moved - x0_hat) / (self.probe * sigma) - u) / sigma**2  # of the score along u
            total = total + (u * slope).flatten(1).sum(1)
        return total / self.probes

    def remedy(self) -> str:
        return f"choose a smaller zeta than {self.zeta:g} or c than {self.c:g}, or more steps"


class HIRDiff(GradientChain):
    """Data consistency and total variation of the estimate, see the module's formulas.

    For a cube of bands that are combinations of a few images give the operator ``Compose(A, ChannelMix(E))`` and a model of
    the few; the result is theirs, ``ChannelMix(E)`` makes the cube of it.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity, Observation
    >>> from scoreexp.samplers import UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())
    >>> observation = Observation(torch.ones(1, 1, 4, 4), Identity(), GaussianNoise(0.1))
    >>> HIRDiff(UniformGrid(10))(observation, model, streams=ImageStreams([0])).nfe
    10

    Args:
        grid: the times visited.
        eta_1: weight of the data, > 0.
        eta_2: weight of the total variation (isotropic, of every channel), >= 0.
        eta: share of fresh noise.

    Raises:
        ValueError: a parameter is outside its domain; on a call, the model is of other data than images and eta_2 > 0.
    """

    @checked
    def __init__(
        self,
        grid: TimeGrid,
        eta_1: PositiveFloat = 0.5,
        eta_2: NonNegativeFloat = 0.01,
        eta: Probability = 0.0,
    ) -> None:
        super().__init__(grid, eta)
        self.eta_1, self.eta_2 = eta_1, eta_2

    def loss(self, problem: Problem, x_t: Tensor, x0_hat: Tensor, t: float) -> Tensor:
        data = self.eta_1 / problem.squared_norm * squared_residual(problem, x0_hat)
        return data + self.eta_2 * total_variation(x0_hat) if self.eta_2 else data

    def remedy(self) -> str:
        return f"choose a smaller eta_1 than {self.eta_1:g}, or more steps"


def total_variation(x: Tensor, smoothing: float = 1e-3) -> Tensor:
    """``sum sqrt(dx^2 + dy^2 + smoothing^2) - smoothing`` of images ``[B, C, H, W]``: ``[B]``.

    >>> import torch
    >>> step = torch.zeros(1, 1, 4, 4)
    >>> step[..., 2:] = 1.0
    >>> round(float(total_variation(step)), 2)
    4.0

    Raises:
        ValueError: ``x`` holds no images.
    """
    if x.ndim != 4:
        raise ValueError(
            f"total variation is of images [B, C, H, W], not of {tuple(x.shape)}: choose eta_2=0"
        )
    down = torch.nn.functional.pad(x.diff(dim=-2), (0, 0, 0, 1))
    right = torch.nn.functional.pad(x.diff(dim=-1), (0, 1))
    length = (down**2 + right**2 + smoothing**2).sqrt() - smoothing
    return length.flatten(1).sum(1)
