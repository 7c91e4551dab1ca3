"""Restorers that fit their own parameters to the one image that they denoise: what they have in common."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from scoreexp.core.streams import ImageStreams
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import Observation
from scoreexp.restorers.base import Callback, Restorer, require_noise_alone

EVERY = 25  # steps between two looks at the estimate

Followed = Callable[[int, Tensor], bool]


class PerImage(Restorer):
    """Base of the restorers that are fitted to each image by itself. A new one writes ``fit``.

    The fit has a rule to stop without a reference: it is over when the estimate has moved by less than ``tolerance``
    standard deviations of the noise (root mean square over the pixels) during the last 25 steps.

    Attributes:
        method: the name by which errors call it.
        smallest: sides that an image must have at least, in pixels.
        steps: of the fit of one image, at most.
        lr: learning rate, of those that ``descend``.
        tolerance: of the rule, 0 for all ``steps``.
    """

    needs_model: ClassVar[bool] = False
    method: ClassVar[str]
    smallest: ClassVar[int] = 2
    steps: int
    lr: float
    tolerance: float = 0.0

    @abstractmethod
    def fit(
        self, observation: Observation, model: DenoiserBase | None, seed: int, followed: Followed
    ) -> Tensor:
        """The image without its noise.

        Args:
            observation: one image ``[1, C, H, W]``, with gradients enabled.
            model: the prior of a restorer that needs one.
            seed: names all that is random.
            followed: to be told the step, from 1, and the estimate ``[1, C, H, W]`` after each step; True: it is over.

        Returns:
            ``[1, C, H, W]``, without gradients.
        """

    def restore(
        self,
        observation: Observation,
        model: DenoiserBase | None,
        streams: ImageStreams,
        cond: Tensor | None,
        keep: int,
        callback: Callback | None,
    ) -> tuple[Tensor, list[Tensor]]:
        y = observation.y
        require_noise_alone(observation, self.method)
        if min(y.shape[-2:]) < self.smallest:
            raise ValueError(
                f"{self.method} takes images of {self.smallest} x {self.smallest} pixels at least, not {tuple(y.shape[-2:])}"
            )
        fitted = []
        with torch.inference_mode(False), torch.enable_grad():
            for number, seed in enumerate(streams.seeds):
                one = replace(observation, y=y[number : number + 1].clone())
                fitted.append(
                    self.fit(one, model, seed, self._follow(one, number, len(y), callback)).detach()
                )
        x = torch.cat(fitted)
        return x, [y, x][-keep:] if keep else []

    def _follow(self, one: Observation, number: int, images: int, callback: Callback | None) -> Followed:
        """Reports the steps of image ``number`` and says when its fit is over."""
        level = float(one.noise.variance(one.y.clamp(min=-1)).mean().sqrt()) if self.tolerance else 0.0
        before: list[Tensor] = []

        def followed(step: int, estimate: Tensor) -> bool:
            settled = False
            if self.tolerance and step % EVERY == 0:
                moved = float((estimate - before.pop()).square().mean().sqrt()) if before else float("inf")
                settled = moved < self.tolerance * level
                before.append(estimate.detach().clone())
            if callback is not None:
                done = self.steps if settled else step
                callback(number * self.steps + done, images * self.steps, estimate, None)
            return settled

        return followed

    def descend(self, optimizer: Optimizer, loss: Tensor, step: int) -> None:
        """A step of the optimiser.

        Raises:
            FloatingPointError: the loss is NaN or infinite; names the step.
        """
        if not loss.isfinite():
            raise FloatingPointError(
                f"the loss is not finite at step {step} of {self.steps}: the image holds NaN, or lr={self.lr:g} is too large"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
