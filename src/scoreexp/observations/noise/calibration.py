r"""The noise of a sensor from its flat and dark frames: photon-transfer line, rows, and the shape of the read-out noise.

1. Pixels of a flat scene at several exposures: :math:`\mathrm{Var} = K u + \sigma_0^2` is a line over the mean ``u``, whose
   slope is the gain. Variances are those over the frames of a stack, so that an uneven scene and fixed patterns do no harm.
2. Dark frames less their mean frame: the means of rows have the variance ``s_r^2 + sigma^2 / W``, the rest is of each pixel.
3. The shape of the Tukey-lambda law is that with the largest correlation between the sorted values and the quantiles
   (probability plot correlation coefficient, PPCC).
4. Over the gains of a camera, ``log s`` is linear in ``log K`` for each scale ``s``.

References:
    J. R. Janesick, "Photon Transfer", 2007, https://doi.org/10.1117/3.725073;
    J. J. Filliben, "The Probability Plot Correlation Coefficient Test for Normality", 1975,
    https://doi.org/10.1080/00401706.1975.10489279;
    K. Wei, Y. Fu, Y. Zheng, J. Yang, "Physics-based Noise Modeling for Extreme Low-light Photography", 2021,
    https://arxiv.org/abs/2108.02158.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreexp.core.checked import checked
from scoreexp.core.types import FiniteNonNegativeFloat, FinitePositiveFloat
from scoreexp.observations.noise.eld import ELDNoise, tukey_quantile

PASSES = 4  # of the weights of the line
SORTED = 100_000  # values that the shape is found of
SHAPES = -0.49, 1.0
GOLDEN = (5**0.5 - 1) / 2


class PhotonTransfer(NamedTuple):
    """The photon-transfer line.

    Attributes:
        gain: its slope ``K``, in the units of the frames.
        dark_variance: its value without light.
        means: of the stacks, above the dark frames, which are the first.
        variances: of the stacks.
    """

    gain: float
    dark_variance: float
    means: tuple[float, ...]
    variances: tuple[float, ...]


class DarkParts(NamedTuple):
    """Dark frames ``[N, C, H, W]`` in their parts, of mean 0.

    Attributes:
        pixels: ``[N, C, H, W]``.
        rows: means of rows ``[N, C, H]``, which hold ``1 / W`` of the variance of the pixels.
        frames: means of frames ``[N, C]``.
        bias: mean of each channel ``[C]``, above black (-1).
    """

    pixels: Tensor
    rows: Tensor
    frames: Tensor
    bias: Tensor


def require_frames(darks: Tensor, flats: Sequence[Tensor] = ()) -> None:
    """Refuse frames that are none, too few, or of different sizes.

    Raises:
        ValueError: the message has both shapes.
    """
    for name, stack in (("darks", darks), *(("flats", flat) for flat in flats)):
        if stack.ndim != 4 or len(stack) < 2 or not stack.is_floating_point():
            raise ValueError(
                f"{name} of {stack.dtype} {tuple(stack.shape)}: give floating point frames [N, C, H, W], two at "
                "least of each exposure"
            )
        if stack.shape[1:] != darks.shape[1:]:
            raise ValueError(
                f"flats of shape {tuple(stack.shape[1:])} and darks of shape {tuple(darks.shape[1:])}: give frames "
                "of one size"
            )


def photon_transfer(flats: Sequence[Tensor], darks: Tensor) -> PhotonTransfer:
    """The line of variance over mean, weighted by the precision of each variance.

    Args:
        flats: a stack ``[N, C, H, W]`` for each exposure, of one scene without texture, not clipped.
        darks: a stack ``[N, C, H, W]`` without light.

    Raises:
        ValueError: the frames differ in size, are too few, or their variance does not rise with the light.
    """
    require_frames(darks, flats)
    if not flats:
        raise ValueError("flats is empty: give a stack [N, C, H, W] for each exposure")
    stacks = [stack.double() for stack in (darks, *flats)]
    means = np.array([float(stack.mean()) for stack in stacks])
    variances = np.array([float(stack.var(0).mean()) for stack in stacks])
    degrees = np.array([(len(stack) - 1) * stack[0].numel() for stack in stacks])
    means = means - means[0]
    least = max(1e-3 * float(variances.max()), 1e-30)
    fitted, slope, start = np.maximum(variances, least), 0.0, 0.0
    if not np.ptp(means) > 0:
        raise ValueError("the flats are as dark as the darks: give flats of several exposures")
    for _ in range(PASSES):  # a variance v of d degrees of freedom has the variance 2 v^2 / d
        slope, start = np.polyfit(means, variances, 1, w=np.sqrt(degrees) / fitted)
        fitted = np.maximum(slope * means + start, least)
    if not slope > 0:
        raise ValueError(
            f"the variance of flats does not rise with their mean (slope {slope:.3g}): give flats of several exposures that "
            "are not clipped"
        )
    return PhotonTransfer(float(slope), float(start), tuple(means.tolist()), tuple(variances.tolist()))


def dark_parts(darks: Tensor) -> DarkParts:
    """Frame, row and pixel parts of dark frames, by averages; the mean frame (fixed pattern) is taken off.

    All are scaled for the degrees of freedom that the means take.

    >>> parts = dark_parts(torch.randn(8, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    >>> parts.rows.shape, round(float(parts.pixels.var()), 1)
    (torch.Size([8, 1, 64]), 1.0)
    """
    require_frames(darks)
    darks = darks.double()
    count, _, height, width = darks.shape
    x = (darks - darks.mean(0)) * math.sqrt(count / (count - 1))
    frames = x.mean((-1, -2))
    x = x - frames[..., None, None]
    rows = x.mean(-1)
    pixels = (x - rows[..., None]) * math.sqrt(width / (width - 1))
    return DarkParts(pixels, rows * math.sqrt(height / (height - 1)), frames, darks.mean((0, -1, -2)) + 1)


def tukey_shape(values: Tensor) -> float:
    """``lambda`` of the Tukey-lambda law of largest PPCC.

    >>> z = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    >>> abs(tukey_shape(z) - 1) < 0.01  # evenly spaced values are uniform
    True

    Args:
        values: any shape; at most 100,000, evenly chosen, are looked at.
    """
    flat = values.flatten().double()
    flat = flat[:: max(1, -(-len(flat) // SORTED))].sort().values
    place = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    z = torch.special.ndtri((place - 0.3175) / (len(flat) + 0.365))
    flat = flat - flat.mean()

    def correlation(shape: float) -> float:
        quantiles = tukey_quantile(z, shape)
        return float(flat @ quantiles / quantiles.norm())

    low, high = SHAPES
    while high - low > 1e-3:  # golden section
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if correlation(left) > correlation(right) else (left, high)
    return (low + high) / 2


@checked
def calibrate(flats: Sequence[Tensor], darks: Tensor, *, step: FiniteNonNegativeFloat = 0.0) -> ELDNoise:
    """The noise model of a sensor at one gain from its flat and dark frames.

    The shape is that of differences from the mean dark frame: with ``N`` frames it is pulled towards the normal one by some
    ``1 / N``. It holds where ``sigma`` is more than a step.

    >>> from scoreexp.core.streams import ImageStreams
    >>> noise = ELDNoise(gain=0.02, sigma=0.05, row=0.02)
    >>> frame = torch.zeros(8, 1, 64, 64, dtype=torch.float64)
    >>> darks, *flats = (noise.sample(frame + x, ImageStreams(range(8), str(x))) for x in (-1.0, -0.5, 0.0, 0.5))
    >>> found = calibrate(flats, darks)
    >>> [round(value, 2) for value in (found.gain, found.sigma, found.row)]
    [0.02, 0.05, 0.02]

    Args:
        flats: a stack ``[N, C, H, W]`` for each exposure, in the units of the model: -1 is black, 1 white; not clipped.
        darks: a stack ``[N, C, H, W]`` of the same size without light, not clipped at black either.
        step: of the rounding in the same units, such as ``2 / 1023``; 0 where there is none.

    Raises:
        ValueError: the frames differ in size, are too few, or hold no noise beyond their steps.
    """
    line, parts = photon_transfer(flats, darks), dark_parts(darks)
    of_pixel = float(parts.pixels.square().mean())
    of_row = float(parts.rows.square().mean()) - of_pixel / darks.shape[-1]
    reading = of_pixel - step**2 / 12
    if not reading > 0:
        raise ValueError(
            f"the dark frames have a standard deviation of {math.sqrt(of_pixel):.3g}, no more than steps of {step:.3g} "
            "make: give frames that are not clipped at black, or the right step"
        )
    bias = parts.bias.tolist()
    return ELDNoise(
        gain=line.gain,
        sigma=math.sqrt(reading),
        shape=tukey_shape(parts.pixels),
        row=math.sqrt(max(of_row, 0.0)),
        step=step,
        bias=bias[0] if len(bias) == 1 else bias,
    )


@checked
def at_gain(calibrated: Sequence[ELDNoise], gain: FinitePositiveFloat) -> ELDNoise:
    """The noise of a camera at another gain: ``log sigma`` and ``log row`` linear in ``log gain``, by least squares.

    >>> noise = at_gain([ELDNoise(0.01, 0.01, row=0.004), ELDNoise(0.04, 0.02, row=0.016)], gain=0.02)
    >>> round(noise.sigma, 4), round(noise.row, 4)
    (0.0141, 0.008)

    Args:
        calibrated: at two gains at least; shape and bias are their means, the step that of the first.
        gain: of the result.

    Raises:
        ValueError: all have one gain, or they have different numbers of channels.
    """
    places = np.log([noise.gain for noise in calibrated])
    if len(set(places.tolist())) < 2:
        raise ValueError(
            f"{len(calibrated)} calibrations at one gain say nothing of another: give two gains at least"
        )
    biases = [np.atleast_1d(noise.bias) for noise in calibrated]
    if len({len(bias) for bias in biases}) > 1:
        raise ValueError(
            "the calibrations have biases of different numbers of channels: give those of one camera"
        )

    def scale(values: list[float]) -> float:
        if not all(values):
            return 0.0
        slope, start = np.polyfit(places, np.log(values), 1)
        return math.exp(slope * math.log(gain) + start)

    bias = np.mean(biases, 0).tolist()
    return ELDNoise(
        gain,
        scale([noise.sigma for noise in calibrated]),
        float(np.mean([noise.shape for noise in calibrated])),
        scale([noise.row for noise in calibrated]),
        calibrated[0].step,
        bias[0] if len(bias) == 1 else bias,
    )
