"""Denoise an image in memory."""

from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreexp.api.models import as_model, usual_sampler
from scoreexp.core.checked import checked
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import sigma_to_model, to_uint8
from scoreexp.core.types import FiniteNonNegativeFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.observations import GaussianNoise
from scoreexp.restorers import BySampling
from scoreexp.restorers.images import Tiles, restore_pixels
from scoreexp.samplers import Sampler, label_of_observed
from scoreexp.samplers.labels import Label

Array = TypeVar("Array", np.ndarray, Tensor)


@checked
def denoise(
    image: Array,
    model: DenoiserBase | str | Path,
    sigma: FiniteNonNegativeFloat,
    *,
    sampler: Sampler | None = None,
    label: Label = None,
    seed: int = 0,
    tile: PositiveInt | Literal["auto"] | None = "auto",
) -> Array:
    """The image without its noise, in the layout and type that it was given in.

    >>> import numpy as np, torch, scoreexp as se
    >>> prior = se.oracles.Gaussian(torch.zeros(3, 8, 8), 0.01 * torch.ones(3, 8, 8))
    >>> model = se.denoisers.OracleDenoiser(prior, se.schedules.VP())
    >>> se.denoise(np.full((8, 8, 3), 200, np.uint8), model, sigma=0.1).shape
    (8, 8, 3)

    Args:
        image: floating point in [0, 1], or uint8. numpy: channels last, ``[H, W]`` or ``[H, W, C]``; torch: channels first,
            ``[H, W]`` or ``[C, H, W]``; C is 1 or 3, any H and W.
        model: a denoiser of images in [-1, 1], or the path of a checkpoint.
        sigma: standard deviation of the noise, in units of [0, 1] (25/255 = 0.098).
        sampler: how; by default the sampler of the model's run, or DDIM with 50 steps.
        label: class of the image, for a model with classes; ``"none"``, the null label, is the default where it was trained.
        seed: names the noise of samplers that draw any.
        tile: side of the tiles in pixels; None for the whole image at once, ``"auto"`` for tiles of large images.

    Raises:
        TypeError: the image is no array or of another type, or another argument is of another kind.
        ValueError: it has another shape, values out of range, or a noise level that the model does not know.
    """
    pixels = _pixels(image)
    denoiser = as_model(model)
    if not isinstance(kind_of(denoiser.event_shape), Images):
        raise ValueError(
            f"the model's samples have shape {denoiser.event_shape}: give a model of images (C, H, W)"
        )
    chosen, _ = label_of_observed(denoiser.record, seed, label)
    result = restore_pixels(
        BySampling(sampler or usual_sampler(denoiser)),
        denoiser,
        pixels,
        GaussianNoise(sigma_to_model(sigma)),
        label=chosen,
        seed=seed,
        tiles=Tiles(tile),
    )[-1]
    return _like(result, image)


def _pixels(image: np.ndarray | Tensor) -> np.ndarray:
    """``[H, W, C]`` float32 in [0, 1]."""
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"the image is a {type(image).__name__}: give a numpy array or a torch tensor")
    values = _array(image) if isinstance(image, Tensor) else image
    if values.dtype != np.uint8 and values.dtype.kind != "f":
        raise TypeError(f"the image has type {values.dtype}: give uint8, or floating point in [0, 1]")
    is_torch, shape = isinstance(image, Tensor), values.shape
    if values.ndim == 3 and is_torch:
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3)) or 0 in shape:
        layout = "[H, W] or [C, H, W]" if is_torch else "[H, W] or [H, W, C]"
        other = values.ndim == 3 and shape[-1 if is_torch else 0] in (1, 3)
        turn = "permute(2, 0, 1)" if is_torch else "transpose(1, 2, 0)"
        raise ValueError(
            f"the image has shape {shape}: a {'torch tensor' if is_torch else 'numpy array'} is {layout} with C = 1 or 3"
            + (f"; this one looks like the other order, give image.{turn}" if other else "")
        )
    if values.dtype == np.uint8:
        values = values / np.float32(255)
    if not np.isfinite(values).all():
        raise ValueError("the image has values that are not finite: find their origin")
    mean = float(values.mean())
    if not (0 <= mean <= 1 and abs(values).max() <= 10):
        raise ValueError(
            f"the image has values in [{values.min():.4g}, {values.max():.4g}]: give [0, 1] apart from noise"
        )
    return values.astype(np.float32).reshape(*values.shape[:2], -1)


def _array(image: Tensor) -> np.ndarray:
    """The values; numpy has no bfloat16."""
    values = image.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _like(pixels: np.ndarray, image: Array) -> Array:
    """``pixels[H, W, C]`` in the layout and type of ``image``."""
    eight_bit = image.dtype in (np.uint8, torch.uint8)
    values = to_uint8(pixels) if eight_bit else pixels
    if isinstance(image, Tensor):
        turned = torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, 0)))
        return turned.reshape(image.shape).to(image)
    return values.reshape(image.shape).astype(image.dtype)
