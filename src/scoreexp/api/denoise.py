"""Denoise an image in memory."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from scoreexp import prior
from scoreexp.api.models import as_model, usual_sampler
from scoreexp.core.checked import checked
from scoreexp.core.errors import UserError
from scoreexp.core.kinds import Images, kind_of
from scoreexp.core.ranges import sigma_to_model, to_uint8, to_unit
from scoreexp.core.streams import ImageStreams
from scoreexp.core.types import FiniteNonNegativeFloat, PositiveInt
from scoreexp.denoisers import DenoiserBase
from scoreexp.diagnostics.without_reference import (
    ResidualCheck,
    check_residual,
    posterior_variance,
    sure_of_noise,
    whiteness,
)
from scoreexp.observations import GaussianNoise, Identity, NoiseModel, Observation, find_dead_pixels
from scoreexp.observations.noise.estimate import Estimate, clipped_ends, estimate
from scoreexp.restorers import (
    Binned,
    BySampling,
    Declipped,
    PnPColoured,
    PosteriorMean,
    Restorer,
    Stabilised,
)
from scoreexp.restorers.dead_pixels import fill, restore_around
from scoreexp.restorers.filtering import ImageFilter
from scoreexp.restorers.images import RestoredPixels, Tiles, as_observed, restore_pixels
from scoreexp.restorers.usual import require_known_level, serving, usual_restorer
from scoreexp.samplers import Sampler, label_of_observed
from scoreexp.samplers.labels import Label

Array = TypeVar("Array", np.ndarray, Tensor)

GIVEN = "as given"  # in the place of what an estimate rests on
LOOKED_AT = 160  # side of the part of an image by which the result is judged
LEAST = 0.002  # of a noise level at the mean brightness that is more than rounding, in the units of the model
SMALLEST = 8  # side of an image whose residual tells anything
WHITE = 0.05  # deviation of the residual's correlations from the noise's
CHANCE = 4.0  # the same of noise itself in few pixels, largest of all lags, in units of their standard error


class Judgement(NamedTuple):
    """What a result says of itself, without a reference, at the middle of the image.

    Attributes:
        residual: how far what was removed is the assumed noise; None for a small image, and where it is nothing.
        psnr: expected, in dB; None where the restorer would have to run at length again.
        by: how it is known: by SURE where the noise was given, which asks nothing of the prior but the exact level of the
            noise, and else by the posterior's own variance, which believes the prior.
        chance: deviation of the correlations that noise itself has in so few pixels.
    """

    residual: ResidualCheck | None
    psnr: float | None = None
    by: Literal["SURE", "the prior's own variance"] | None = None
    chance: float = 0.0

    def __str__(self) -> str:
        if self.residual is None:
            return "nothing to judge the result by: the image is too small, or nothing was removed"
        scale, correlation, _ = self.residual
        told = f"correlations differ by {correlation:.2f}"
        looks = (
            f"looks like noise alone ({told})"
            if correlation < max(WHITE, self.chance)
            else f"has a pattern that such noise has not ({told}), so texture of the picture went too, or noise is left: "
            "look at it, and try another sigma= or noise="
        )
        text = f"{scale:.2f} of the noise was removed; what was removed {looks}"
        return text if self.psnr is None else f"{text}; PSNR about {self.psnr:.1f} dB by {self.by}"


@checked
def denoise(
    image: Array,
    model: DenoiserBase | str | Path | None = None,
    sigma: FiniteNonNegativeFloat | None = None,
    *,
    noise: NoiseModel | type[NoiseModel] | None = None,
    restorer: Restorer | None = None,
    sampler: Sampler | None = None,
    label: Label = None,
    seed: int = 0,
    dead: np.ndarray | Tensor | Literal["auto"] | None = None,
    tile: PositiveInt | Literal["auto"] | None = "auto",
    say: Callable[[str], object] | None = None,
) -> Array:
    """The image without its noise, in the layout and type that it was given in.

    Without a model the bundled prior is used; without ``sigma`` and ``noise`` the kind of the noise and its level are
    estimated.

    >>> import numpy as np, torch, scoreexp as se
    >>> prior = se.oracles.Gaussian(torch.zeros(3, 8, 8), 0.01 * torch.ones(3, 8, 8))
    >>> model = se.denoisers.OracleDenoiser(prior, se.schedules.VP())
    >>> se.denoise(np.full((8, 8, 3), 200, np.uint8), model, sigma=0.1).shape
    (8, 8, 3)

    Args:
        image: floating point in [0, 1], or uint8. numpy: channels last, ``[H, W]`` or ``[H, W, C]``; torch: channels first,
            ``[H, W]`` or ``[C, H, W]``; C is 1 or 3, any H and W.
        model: a denoiser of images in [-1, 1], or the path of a checkpoint; None: the bundled prior.
        sigma: standard deviation of white Gaussian noise, in units of [0, 1] (25/255 = 0.098).
        noise: its law instead, in the units of the model ([-1, 1]); a class of noise, such as ``PoissonNoise``, has its
            parameters estimated.
        restorer: how; by default a sampler for a model that is given, and for the bundled prior what serves the noise.
        sampler: instead of a restorer; by default that of the model's run, or DDIM with 50 steps.
        label: class of the image, for a model with classes; ``"none"``, the null label, is the default where it was trained.
        seed: names the noise of restorers that draw any.
        dead: pixels that observed nothing, true in ``[H, W]`` or in the shape of the image; ``"auto"`` finds single ones
            (``find_dead_pixels``), which takes points of light and of ink for dead too.
        tile: side of the tiles in pixels; None for the whole image at once, ``"auto"`` for tiles of large images.
        say: told in lines what was assumed, done and achieved, such as ``print``.

    Raises:
        TypeError: the image is no array or of another type, or another argument is of another kind.
        ValueError: it has another shape, values out of range, no noise that can be found, or noise that the model or the
            restorer does not know; or arguments contradict each other.
    """
    pixels = _pixels(image)
    if sigma is not None and noise is not None:
        name = noise.__name__ if isinstance(noise, type) else noise
        raise ValueError(f"sigma={sigma:g} and noise={name} are two answers: give one of them")
    if restorer is not None and sampler is not None:
        raise ValueError("restorer and sampler are two ways: give one of them")
    if sigma is not None:
        noise = GaussianNoise(sigma_to_model(sigma))
    is_given = isinstance(noise, NoiseModel)

    def noise_of(pixels: np.ndarray) -> Estimate:
        return Estimate(noise, "good", GIVEN) if isinstance(noise, NoiseModel) else estimated(pixels, noise)

    mask = dead if dead is None or isinstance(dead, str) else _mask_like(dead, pixels)
    found, mask, pixels = noise_and_dead_pixels(pixels, mask, noise_of)
    law = found.noise
    if restorer is not None and not restorer.needs_model:
        if model is not None:
            raise ValueError(f"{type(restorer).__name__} takes no model: leave it out")
        denoiser = None
    else:
        denoiser = prior.load() if model is None else as_model(model)
        if denoiser.event_shape is not None and not isinstance(kind_of(denoiser.event_shape), Images):
            raise ValueError(
                f"the model's samples have shape {denoiser.event_shape}: give a model of images (C, H, W)"
            )
    if restorer is None and (model is not None or sampler is not None):
        assert denoiser is not None
        restorer = BySampling(sampler or usual_sampler(denoiser))
    restorer = chosen_restorer(restorer, law, pixels, denoiser)
    chosen, _ = label_of_observed({} if denoiser is None else denoiser.record, seed, label)

    def restore(pixels: np.ndarray) -> RestoredPixels:
        return restore_pixels(restorer, denoiser, pixels, law, label=chosen, seed=seed, tiles=Tiles(tile))

    result = restore(pixels) if mask is None else restore_around(mask, pixels, restore)
    clean = result.states[-1]
    if say is not None:
        say(f"noise: {law} ({found.trust}: {found.why})")
        if dead is not None:
            say(f"dead pixels: {dead_in_words(mask)}")
        say(f"restorer: {name_of(restorer)}, {result.seconds:.1f} s")
        living = pixels if mask is None else np.where(mask, clean, pixels)
        told = judged(restorer, denoiser, living, clean, law, is_known=is_given, label=chosen, seed=seed)
        say(f"residual: {told}")
    return _like(clean, image)


def estimated(pixels: np.ndarray, law: type[NoiseModel] | None = None) -> Estimate:
    """The noise of an image ``[H, W, C]`` in [0, 1], where ``law`` says so of this law.

    Raises:
        UserError: it is too small, no noise was found, or it has less than one count per pixel and cannot be relied on.
    """
    found = estimate(pixels, law)
    peak = found.noise.parameters().get("peak", math.inf)
    if found.trust == "doubtful" and peak * float(pixels.mean()) < 1:
        raise UserError(
            f"less than one count per pixel, and an estimate of {peak:.2g} counts at white that is not to be relied on "
            f"({found.why}): give noise=poisson noise.peak=... (PoissonNoise(peak)), best with counts that are not clipped"
        )
    gray = torch.full((1, 1), 2 * float(pixels.mean()) - 1).clamp(min=-1)
    if float(found.noise.variance(gray)) < LEAST**2:
        same = float(np.ptp(pixels)) == 0
        raise UserError(
            f"no noise was found{', all pixels are equal' * same}: give sigma=... to denoise it all the same"
        )
    return found


def noise_and_dead_pixels(
    pixels: np.ndarray,
    dead: np.ndarray | Literal["auto"] | None,
    noise_of: Callable[[np.ndarray], Estimate],
) -> tuple[Estimate, np.ndarray | None, np.ndarray]:
    """The noise of an image, its dead pixels, and the image with these filled in; the image itself where it has none.

    Args:
        pixels: ``[H, W, C]`` in [0, 1].
        dead: true where a pixel is, in the same shape, or ``"auto"``.
        noise_of: estimates the noise of such an image, or knows it.
    """
    if isinstance(dead, np.ndarray) and dead.any():
        filled = fill(pixels, dead)
        return noise_of(filled), dead, filled
    found = noise_of(pixels)
    if not isinstance(dead, str):
        return found, None, pixels
    mask = np.moveaxis(find_dead_pixels(as_observed(pixels)[0], found.noise).numpy(), 0, -1)
    if not mask.any():
        return found, None, pixels
    filled = fill(pixels, mask)
    return noise_of(filled), mask, filled


def dead_in_words(dead: np.ndarray | None) -> str:
    """How many dead pixels ``[H, W, C]`` has.

    >>> dead_in_words(np.array([[[True, False], [False, False]]]))
    '1 of 2, filled in as not observed'
    """
    if dead is None:
        return "none stands out of the noise"
    return f"{int(dead.any(-1).sum())} of {dead.shape[0] * dead.shape[1]}, filled in as not observed"


def chosen_restorer(
    restorer: Restorer | None, noise: NoiseModel, pixels: np.ndarray, model: DenoiserBase | None
) -> Restorer:
    """The restorer of an image ``[H, W, C]`` in [0, 1]: as it serves the noise, or the usual one, ``declipped``.

    Raises:
        ValueError: the noise is fainter than the model knows.
    """
    if restorer is not None:
        chosen = serving(restorer, noise)
    else:
        height, width = pixels.shape[:2]
        chosen = declipped(usual_restorer(noise, height * width), noise, pixels)
    require_known_level(chosen, noise, model)
    return chosen


def declipped(restorer: Restorer, noise: NoiseModel, pixels: np.ndarray) -> Restorer:
    """The restorer, ``Declipped`` where the noise of an image ``[H, W, C]`` in [0, 1] was cut off at its ends."""
    black, white = clipped_ends(pixels, noise)
    if not (black or white):
        return restorer
    return Declipped(restorer, "both" if black and white else "black" if black else "white")


def name_of(restorer: Restorer) -> str:
    """A restorer in words.

    >>> name_of(Stabilised(PosteriorMean()))
    'posterior mean in 1 evaluation, of the stabilised image'
    """
    if isinstance(restorer, Stabilised):
        return f"{name_of(restorer.restorer)}, of the stabilised image"
    if isinstance(restorer, Declipped):
        ends = "black and white" if restorer.ends == "both" else restorer.ends
        return f"{name_of(restorer.restorer)}, without the bias of clipping at {ends}"
    if isinstance(restorer, Binned):
        return f"{name_of(restorer.restorer)}, of means of {restorer.factor} x {restorer.factor} pixels"
    if isinstance(restorer, PosteriorMean):
        n = restorer.evaluations
        return f"posterior mean in {n} evaluation{'s' * (n > 1)}"
    if isinstance(restorer, PnPColoured):
        return f"plug-and-play in {restorer.steps} evaluations"
    if isinstance(restorer, BySampling):
        return f"by sampling with {type(restorer.sampler).__name__}"
    return type(restorer).__name__


def middle(pixels: np.ndarray) -> tuple[slice, slice]:
    """That part of an image ``[H, W, C]`` by which a result is judged: its middle of at most 160 x 160 pixels."""
    rows, columns = (slice((n - m) // 2, (n + m) // 2) for n in pixels.shape[:2] for m in [min(n, LOOKED_AT)])
    return rows, columns


def by_residual(observation: Observation, x: Tensor) -> Judgement:
    """What was removed from an observed image or cube ``[1, C, H, W]``, judged by itself.

    >>> noise, x = GaussianNoise(0.2), torch.zeros(1, 1, 24, 24)
    >>> told = by_residual(Observation.simulate(x, Identity(), noise, ImageStreams([0])), x)
    >>> str(told)[:70]
    '0.99 of the noise was removed; what was removed looks like noise alone'
    """
    squares = 1 + 2 * float(whiteness(observation.y - x).correlations.square().sum())  # Bartlett's formula
    return Judgement(check_residual(observation, x), chance=CHANCE * math.sqrt(squares / x[0, 0].numel()))


def judged(
    restorer: Restorer,
    model: DenoiserBase | None,
    pixels: np.ndarray,
    clean: np.ndarray,
    noise: NoiseModel,
    *,
    is_known: bool,
    label: Label = None,
    seed: int = 0,
) -> Judgement:
    """What a result says of itself.

    Args:
        restorer: as of ``restore_pixels``, like the others, and ``clean`` is its result.
        model: see there.
        pixels: see there.
        clean: ``[H, W, C]``.
        noise: see there.
        is_known: whether the noise was given, and not estimated.
        label: see there.
        seed: see there.
    """
    cut = middle(pixels)
    if min(pixels.shape[:2]) < SMALLEST:
        return Judgement(None)
    y, x = as_observed(pixels[cut]), as_observed(clean[cut])
    removed = y - x
    if float((removed - removed.mean((-1, -2), keepdim=True)).abs().max()) < 1e-6:
        return Judgement(None)
    observation = Observation(y, Identity(), noise)

    def again(y: Tensor) -> Tensor:
        part = np.moveaxis(to_unit(y[0]).numpy(), 0, -1)
        found = restore_pixels(restorer, model, part, noise, label=label, seed=seed, tiles=Tiles(None))
        return as_observed(found.states[-1])

    judgement = by_residual(observation, x)
    inner = restorer
    while isinstance(inner, Binned | Declipped | Stabilised):
        inner = inner.restorer
    if is_known and isinstance(inner, PosteriorMean | ImageFilter | PnPColoured):
        error = float(sure_of_noise(again, y, noise, ImageStreams([seed], "sure"))) / 4
        return judgement._replace(psnr=-10 * math.log10(error) if error > 0 else None, by="SURE")
    if isinstance(inner, PosteriorMean | PnPColoured):
        error = float(posterior_variance(again, y, noise, ImageStreams([seed], "sure"))) / 4
        return judgement._replace(
            psnr=-10 * math.log10(error) if error > 0 else None, by="the prior's own variance"
        )
    return judgement


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
        whole = bool((values == np.round(values)).all())
        raise ValueError(
            f"the image has values in [{values.min():.4g}, {values.max():.4g}]: give [0, 1] apart from noise"
            + ", counts divided by their number at white, 8-bit values by 255" * whole
        )
    return values.astype(np.float32).reshape(*values.shape[:2], -1)


def _mask_like(dead: np.ndarray | Tensor, pixels: np.ndarray) -> np.ndarray:
    """The mask ``[H, W, C]`` of dead pixels, given in the layout of the image or as ``[H, W]`` for all channels."""
    if not isinstance(dead, np.ndarray | Tensor):
        raise TypeError(
            f"dead is a {type(dead).__name__}: give a mask, true where a pixel is dead, or 'auto'"
        )
    mask = (_array(dead) if isinstance(dead, Tensor) else dead) != 0
    if mask.ndim == 3 and isinstance(dead, Tensor):
        mask = np.moveaxis(mask, 0, -1)
    if mask.shape not in (pixels.shape, pixels.shape[:2]):
        raise ValueError(
            f"dead has shape {tuple(dead.shape)}, the image {pixels.shape}: give a mask of its size"
        )
    return np.broadcast_to(mask.reshape(*pixels.shape[:2], -1), pixels.shape)


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
