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
        """A square of each of the images ``y[B, *, H, W]`` and the same of its noise, by which it is named.

        Its sides are divisible by ``multiple``; data that are no images are returned as they are.
        """
        if y.ndim != 4:
            return y, noise
        height, width = (min(n, self.window or n) // multiple * multiple for n in y.shape[-2:])
        parts = []
        for image, its_noise in zip(y, noise, strict=True):
            random = generator(noise_name(its_noise), "window")
            row = int(torch.randint(y.shape[-2] - height + 1, (), generator=random))
            column = int(torch.randint(y.shape[-1] - width + 1, (), generator=random))
            place = (..., slice(row, row + height), slice(column, column + width))
            parts.append((image[place], its_noise[place]))
        images, noises = zip(*parts, strict=True)
        return torch.stack(images), torch.stack(noises)


def noisy_images(batch: Batch) -> Tensor:
    """The noisy data of a batch, ``y`` where it has them, otherwise ``x``.

    Raises:
        ValueError: it has neither.
    """
    found = batch.x if batch.y is None else batch.y
    if found is None:
        raise ValueError("the batch has no data: this objective needs a data set of noisy images")
    return found
