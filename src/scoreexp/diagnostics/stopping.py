"""Where a run's SSIM is best, and where its error on the population is least.

Early stopping by the quality of denoised images is a guess at the step of least population error: that of the score,
or what differs from it by a constant, the bits per dimension of held-out data (``likelihood_by_level``).

Reference: Y. Han, M. Razaviyayn, R. Xu, "Neural Network-Based Score Estimation in Diffusion Models: Optimization and
Generalization", 2024, https://arxiv.org/abs/2401.15604, for early stopping by the population error.
"""

from collections.abc import Sequence
from typing import NamedTuple

from scoreexp.core.checked import checked
from scoreexp.core.types import PositiveInt


class StoppingComparison(NamedTuple):
    """Two steps of a run.

    Attributes:
        stopped: step at which SSIM stops the run.
        least: step of the least population error.
        error_at_stop: population error at ``stopped``.
        least_error: population error at ``least``.
    """

    stopped: int
    least: int
    error_at_stop: float
    least_error: float

    @property
    def excess(self) -> float:
        """Population error that stopping there costs, in the error's own unit; 0 where both agree."""
        return self.error_at_stop - self.least_error


@checked
def compare_stopping(
    steps: Sequence[int], ssim: Sequence[float], error: Sequence[float], patience: PositiveInt | None = None
) -> StoppingComparison:
    """The step of the best SSIM against that of the least error.

    >>> compare_stopping([10, 20, 30, 40], ssim=[0.5, 0.6, 0.7, 0.6], error=[1.0, 0.4, 0.5, 0.9])
    StoppingComparison(stopped=30, least=20, error_at_stop=0.5, least_error=0.4)

    Args:
        steps: of the evaluations, ascending.
        ssim: at each.
        error: on the population, at each.
        patience: evaluations without a better SSIM after which the run ends, and its best one is kept; None looks at all.

    Raises:
        ValueError: there is no evaluation, or their numbers differ.
    """
    if not steps or not len(steps) == len(ssim) == len(error):
        raise ValueError(
            f"{len(steps)} steps, {len(ssim)} values of SSIM and {len(error)} of the error: give as many of "
            "each, and one at least"
        )
    best = 0
    for k in range(len(steps)):
        if ssim[k] > ssim[best]:
            best = k
        elif patience is not None and k - best >= patience:
            break
    least = min(range(len(steps)), key=lambda k: error[k])
    return StoppingComparison(steps[best], steps[least], error[best], error[least])
