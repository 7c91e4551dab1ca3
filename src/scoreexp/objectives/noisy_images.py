"""Objectives for noisy images without clean ones: what they have in common."""

import torch
from torch import Tensor, nn

from scoreexp.core.batch import Batch
from scoreexp.core.errors import UserError
from scoreexp.core.streams import generator
from scoreexp.objectives.base import Objective, noise_name


class OfNoisyImages(nn.Module, Objective):
    """Base of objectives that see noisy images alone, and change during training.

    What a batch holds, observed (``y``) or as a data set gives them (``x``), are the noisy images. The number of calls in
    training is saved with the run, so that a resumed run goes on where it was; in evaluation mode the objective is that of
    the end of training, so that its values on validation images can be compared.

    >>> class Constant(OfNoisyImages):
    ...     def forward(self, model, batch, t, noise):
    ...         return 1 - self.progress() + 0 * noisy_images(batch).flatten(1).sum(1)
    >>> objective, batch = Constant(ramp=2), Batch(x=torch.zeros(1, 2))
    >>> [objective(None, batch, None, None).item() for _ in range(4)]
    [1.0, 0.5, 0.0, 0.0]

    Args:
        ramp: calls until ``progress`` is 1.
        window: side in pixels of the random square of each batch that is used; None is the whole image.
    """

    calls: Tensor

    def __init__(self, ramp: int = 1, window: int | None = None) -> None:
        super().__init__()
        self.ramp, self.window = ramp, window
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def prepare(self, size: int, fetch: object) -> None:
        """Refuse a single image.

        Raises:
            UserError: names what denoises one.
        """
        if size < 2:
            raise UserError(
                f"{type(self).__name__} trains on many noisy images, and the training set has {size}: denoise a single one "
                "by denoise restorer=filter2noise or restorer=zs_n2n"
            )

    def progress(self) -> float:
        """From 0 to 1 over the first ``ramp`` calls in training; counts one. 1 in evaluation mode."""
        if not self.training:
            return 1.0
        done = min(1.0, int(self.calls) / self.ramp)
        self.calls += 1
        return done

    def in_window(self, y: Tensor, noise: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """A square of ``y[B, *, H, W]`` and the same of the noise, named by the noise; its sides divide by ``multiple``."""
        if y.ndim != 4:
            return y, noise
        random = generator(noise_name(noise), "window")
        for axis in (-2, -1):
            length = y.shape[axis]
            side = min(length, self.window or length) // multiple * multiple
            start = int(torch.randint(length - side + 1, (), generator=random))
            y, noise = y.narrow(axis, start, side), noise.narrow(axis, start, side)
        return y, noise


def noisy_images(batch: Batch) -> Tensor:
    """The noisy data of a batch, ``y`` where it has them, otherwise ``x``.

    Raises:
        ValueError: it has neither.
    """
    found = batch.x if batch.y is None else batch.y
    if found is None:
        raise ValueError("the batch has no data: this objective needs a data set of noisy images")
    return found
