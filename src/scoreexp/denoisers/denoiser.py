r"""The denoiser: the posterior mean of clean data, from which everything else follows.

For ``x_t = alpha x_0 + sigma z`` the posterior mean ``E[x_0 | x_t]`` determines the pixel-space score
(Tweedie's formula), the expected noise and the velocity:

.. math:: \nabla \log p_t(x_t) = \frac{\alpha \hat x_0 - x_t}{\sigma^2}, \qquad
          \hat\epsilon = \frac{x_t - \alpha \hat x_0}{\sigma}, \qquad
          \hat v = \alpha \hat\epsilon - \sigma \hat x_0 .

This module is the only place that converts between them. ``v`` keeps this definition for every schedule, so
``x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)``.

References:
    B. Efron, "Tweedie's Formula and Selection Bias", 2011, https://doi.org/10.1198/jasa.2011.tm11181;
    T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022,
    https://arxiv.org/abs/2202.00512.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from itertools import chain
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.tensors import expand_to
from scoreexp.denoisers.counting import counted
from scoreexp.denoisers.preconditioning import Coefficients, Preconditioning
from scoreexp.numerics.oracles import Oracle
from scoreexp.schedules import Schedule

Scale = Tensor | float  # alpha or sigma: a number, or a tensor that broadcasts against x_t


def eps_from_x0(x0: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``eps = (x_t - alpha x_0) / sigma``.

    >>> eps_from_x0(torch.tensor([1.0]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([0.5000])
    """
    return (x_t - alpha * x0) / sigma


def score_from_x0(x0: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``score = (alpha x_0 - x_t) / sigma^2``.

    >>> score_from_x0(torch.tensor([1.0]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([-0.8333])
    """
    return (alpha * x0 - x_t) / sigma**2


def v_from_x0(x0: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``v = alpha eps - sigma x_0``.

    >>> v_from_x0(torch.tensor([1.0]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([-0.2000])
    """
    return alpha * eps_from_x0(x0, x_t, alpha, sigma) - sigma * x0


def x0_from_eps(eps: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``x_0 = (x_t - sigma eps) / alpha``, for ``alpha > 0``.

    >>> x0_from_eps(torch.tensor([0.5]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([1.])
    """
    return (x_t - sigma * eps) / alpha


def x0_from_score(score: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``x_0 = (x_t + sigma^2 score) / alpha``, for ``alpha > 0``.

    >>> x0_from_score(torch.tensor([-0.5 / 0.6]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([1.])
    """
    return (x_t + sigma**2 * score) / alpha


def x0_from_v(v: Tensor, x_t: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
    """``x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2)``.

    >>> x0_from_v(torch.tensor([-0.2]), torch.tensor([1.1]), alpha=0.8, sigma=0.6)
    tensor([1.])
    """
    return (alpha * x_t - sigma * v) / (alpha**2 + sigma**2)


class DenoiserBase(ABC):
    """What objectives and samplers know of a model.

    A class that asks other denoisers, such as guidance, is a ``Wrapper`` of one, or says so: ``class Mean(DenoiserBase,
    wraps=True)``; classes derived from it are wrappers too. All others are networks, whose evaluations are counted
    (``scoreexp.denoisers.counting``).

    >>> from scoreexp.schedules import EDM
    >>> class Origin(DenoiserBase):  # of data that are 0
    ...     schedule, event_shape = EDM(), None
    ...     def __call__(self, x_t, t, cond=None):
    ...         return torch.zeros_like(x_t)
    >>> Origin().score(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))  # -x_t / sigma^2
    tensor([[-0.2500, -0.7500]])

    Attributes:
        schedule: the noise schedule that ``t`` refers to.
        event_shape: shape ``*`` of one sample, if the model has a fixed one.
        record: what its checkpoint says of its training; empty for a model from elsewhere.
    """

    schedule: Schedule
    event_shape: tuple[int, ...] | None
    record: Mapping[str, Any] = MappingProxyType({})
    _wraps: ClassVar[bool] = False

    def __init_subclass__(cls, *, wraps: bool | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if wraps is not None:
            cls._wraps = wraps
        for name in ("__call__", "forward", "toward"):
            if not cls._wraps and name in vars(cls):
                setattr(cls, name, counted(vars(cls)[name]))

    @property
    def device(self) -> torch.device:
        """Where ``x_t`` must lie; the CPU unless a class says otherwise."""
        return torch.device("cpu")

    @property
    def downsampling_factor(self) -> int:
        """What the sides of an image must be divisible by, in pixels; 1 unless a class says otherwise."""
        return 1

    @property
    def latent_channels(self) -> int:
        """Numbers in the latent ``z[B, L]`` of a model that draws x_0; 0 for one that has a posterior mean."""
        return 0

    @property
    def states_posterior_mean(self) -> bool:
        """False for a consistency model, whose ``x0_hat`` is the end of a path, and for a generator, whose is a draw."""
        return True

    def begin(self) -> "DenoiserBase":
        """The denoiser of one trajectory: this one, or a new one where it remembers earlier times (some guidance)."""
        return self

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The posterior mean ``E[x_0 | x_t]``.

        Args:
            x_t: noisy data ``[B, *]``.
            t: times ``[B]`` in the schedule's range, best in float64 on the CPU.
            cond: class labels ``[B]`` (long), an image ``[B, C', H, W]`` (floating point) that the model is conditioned
                on, the latent ``[B, L]`` of a model that draws x_0, or None.

        Returns:
            ``x0_hat [B, *]``, in the dtype and on the device of ``x_t``.
        """

    def toward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Where the average velocity ``u`` of the flow from ``t`` to ``s`` would lead by time 0: ``x_t - t u``, ``[B, *]``.

        .. math:: u(x_t, s, t) = \frac{1}{t - s} \int_s^t v(x_\tau, \tau)\, d\tau

        At ``s = t`` it is ``x0_hat``. For models of two times on ``schedule=flow_matching``.

        Args:
            x_t: noisy data ``[B, *]``.
            t: times ``[B]`` as of ``__call__``.
            s: times ``[B]``, at most ``t``.
            cond: as of ``__call__``.

        Raises:
            UserError: the model takes one time.
        """
        raise UserError(
            f"{type(self).__name__} takes one time and this needs a second: choose a network of two times "
            "(network=unet_two_times, recipe=mean_flow), without guidance"
        )

    def score(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The pixel-space score ``grad log p_t(x_t)``, ``[B, *]``."""
        return score_from_x0(self(x_t, t, cond), x_t, *self._scales(x_t, t))

    def eps(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The expected noise ``E[z | x_t]``, ``[B, *]``."""
        return eps_from_x0(self(x_t, t, cond), x_t, *self._scales(x_t, t))

    def v(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The expected velocity ``E[alpha z - sigma x_0 | x_t]``, ``[B, *]``."""
        return v_from_x0(self(x_t, t, cond), x_t, *self._scales(x_t, t))

    def _scales(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t.to(device="cpu", dtype=torch.float64))
        return expand_to(alpha, x_t), expand_to(sigma, x_t)


class Denoiser(nn.Module, DenoiserBase):
    """Network, preconditioning and schedule: ``x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise, cond)``.

    The coefficients are computed in float64 from ``t`` and cast to the dtype of ``x_t``. The network has the
    parameters, and a schedule that is learned; the keys of the state dict are ``network.*`` and ``schedule.*``.

    >>> from scoreexp.denoisers import VPrediction
    >>> from scoreexp.networks import MLP
    >>> from scoreexp.schedules import VP
    >>> model = Denoiser(MLP(event_shape=(2,)), VPrediction(), VP())
    >>> model(torch.randn(4, 2), torch.full((4,), 0.5)).shape
    torch.Size([4, 2])

    Args:
        network: ``F(x[B, *], c_noise[B], cond[B] | None) -> [B, *]``.
        preconditioning: what ``F`` stands for.
        schedule: the noise schedule.

    Raises:
        ValueError: if ``alpha`` reaches 0 and the preconditioning does not determine ``x_0`` there, or the network is
            made for EDM's output and its ``sigma_data``, and the preconditioning is another.
    """

    @checked
    def __init__(self, network: nn.Module, preconditioning: Preconditioning, schedule: Schedule) -> None:
        super().__init__()
        made_for = getattr(network, "sigma_data", None)
        if made_for is not None and getattr(preconditioning, "sigma_data", None) != made_for:
            raise ValueError(
                f"{type(network).__name__} is made for EDM's output with sigma_data={made_for}, and the preconditioning is "
                f"{type(preconditioning).__name__}: choose precond=edm with that sigma_data, or another network"
            )
        self.network = network
        self.preconditioning = preconditioning
        self.schedule = schedule
        self.event_shape: tuple[int, ...] | None = getattr(network, "event_shape", None)
        noisiest = torch.tensor([schedule.t_max], dtype=torch.float64)
        if not noisiest.is_meta:  # a model of shapes alone, with which a file is checked, has no values
            preconditioning(*schedule(noisiest))  # refuses alpha = 0 here and not in a step

    @property
    def device(self) -> torch.device:
        """That of the network's first parameter, or buffer where it has none."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    @property
    def downsampling_factor(self) -> int:
        """That of the network; 1 where it states none."""
        return int(getattr(self.network, "downsampling_factor", 1))

    @property
    def latent_channels(self) -> int:
        """That of the network; 0 where it states none."""
        return int(getattr(self.network, "latent_channels", 0))

    @property
    def states_posterior_mean(self) -> bool:
        return self.preconditioning.states_posterior_mean and not self.latent_channels

    def forward(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        c = self._coefficients(t)
        return self._evaluated(x_t, c, expand_to(c.c_noise, x_t).flatten(), cond)

    def toward(self, x_t: Tensor, t: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
        if not getattr(self.network, "takes_two_times", False):
            raise UserError(
                f"{type(self.network).__name__} takes one time and this needs a second: choose a network of two times "
                "(network=unet_two_times, recipe=mean_flow)"
            )
        c = self._coefficients(t)
        levels = torch.stack([c.c_noise, self._coefficients(s).c_noise], 1)
        return self._evaluated(x_t, c, levels.to(x_t), cond)

    def _coefficients(self, t: Tensor) -> Coefficients:
        return self.preconditioning(*self.schedule(t.to(device="cpu", dtype=torch.float64)))

    def _evaluated(self, x_t: Tensor, c: Coefficients, c_noise: Tensor, cond: Tensor | None) -> Tensor:
        output = self.network(expand_to(c.c_in, x_t) * x_t, c_noise, cond)
        return expand_to(c.c_skip, x_t) * x_t + expand_to(c.c_out, x_t) * output


class Wrapper(DenoiserBase, wraps=True):
    """A denoiser around another, whose schedule, event shape, record, device, downsampling factor and latent it has.

    A new wrapper writes ``__call__``; what it asks of ``self.model`` is counted there.

    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import VP
    >>> class Clipped(Wrapper):
    ...     def __call__(self, x_t, t, cond=None):
    ...         return self.model(x_t, t, cond).clamp(-1, 1)
    >>> model = Clipped(OracleDenoiser(Gaussian(torch.full((2,), 3.0), torch.eye(2)), VP()))
    >>> model(torch.zeros(1, 2), torch.tensor([0.5])), model.event_shape
    (tensor([[1., 1.]]), (2,))

    Args:
        model: the denoiser inside.
    """

    def __init__(self, model: DenoiserBase) -> None:
        self.model = model
        self.schedule, self.event_shape, self.record = model.schedule, model.event_shape, model.record

    def begin(self) -> DenoiserBase:
        begun = self.model.begin()
        if begun is self.model:
            return self
        found = copy(self)
        found.model = begun
        return found

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def downsampling_factor(self) -> int:
        return self.model.downsampling_factor

    @property
    def latent_channels(self) -> int:
        return self.model.latent_channels

    @property
    def states_posterior_mean(self) -> bool:
        return self.model.states_posterior_mean


class OracleDenoiser(DenoiserBase):
    """The exact denoiser of a known data distribution.

    >>> from scoreexp.numerics.oracles import Gaussian
    >>> from scoreexp.schedules import EDM
    >>> model = OracleDenoiser(Gaussian(torch.zeros(2), torch.ones(2)), EDM())
    >>> model(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))  # x_t / (1 + sigma^2)
    tensor([[0.2000, 0.6000]])

    Args:
        oracle: the distribution.
        schedule: the noise schedule.

    Raises:
        ValueError: if called with class labels, which the distribution does not know.
    """

    @checked
    def __init__(self, oracle: Oracle, schedule: Schedule) -> None:
        self.oracle = oracle
        self.schedule = schedule
        self.event_shape = oracle.event_shape

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        if cond is not None:
            raise ValueError("cond was given, but an oracle has no classes: call it with cond=None")
        return self.oracle.posterior_mean(x_t, *self.schedule(t.to(device="cpu", dtype=torch.float64)))
