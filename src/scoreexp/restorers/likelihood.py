r"""Restorers that give any sampler the denoiser of the posterior, by a Gaussian approximation of the likelihood.

With the moments of ``p(x_0 | x_t)``, mean ``x0_hat`` and covariance ``V``, and noise of level ``sigma_y``,

.. math:: p(y | x_t) \approx N(A \hat x_0,\; A V A^T + \sigma_y^2 I), \qquad
          E[x_0 | x_t, y] \approx \hat x_0 + \frac{\sigma_t^2}{\alpha_t} J^T A^T
          (A V A^T + \sigma_y^2 I)^{-1} (y - A \hat x_0), \quad J = \frac{\partial \hat x_0}{\partial x_t} .

The right-hand side is Tweedie's formula with the score of the posterior, so the samplers are those of the prior, unchanged.

========= ==================================================================================================
``PiGDM`` ``V = r_t^2 I`` with ``r_t^2 = sigma_t^2 sigma_d^2 / (alpha_t^2 sigma_d^2 + sigma_t^2)``
``MMPS``  ``V = (sigma_t^2 / alpha_t) J``, the exact covariance; the system is solved by conjugate gradients
========= ==================================================================================================

``MMPS`` is exact for Gaussian data; ``PiGDM`` for white Gaussian data of standard deviation ``sigma_d``. Where alpha is 0
(flow matching) no derivative tells the covariance, and the mean is left as it is: an error of order ``alpha_s`` in the step
to the next time ``s``.

References:
    J. Song, A. Vahdat, M. Mardani, J. Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
    https://openreview.net/forum?id=9_gsMA8MRKQ;
    F. Rozet, G. Andry, F. Lanusse, G. Louppe, "Learning Diffusion Priors from Observations by Expectation
    Maximization", 2024, https://arxiv.org/abs/2405.13712, section 3.2.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.streams import ImageStreams
from scoreexp.core.tensors import expand_to
from scoreexp.core.types import PositiveFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase, Wrapper
from scoreexp.numerics.conjugate_gradient import conjugate_gradient
from scoreexp.numerics.input_gradients import InputGradients
from scoreexp.observations import SVD, LinearOperator, Observation
from scoreexp.restorers.base import Callback, Restorer
from scoreexp.restorers.by_sampling import unscaled
from scoreexp.restorers.proximal import known_svd
from scoreexp.restorers.requirements import event_shape, gaussian_level, linear_operator
from scoreexp.restorers.start import image_share
from scoreexp.samplers import Sampler, start_from_prior

Product = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    """What every ``solve`` of an observation needs.

    Attributes:
        operator: ``A``.
        sigma_y: standard deviation of the noise of ``y``.
        svd: of the operator, if it is known in closed form.
    """

    operator: LinearOperator
    sigma_y: float
    svd: SVD | None


class LikelihoodRestorer(Restorer):
    """Base: a new one writes ``solve``, and so chooses ``V``.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.restorers.likelihood import LikelihoodRestorer
    >>> class Certain(LikelihoodRestorer):
    ...     '''V = 0: x_0 is taken to be x0_hat.'''
    ...     def solve(self, problem, residual, jacobian_t, alpha, sigma):
    ...         return problem.operator.adjoint(residual) / problem.sigma_y**2
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> restorer = Certain(se.samplers.DDIM(se.samplers.UniformGrid(20)))
    >>> restored = restorer(observation, model, streams=ImageStreams([0]))
    >>> restored.x.shape, restored.nfe
    (torch.Size([1, 2]), 20)

    Args:
        sampler: what draws from the posterior; it begins at the prior.
    """

    @checked
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    @abstractmethod
    def solve(
        self, problem: Problem, residual: Tensor, jacobian_t: Product, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        """``A^T (A V A^T + sigma_y^2 I)^-1 residual``, of the shape of ``x_t``.

        Args:
            problem: the operator and the noise.
            residual: ``y - A x0_hat``.
            jacobian_t: ``J^T u`` of ``u [B, *]``.
            alpha: of the state, broadcasts against ``x_t``.
            sigma: as ``alpha``.
        """

    def remedy(self) -> str:
        """What to change where the sampler diverges."""
        return "give a larger noise level of y, or more steps"

    def posterior(self, model: DenoiserBase, observation: Observation) -> "_Posterior":
        """``E[x_0 | x_t, y]``, a denoiser like any other.

        Raises:
            ValueError: the operator is not linear, the noise is not white and Gaussian, or the shapes disagree.
        """
        name = type(self).__name__
        operator, sigma_y = linear_operator(name, observation), gaussian_level(name, observation)
        observation.require_shape(event_shape(name, model))
        observation.require_finite()
        problem = Problem(operator, sigma_y, known_svd(operator, observation.y))
        return _Posterior(model, observation.y, problem, self.solve)

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y, posterior = observation.y, self.posterior(model, observation)
        shape = event_shape(type(self).__name__, model)
        noise = start_from_prior(model, shape, streams, dtype=y.dtype, device=y.device)
        operator, sigma_y, _ = posterior.problem
        x_t = image_share(model.schedule, operator, y, sigma_y, shape) + noise
        try:
            result = self.sampler(posterior, x_t, streams=streams, cond=cond, keep=keep, callback=callback)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{type(self).__name__}: {str(error).partition(': ')[0]}: {self.remedy()}"
            ) from error
        return result.x, unscaled(result, model.schedule)


class _Posterior(Wrapper):
    def __init__(
        self, model: DenoiserBase, y: Tensor, problem: Problem, solve: Callable[..., Tensor]
    ) -> None:
        super().__init__(model)
        self.y, self.problem, self.solve = y, problem, solve

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        scales = self.schedule(t.to(device="cpu", dtype=torch.float64))
        if not scales[0].any():
            return self.model(x_t, t, cond)
        alpha, sigma = (expand_to(scale, x_t).to(x_t) for scale in scales)
        with torch.inference_mode(False), torch.enable_grad(), InputGradients():
            x = x_t.detach().clone().requires_grad_()
            x0_hat = self.model(x, t, cond)

        def jacobian_t(v: Tensor) -> Tensor:
            return torch.autograd.grad(x0_hat, x, v, retain_graph=True)[0]

        with torch.inference_mode(False), torch.no_grad():
            mean = x0_hat.detach()
            residual = self.y - self.problem.operator(mean)
            pulled = self.solve(self.problem, residual, jacobian_t, alpha, sigma)
            corrected: Tensor = mean + sigma**2 / alpha * jacobian_t(pulled)
        return corrected


class PiGDM(LikelihoodRestorer):
    """Pseudo-inverse guidance: the covariance of white Gaussian data, see the module's formulas.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), VP())
    >>> observation = Observation(torch.ones(1, 2), Identity(), GaussianNoise(0.01))
    >>> PiGDM(DDIM(UniformGrid(50)), sigma_data=1.0)(observation, model, streams=ImageStreams([0])).x.round(decimals=1)
    tensor([[1., 1.]])

    Args:
        sampler: what draws.
        sigma_data: ``sigma_d``, standard deviation of the data, > 0, in units of the model.
        cg_steps: most steps of conjugate gradients where the operator has no decomposition; ``sigma_y`` must be > 0 then.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(self, sampler: Sampler, sigma_data: PositiveFloat = 0.5, cg_steps: PositiveInt = 20) -> None:
        super().__init__(sampler)
        self.sigma_data, self.cg_steps = sigma_data, cg_steps

    def solve(
        self, problem: Problem, residual: Tensor, jacobian_t: Product, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        operator, sigma_y, svd = problem
        variance = (sigma * self.sigma_data) ** 2 / ((alpha * self.sigma_data) ** 2 + sigma**2)
        if svd is None:
            v = conjugate_gradient(
                lambda u: _times(variance, operator(operator.adjoint(u))) + sigma_y**2 * u,
                residual,
                max_iter=self.cg_steps,
            ).x
            return operator.adjoint(v)
        total = variance * svd.singular**2 + sigma_y**2
        weights = torch.where(svd.measured, svd.singular / torch.where(svd.measured, total, 1), 0)
        return svd.v(weights * svd.ut(residual))

    def remedy(self) -> str:
        return (
            f"choose a smaller sigma_data than {self.sigma_data:g}, a larger noise level of y, or more steps"
        )


class MMPS(LikelihoodRestorer):
    """Moment matching: the covariance of the model itself, see the module's formulas.

    Each step of conjugate gradients costs a backward pass through the network, which the count of evaluations leaves out.
    They stop where ``A V A^T + sigma_y^2 I`` shows a direction in which it is not positive, as it may for the Jacobian of a
    network, which is a covariance only about.

    >>> import torch
    >>> from scoreexp.core.streams import ImageStreams
    >>> from scoreexp.denoisers import OracleDenoiser
    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> from scoreexp.samplers import DDIM, UniformGrid
    >>> from scoreexp.schedules import VP
    >>> model = OracleDenoiser(Gaussian(torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), VP())
    >>> observation = Observation(torch.ones(1, 1, 4, 4), Identity(), GaussianNoise(0.1))
    >>> MMPS(DDIM(UniformGrid(10)))(observation, model, streams=ImageStreams([0])).nfe
    10

    Args:
        sampler: what draws.
        cg_steps: most steps of conjugate gradients (1 to 5 in the paper); with as many as ``y`` has values they are exact.

    Raises:
        ValueError: a parameter is outside its domain.
    """

    @checked
    def __init__(self, sampler: Sampler, cg_steps: PositiveInt = 5) -> None:
        super().__init__(sampler)
        self.cg_steps = cg_steps

    def solve(
        self, problem: Problem, residual: Tensor, jacobian_t: Product, alpha: Tensor, sigma: Tensor
    ) -> Tensor:
        operator, sigma_y, _ = problem
        v = conjugate_gradient(
            lambda u: operator(sigma**2 / alpha * jacobian_t(operator.adjoint(u))) + sigma_y**2 * u,
            residual,
            max_iter=self.cg_steps,
            stop_at_curvature=True,
        ).x
        return operator.adjoint(v)


def _times(scale: Tensor, y: Tensor) -> Tensor:
    """``y [B, *]`` times a scale ``[B, 1, ...]`` of another number of axes."""
    return expand_to(scale.flatten(), y) * y
