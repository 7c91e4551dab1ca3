"""Restorers that filter the noisy image itself: no model, no training, the noise level from the observation."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from scoreexp.core.streams import ImageStreams
from scoreexp.observations import CorrelatedNoise, GaussianNoise, Observation
from scoreexp.restorers.base import Callback, Restorer, require_noise_alone


class ImageFilter(Restorer):
    """Base of the filters of white Gaussian noise. A new one writes ``apply``."""

    needs_model: ClassVar[bool] = False

    @abstractmethod
    def apply(self, y: Tensor, sigma: float) -> Tensor:
        """The image without its noise of standard deviation ``sigma > 0``: ``[B, C, H, W] -> [B, C, H, W]``."""

    def restore(
        self,
        observation: Observation,
        model: Any,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        name, y, noise = type(self).__name__, observation.y, observation.noise
        require_noise_alone(observation, name)
        if not isinstance(noise, GaussianNoise):
            shared = isinstance(noise, CorrelatedNoise)
            remedy = "take PnPColoured()" if shared else f"wrap it as Stabilised({name}())"
            raise ValueError(
                f"{name} is for white Gaussian noise, not {type(noise).__name__}: {remedy}, or give "
                "GaussianNoise(sigma)"
            )
        observation.require_finite()
        x = self.apply(y, noise.sigma) if noise.sigma > 0 else y.clone()
        if callback is not None:
            callback(1, 1, x, None)
        return x, [y, x][-keep:] if keep else []
