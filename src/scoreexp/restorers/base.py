"""What every restorer is: from an observation to an estimate of what was observed."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.denoisers.counting import counting
from scoreexp.observations import Identity, Observation
from scoreexp.samplers.base import Callback


class Restoration(NamedTuple):
    """What a restorer returns.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> oracle = se.oracles.Gaussian(torch.zeros(2), torch.ones(2))
    >>> model = se.denoisers.OracleDenoiser(oracle, se.schedules.VP())
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> restorer = se.restorers.PiGDM(se.samplers.DDIM(se.samplers.UniformGrid(10)))
    >>> restored = restorer(observation, model, streams=ImageStreams([0]), keep=2)
    >>> restored.x.shape, restored.nfe, len(restored.trajectory)
    (torch.Size([1, 2]), 10, 2)

    Attributes:
        x: the estimate ``[B, *]``, in the units of the model.
        nfe: evaluations of the network for each sample; 0 for a restorer without one.
        seconds: wall time.
        trajectory: estimates ``[B, *]`` on the way, first to last, at most as many as were asked for; the last is ``x``.
    """

    x: Tensor
    nfe: int
    seconds: float
    trajectory: list[Tensor]


class Restorer(ABC):
    """Estimates ``x`` from an ``Observation`` of it. What it needs beyond that are constructor arguments.

    A new restorer writes ``restore``; what holds for all of them (the number of seeds, whether there is a model, the count
    of evaluations, the time) is seen to here.

    >>> import torch
    >>> import scoreexp as se
    >>> from scoreexp.core.streams import ImageStreams
    >>> class Wiener(se.restorers.Restorer):
    ...     '''E[x | y] for x ~ N(0, 1) and white noise.'''
    ...     needs_model = False
    ...     def restore(self, observation, model, streams, cond, keep, callback):
    ...         return observation.y / (1 + observation.noise.sigma**2), []
    >>> observation = se.Observation(
    ...     torch.ones(1, 2), se.observations.Identity(), se.observations.GaussianNoise(1.0))
    >>> Wiener()(observation, streams=ImageStreams([0])).x
    tensor([[0.5000, 0.5000]])

    Attributes:
        needs_model: whether it takes a denoiser as its prior. A restorer that fits the one observation takes none.
    """

    needs_model: ClassVar[bool] = True

    def __call__(
        self,
        observation: Observation,
        model: DenoiserBase | None = None,
        *,
        streams: ImageStreams,
        cond: Tensor | None = None,
        keep: int = 0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore.

        Args:
            observation: what is known.
            model: the prior; put a network into evaluation mode first.
            streams: one random stream per sample.
            cond: class labels ``[B]``, or None.
            keep: how many estimates on the way to return, at most as many as there are.
            callback: called after each step as ``callback(i, n, x, x0_hat)``.

        Raises:
            ValueError: the restorer cannot serve this observation or needs a model; the message says which it can.
            FloatingPointError: the estimate is not finite; names the step.
        """
        if self.needs_model and model is None:
            raise ValueError(
                f"{type(self).__name__} needs a model: give the denoiser whose data x comes from"
            )
        observation.require_streams(streams)
        started = time.perf_counter()
        with counting() as evaluations:
            x, trajectory = self.restore(observation, model, streams, cond, keep, callback)
        return Restoration(x, evaluations.per_sample(len(x)), time.perf_counter() - started, trajectory)

    @abstractmethod
    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """The estimate ``[B, *]`` and those on the way; arguments and errors as of the call.

        ``model`` is a ``DenoiserBase``, or whatever was given where none is needed.
        """


class RestorerAround(Restorer):
    """A restorer that calls another, ``restorer``; a new one writes ``restore``.

    >>> import torch
    >>> import torch
    >>> from scoreexp.observations import GaussianNoise
    >>> from scoreexp.restorers import TV
    >>> class Doubled(RestorerAround):  # of data that were halved
    ...     def __init__(self, restorer):
    ...         self.restorer = restorer
    ...     def restore(self, observation, *arguments):
    ...         return self.changed_back(observation, lambda x: 2 * x, *arguments)
    >>> observation = Observation(torch.ones(1, 1, 8, 8), Identity(), GaussianNoise(0.1))
    >>> float(Doubled(TV())(observation, streams=ImageStreams([0])).x.mean())
    2.0
    """

    restorer: Restorer

    @property
    def needs_model(self) -> bool:  # type: ignore[override]
        """That of the restorer."""
        return self.restorer.needs_model

    def changed_back(
        self,
        changed: Observation,
        back: Callable[[Tensor], Tensor],
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """What the restorer makes of a changed observation, each of its estimates taken ``back``."""

        def followed(i: int, n: int, x: Tensor, x0_hat: Tensor | None) -> None:
            if callback is not None:
                callback(i, n, back(x), None if x0_hat is None else back(x0_hat))

        x, trajectory = self.restorer.restore(changed, model, streams, cond, keep, followed)
        return back(x), [back(state) for state in trajectory]


def require_noise_alone(observation: Observation, name: str) -> None:
    """Refuse what a restorer called ``name``, which only denoises images, cannot undo.

    >>> import torch
    >>> from scoreexp.observations import GaussianNoise
    >>> require_noise_alone(Observation(torch.zeros(1, 3, 8, 8), Identity(), GaussianNoise(0.1)), "Median")

    Raises:
        ValueError: the observation is of another operator, or not of images ``[B, C, H, W]``.
    """
    if not isinstance(observation.operator, Identity):
        raise ValueError(
            f"{name} removes noise and cannot undo {type(observation.operator).__name__}: choose a restorer that does, "
            "such as DDRM or PiGDM"
        )
    if not isinstance(kind_of(observation.y.shape[1:]), Images):
        raise ValueError(f"{name} is for images [B, C, H, W], not data {tuple(observation.y.shape)}")
