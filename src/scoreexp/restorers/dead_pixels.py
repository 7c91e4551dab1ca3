r"""Restoring an image some of whose pixels were not observed, by a restorer that needs all of them.

The values at the dead pixels are those that the restorer itself finds there,

.. math:: y_{dead} = R(y)_{dead} ,

the fixed point of expectation-maximisation with these values as what is missing: for Gaussian data and the posterior mean
``R`` it is the posterior mean given the living pixels alone. Anderson's mixing of the passes comes near it in a few, where
faint noise, which makes ``R`` trust each value, would need many.

References:
    A. P. Dempster, N. M. Laird, D. B. Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm", 1977,
    https://doi.org/10.1111/j.2517-6161.1977.tb01600.x;
    D. G. Anderson, "Iterative Procedures for Nonlinear Integral Equations", 1965, https://doi.org/10.1145/321296.321305.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import uniform_filter

from scoreexp.restorers.images import RestoredPixels

PASSES = 3  # before the last
SINGULAR = 1e-3  # differences of passes below this share of the largest tell nothing


def restore_around(
    dead: np.ndarray,
    pixels: np.ndarray,
    restore: Callable[[np.ndarray], RestoredPixels],
    passes: int = PASSES,
) -> RestoredPixels:
    """The restored image; evaluations and seconds are those of all passes.

    Args:
        dead: true where nothing was observed, ``[H, W, C]``.
        pixels: ``[H, W, C]`` in [0, 1]; the values of dead pixels are not looked at.
        restore: restores pixels ``[H, W, C]`` that were all observed.
        passes: of ``restore`` before the last.

    Raises:
        ValueError: see ``fill``.
    """
    filled = fill(pixels, dead)
    given: list[np.ndarray] = []
    made: list[np.ndarray] = []
    nfe, seconds = 0, 0.0
    for _ in range(passes):
        result = restore(filled)
        nfe, seconds = nfe + result.nfe, seconds + result.seconds
        given.append(filled[dead])
        made.append(result.states[-1][dead])
        filled[dead] = _mixed(given, made)
    last = restore(filled)
    return last._replace(nfe=nfe + last.nfe, seconds=seconds + last.seconds)


def fill(pixels: np.ndarray, dead: np.ndarray) -> np.ndarray:
    """``pixels [H, W, C]``, at dead ones the mean of the living neighbours in the channel, from the outside inwards.

    >>> fill(np.array([[[0.2], [9.0], [0.4]]]), np.array([[[False], [True], [False]]]))[..., 0].round(3)
    array([[0.2, 0.3, 0.4]])

    Raises:
        ValueError: no pixel of a channel lives.
    """
    if dead.all((0, 1)).any():
        raise ValueError("all pixels of a channel are dead, so nothing is known of it: give a mask of fewer")
    filled, left = pixels.copy(), dead.copy()
    while left.any():
        share = uniform_filter((~left).astype(np.float64), (3, 3, 1), mode="mirror")
        total = uniform_filter(np.where(left, 0, filled).astype(np.float64), (3, 3, 1), mode="mirror")
        now = left & (share > 0.5 / 9)
        filled[now] = (total[now] / share[now]).astype(filled.dtype)
        left &= ~now
    return filled


def _mixed(given: list[np.ndarray], made: list[np.ndarray]) -> np.ndarray:
    """Anderson's next values from those that were given to the passes and what they made of them."""
    moves = [after - before for before, after in zip(given, made, strict=True)]
    if len(moves) == 1:
        return made[-1]
    of_moves = np.stack([moves[-1] - move for move in moves[:-1]], 1).astype(np.float64)
    of_made = np.stack([made[-1] - after for after in made[:-1]], 1)
    weights = np.linalg.lstsq(of_moves, moves[-1].astype(np.float64), rcond=SINGULAR)[0]
    return (made[-1] - of_made @ weights).clip(0, 1).astype(made[-1].dtype)
