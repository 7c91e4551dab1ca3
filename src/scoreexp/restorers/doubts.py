"""What a restored picture and its residual say against it, without a reference."""

import math

import numpy as np
from torch import Tensor

from scoreexp.core.ranges import sigma_to_unit
from scoreexp.observations import Observation

TOO_FAR, TOO_NEAR = 2.0, 0.25  # of the residual, in units of the noise
ROUNDING = 0.02  # of pixels and clipping, in units of [0, 1]
CLIPPED, ROUGH = (
    0.25,
    0.2,
)  # shares of saturated noise; a photograph's neighbours differ by 0.02 to 0.1 on average


def doubts_of(pixels: np.ndarray, observation: Observation, fitted: Tensor) -> list[str]:
    """Warnings, each in a line; none where nothing speaks against the estimate.

    >>> import torch
    >>> from scoreexp.observations import GaussianNoise, Identity
    >>> y = torch.zeros(1, 1, 8, 8)
    >>> doubts_of(np.full((8, 8, 1), 0.9), Observation(y, Identity(), GaussianNoise(0.1)), y + 0.8)
    ['the residual is 0.4, 8 times the noise of 0.05: the picture does not fit the data; give the task that damaged ...']

    Args:
        pixels: the estimate, ``[H, W, C]`` in [0, 1].
        observation: what was known, ``y [1, *]``.
        fitted: ``A(x)`` of the estimate, in the shape of ``y``.
    """
    found = []
    if is_saturated_noise(pixels):
        found.append(
            "the restored picture is saturated noise, so the restorer diverged: give a smaller weight of the data, more "
            "steps, or another restorer, such as restorer=ddrm or restorer=diffpir"
        )
    residual = sigma_to_unit(float((observation.y - fitted).square().mean().sqrt()))
    level = sigma_to_unit(math.sqrt(float(observation.noise.variance(fitted).mean())))
    if residual > TOO_FAR * level + ROUNDING:
        times = (
            f", {residual / level:.0f} times the noise of {level:.3g}"
            if level > 0
            else ", and no noise was said"
        )
        found.append(
            f"the residual is {residual:.3g}{times}: the picture does not fit the data; give the task that damaged it, its "
            "sigma, more steps, or another restorer"
        )
    elif residual < TOO_NEAR * level - ROUNDING / 4:
        found.append(
            f"the residual is {residual:.2g}, far below the noise of {level:.3g}: the noise of the data is in the picture; "
            "give a smaller sigma if they have less, or another restorer"
        )
    return found


def is_saturated_noise(pixels: np.ndarray) -> bool:
    """Whether many values of ``pixels [H, W, C]`` are clipped and neighbours differ as in no photograph.

    >>> is_saturated_noise(np.random.default_rng(0).integers(0, 2, (8, 8, 1)).astype(float))
    True
    >>> is_saturated_noise(np.tile(np.arange(8.0).clip(2, 4)[:, None, None] / 2 - 1, (1, 8, 1)))  # a clipped ramp
    False
    """
    clipped = float(((pixels <= 0) | (pixels >= 1)).mean())
    steps = [np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1) if pixels.shape[axis] > 1]
    return clipped > CLIPPED and bool(steps) and float(np.mean(steps)) > ROUGH
